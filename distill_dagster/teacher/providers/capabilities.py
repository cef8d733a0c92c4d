"""What a model accepts: JSON schemas, tools, a temperature, and the name of its token limit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from distill_dagster.core.json_schema import is_strict_schema


def _import_litellm() -> Any:
    """litellm, which must not print a hint to stdout about a model that it does not know: `--json` prints there."""
    import litellm

    litellm.suppress_debug_info = True
    return litellm


@lru_cache(maxsize=64)
def takes_schema(model: str, setting: str) -> bool:
    """Whether to send a JSON schema as `response_format`. With "auto", litellm decides whether the model takes one."""
    if setting != "auto":
        return setting == "json_schema"
    litellm = _import_litellm()

    return bool(litellm.supports_response_schema(model=model))


def build_response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` of a request for an answer with this JSON schema."""
    answer = {"name": "answer", "strict": is_strict_schema(schema), "schema": schema}
    return {"type": "json_schema", "json_schema": answer}


@lru_cache(maxsize=64)
def takes_tools(model: str, setting: str) -> bool:
    """Whether to send tools as such. With "auto", litellm decides whether the model calls tools."""
    if setting != "auto":
        return setting == "json_schema"
    litellm = _import_litellm()

    return bool(litellm.supports_function_calling(model=model))


def adapt_params(model: str, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request as the model's own API takes them.

    OpenAI's models that think call `max_tokens` `max_completion_tokens`, and accept no temperature but 1.
    """
    if "temperature" in params and not _takes_temperature(model, params["temperature"]):
        params = {name: value for name, value in params.items() if name != "temperature"}
    if "max_tokens" in params and (renamed := _find_max_tokens_name(model)) != "max_tokens":
        params = {renamed if name == "max_tokens" else name: value for name, value in params.items()}
    return params


@lru_cache(maxsize=64)
def _takes_temperature(model: str, temperature: float) -> bool:
    litellm = _import_litellm()

    try:
        name, provider, *_ = litellm.get_llm_provider(model)
        litellm.get_optional_params(model=name, custom_llm_provider=provider, temperature=temperature)
    except litellm.UnsupportedParamsError:
        return False
    except Exception:  # of no public type: the provider is not known
        return True
    return True


@lru_cache(maxsize=64)
def _find_max_tokens_name(model: str) -> str:
    litellm = _import_litellm()

    try:
        name, provider, *_ = litellm.get_llm_provider(model)
        params = litellm.get_optional_params(model=name, custom_llm_provider=provider, max_tokens=1)
    except Exception:  # of no public type: the provider is not known
        return "max_tokens"
    return "max_completion_tokens" if "max_completion_tokens" in params else "max_tokens"
