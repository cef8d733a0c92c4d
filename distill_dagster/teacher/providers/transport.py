"""Send a request: directly to OpenAI-compatible servers at the user's own address, through litellm to all others.

The direct way uses one shared connection pool. It saves litellm's mapping between providers, which costs about 3 ms of
CPU per request.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distill_dagster.config.thinking_models import is_thinking_model
from distill_dagster.teacher.providers.attempts import (
    AttemptError,
    ContentFilterError,
    classify_status,
)
from distill_dagster.teacher.providers.capabilities import adapt_params
from distill_dagster.teacher.providers.finish_reasons import find_finish_reason
from distill_dagster.teacher.providers.responses import build_unusable_response

if TYPE_CHECKING:
    import aiohttp

    from distill_dagster.teacher.providers.client import Endpoint
    from distill_dagster.teacher.providers.exchange import Request

# Otherwise litellm downloads its price list at import.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
DIRECT_PREFIXES = ("openai/", "text-completion-openai/")
_sessions: dict[int, aiohttp.ClientSession] = {}
_text_clients: dict[int, Any] = {}


def is_direct(endpoint: Endpoint) -> bool:
    """Whether the endpoint is an OpenAI-compatible server at the user's own address. It gets parameters unchanged."""
    return endpoint.api_base is not None and endpoint.model.startswith(DIRECT_PREFIXES)


async def send_request(endpoint: Endpoint, request: Request, timeout_s: float) -> Any:
    """Send a request once and return the body that came with HTTP 200, nearly always in the form of OpenAI's protocol.

    Raises:
        AttemptError: no answer came; the error says whether to retry.
        ContentFilterError: the provider's content filter rejected the prompt.
    """
    if not endpoint.has_server:
        raise AttemptError(
            "This teacher has no server: only a batch runner answers it. Set teacher.api_base in task.yaml to ask it "
            "online, or keep `mode: batch`.",
            permanent=True,
        )
    return await (_send_direct if is_direct(endpoint) else _send_through_litellm)(endpoint, request, timeout_s)


def _get_session() -> aiohttp.ClientSession:
    import aiohttp

    key = id(asyncio.get_running_loop())
    if key not in _sessions or _sessions[key].closed:
        # No timeout and no limit of connections here: the caller has both. Close idle connections before most servers
        # do, because a connection that the server closes looks like a cut one.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        _sessions[key] = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
    return _sessions[key]


