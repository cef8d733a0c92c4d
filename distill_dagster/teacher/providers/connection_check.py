"""Look whether a teacher can be reached, takes its key and has its model. Asks no model, so it costs nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal, NamedTuple

from distill_dagster.config import TeacherSpec
from distill_dagster.core import redaction
from distill_dagster.core.errors import TeacherError
from distill_dagster.teacher.providers.attempts import HOPELESS_STATUSES
from distill_dagster.teacher.providers.client import NO_KEY, OPENAI_PREFIXES, redact_error, resolve_endpoint
from distill_dagster.teacher.providers.error_bodies import parse_error_body

OPENAI_BASE = "https://api.openai.com/v1"
TIMEOUT_S = 15.0
MAX_NAMED_MODELS = 8
OWN_SERVERS = {"vllm", "sglang"}
"""What servers of open models write into `owned_by` of each model. They say at `/health` whether the engine works."""
_ADAPTER_REMEDY = (
    "Name one of them in teacher.model after `openai/`, or serve yours: a LoRA adapter takes `--enable-lora` and its "
    "name and folder (`--lora-modules name=folder` in vLLM, `--lora-paths name=folder` in SGLang)."
)
_ENGINE_REMEDY = "Look at the server's log, and start it again."


class ConnectionProblem(NamedTuple):
    """What is wrong with the connection to a teacher, and what to do."""

    message: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


async def check_connection(spec: TeacherSpec, timeout_s: float = TIMEOUT_S) -> ConnectionProblem | None:
    """Send one request for the list of models to the address of a teacher. None if nothing is wrong.

    A teacher without a known address is not looked at: litellm knows where to send its requests.
    """
    import aiohttp

    if spec.is_free or spec.has_no_server or (base := _find_base(spec)) is None:
        return None
    try:
        endpoint = resolve_endpoint(spec)
    except TeacherError:
        return None  # `distill check` says so without a connection
    is_openai = spec.model.startswith(OPENAI_PREFIXES)
    key = endpoint.api_key if endpoint.api_key != NO_KEY else None
    headers = {"Authorization": f"Bearer {key}"} if key and is_openai else {}
    url = base.rstrip("/") + "/models"
    where = f"The address {base} of the teacher {spec.model}"
    remedy = "Start the server, or fix teacher.api_base in task.yaml."
    try:
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers) as got,
        ):
            status, text = got.status, (await got.read()).decode("utf-8", "replace")
    except TimeoutError:
        return ConnectionProblem(f"{where} does not answer within {timeout_s:g} s.", remedy)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ConnectionProblem(f"{where} cannot be reached: {redaction.redact(str(reason))}.", remedy)
    words = redact_error(parse_error_body(text).message.rstrip("."), endpoint)
    if status in (401, 403) and is_openai:
        variable = spec.api_key_env or ("none is set" if spec.api_base else "OPENAI_API_KEY")
        return ConnectionProblem(f"{where} refuses the key ({variable}), HTTP {status}: {words}.", "Set a valid key.")
    if status >= 500 and status not in HOPELESS_STATUSES:  # a server without this request is there all the same
        return ConnectionProblem(f"{where} replies with HTTP {status}: {words}.", remedy)
    models = _list_models(text) if status == 200 and is_openai else {}
    name = spec.model.split("/", 1)[1] if is_openai else ""
    owners = {str(row.get("owned_by")) for row in models.values()} & OWN_SERVERS
    if models and name not in models:
        some = (
            "It lists " + ", ".join(list(models)[:MAX_NAMED_MODELS]) + (", …" if len(models) > MAX_NAMED_MODELS else "")
        )
        missing = f"{where} does not list the model {name!r}."
        if owners:  # they list all that they answer for
            return ConnectionProblem(missing, f"{some}. {_ADAPTER_REMEDY}")
        return ConnectionProblem(missing, f"{some}.", "warning")
    if owners:
        return await _check_own_server(spec, where, base, models[name], headers, timeout_s)
    return None


async def _check_own_server(
    spec: TeacherSpec, where: str, base: str, row: dict[str, Any], headers: dict[str, str], timeout_s: float
) -> ConnectionProblem | None:
    """Look whether the engine behind a vLLM or SGLang server works, and whether an answer fits into its context."""
    import aiohttp

    longest = row.get("max_model_len")
    answer = spec.max_tokens + spec.allowed_thinking_tokens
    if isinstance(longest, int) and longest <= answer:
        remedy = "Start it with a larger --max-model-len, or lower teacher.max_tokens or teacher.thinking_tokens."
        return ConnectionProblem(
            f"{where} has a context of {longest} tokens, and an answer alone may take {answer}.", remedy
        )
    try:
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession() as session,
            session.get(base.rstrip("/").removesuffix("/v1") + "/health", headers=headers) as got,
        ):
            status = got.status
    except (TimeoutError, aiohttp.ClientError, OSError):
        return ConnectionProblem(f"{where} lists its models, and does not say that it is healthy.", _ENGINE_REMEDY)
    if status >= 500:
        return ConnectionProblem(f"{where} lists its models, and its engine is ill: HTTP {status}.", _ENGINE_REMEDY)
    return None


def _find_base(spec: TeacherSpec) -> str | None:
    """The address that requests to a teacher go to, as far as it is known."""
    if spec.api_base:
        return spec.api_base
    import litellm

    try:
        base = litellm.get_llm_provider(spec.model)[3]
    except Exception:  # of no public type: the provider is not known
        base = None
    return base or (OPENAI_BASE if spec.model.startswith(OPENAI_PREFIXES) else None)


def _list_models(text: str) -> dict[str, dict[str, Any]]:
    """The models in the answer to `GET /models`, by id; none if it has another form."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    rows = value.get("data") if isinstance(value, dict) else value
    rows = rows if isinstance(rows, list) else []
    return {str(row["id"]): row for row in rows if isinstance(row, dict) and row.get("id")}
