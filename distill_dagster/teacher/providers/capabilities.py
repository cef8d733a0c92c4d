"""What a model takes beside messages: JSON schemas and tools."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=64)
def takes_schema(model: str, setting: str) -> bool:
    """Whether a model is sent a JSON schema as `response_format`; "auto": where litellm knows that it takes one."""
    if setting != "auto":
        return setting == "json_schema"
    import litellm

    return bool(litellm.supports_response_schema(model=model))


@lru_cache(maxsize=64)
def takes_tools(model: str, setting: str) -> bool:
    """Whether a model is sent tools as such; "auto": where litellm knows that it calls them."""
    if setting != "auto":
        return setting == "json_schema"
    import litellm

    return bool(litellm.supports_function_calling(model=model))