async def _send_direct(endpoint: Endpoint, request: Request, timeout_s: float) -> Any:
    import aiohttp

    assert endpoint.api_base is not None
    params = request.build_body()
    params = adapt_params(endpoint.model, params) if is_thinking_model(endpoint.model) else params
    body = {"model": endpoint.model.split("/", 1)[1]} | params
    url = endpoint.api_base.rstrip("/") + ("/completions" if request.prompt is not None else "/chat/completions")
    sent = {"Content-Type": "application/json"}
    sent |= {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        async with (
            asyncio.timeout(timeout_s),
            _get_session().post(url, data=json.dumps(body), headers=sent) as got,
        ):
            text = (await got.read()).decode("utf-8-sig", "replace")
            status, headers = got.status, got.headers
    except TimeoutError:
        raise AttemptError(f"timed out after {timeout_s:g} s", retry=True, maybe_billed=True) from None
    except aiohttp.ClientConnectorError as error:
        raise AttemptError(f"cannot connect to {error.host}: {error.strerror or 'refused'}", retry=True) from None
    except (aiohttp.ClientError, OSError) as error:
        what = f"the connection was cut: {type(error).__name__}"
        raise AttemptError(what, retry=True, maybe_billed=True) from None
    if not 200 <= status < 300:
        raise classify_status(status, text, headers)
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        failure = AttemptError("the response is not JSON, or was cut off", retry=True, maybe_billed=True)
        failure.answer = build_unusable_response(text)
        raise failure from None


async def _send_through_litellm(endpoint: Endpoint, request: Request, timeout_s: float) -> Any:
    import litellm

    litellm.suppress_debug_info = True
    # Without these the openai client retries on its own, and no limit sees it.
    where: dict[str, Any] = {"model": endpoint.model, "timeout": timeout_s, "num_retries": 0, "max_retries": 0}
    if endpoint.api_base:
        where["api_base"] = endpoint.api_base
    if endpoint.api_key:
        where["api_key"] = endpoint.api_key
    # A deep copy, since litellm changes some values in place, and requests share turns, tools and schema.
    params = copy.deepcopy(adapt_params(endpoint.model, request.build_body()))
    if "tools" in params:
        # Otherwise litellm looks for tools of its own gateway, with a package that is not installed.
        params["_skip_mcp_handler"] = True
    supported = litellm.get_supported_openai_params(endpoint.model)
    for name in ("seed", "response_format") if supported else ():
        # litellm would refuse the whole request. Samples still differ by temperature and draw, and the prompt contains
        # the schema as well.
        if name not in supported:
            params.pop(name, None)
    ask = litellm.acompletion if request.prompt is None else litellm.atext_completion
    if endpoint.model.startswith("text-completion-openai/"):
        where["client"] = _get_text_client(timeout_s)
    received: list[Any] = []
    where["logger_fn"] = lambda details: received.append(details.get("original_response"))
    try:
        async with asyncio.timeout(timeout_s + 1):
            raw = await ask(**params, **where)
    except TimeoutError:
        raise AttemptError(f"timed out after {timeout_s:g} s", retry=True, maybe_billed=True) from None
    except Exception as error:
        if (failed := find_http_error(error)) is not None:
            raise classify_status(*failed) from None
        if (body := _parse_received(received)) is not None:
            return body  # litellm cannot read it
        raise _classify_litellm_error(error) from None
    value = raw.model_dump()
    value["cost_usd"] = (getattr(raw, "_hidden_params", None) or {}).get("response_cost")
    if (body := _parse_received(received)) is not None and value.get("choices"):
        # litellm turns words that it does not know, and a missing one, into `stop`.
        word = find_finish_reason(body)
        if word is not None or "choices" in body:
            value["choices"][0]["finish_reason"] = word
    return value


def _parse_received(received: list[Any]) -> dict[str, Any] | None:
    """The body that the provider sent, as litellm logs it before reading it; None if it is no JSON object."""
    body: Any = received[-1] if received else None
    with suppress(ValueError, RecursionError, TypeError, AttributeError):
        body = json.loads(body) if isinstance(body, str | bytes) else body.model_dump(warnings=False)
    return body if isinstance(body, dict) else None


def _get_text_client(timeout_s: float) -> Any:
    """Return a client for text completions. Without one, litellm opens and leaks a connection per request."""
    key = id(asyncio.get_running_loop())
    if key not in _text_clients:
        import openai

        _text_clients[key] = openai.AsyncOpenAI(timeout=timeout_s, max_retries=0)
    return _text_clients[key]


def find_http_error(error: BaseException) -> tuple[int, str, dict[str, str]] | None:
    """The status, body and headers of the HTTP error behind an error of litellm; None if there was none.

    litellm chooses the type of its error by words in the message, which may repeat the prompt.
    """
    found = None
    cause: BaseException | None = error
    while cause is not None:
        response: Any = getattr(cause, "response", None)
        with suppress(Exception):  # a response that was not read, or one that litellm made up
            if response.status_code >= 400 and response.text:
                found = response.status_code, response.text, dict(response.headers)
        cause = cause.__cause__ or cause.__context__
    return found


def _classify_litellm_error(error: Exception) -> AttemptError | ContentFilterError:
    """What an error means that is not the provider's: litellm could not send the request, or not read the answer."""
    import litellm

    message, status = f"{type(error).__name__}: {error}", getattr(error, "status_code", None)
    if isinstance(error, litellm.exceptions.Timeout):
        return AttemptError(f"timed out: {message}", retry=True, maybe_billed=True)
    if isinstance(error, litellm.exceptions.APIConnectionError):
        return AttemptError(message, retry=True, maybe_billed=True)
    if isinstance(error, litellm.exceptions.ContentPolicyViolationError):
        return ContentFilterError(message)
    return classify_status(status, message) if isinstance(status, int) else AttemptError(message)


async def close_connections() -> None:
    """Close the connections of this event loop."""
    session = _sessions.pop(id(asyncio.get_running_loop()), None)
    if session is not None:
        await session.close()
    client = _text_clients.pop(id(asyncio.get_running_loop()), None)
    if client is not None:
        await client.close()
    if "litellm" in sys.modules:
        import litellm

        with suppress(Exception):
            await litellm.close_litellm_async_clients()
