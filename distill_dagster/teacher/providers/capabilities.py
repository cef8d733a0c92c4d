"""Whether a model accepts JSON schemas and tools."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=64)
def takes_schema(model: str, setting: str) -> bool:
    """Whether to send a JSON schema as `response_format`. With "auto", litellm decides whether the model takes one."""
    if setting != "auto":
        return setting == "json_schema"
    import litellm

    return bool(litellm.supports_response_schema(model=model))


@lru_cache(maxsize=64)
def takes_tools(model: str, setting: str) -> bool:
    """Whether to send tools as such. With "auto", litellm decides whether the model calls tools."""
    if setting != "auto":
        return setting == "json_schema"
    import litellm

    return bool(litellm.supports_function_calling(model=model))
