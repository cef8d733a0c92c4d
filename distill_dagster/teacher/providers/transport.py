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

from distill_dagster.teacher.providers.attempts import (
    AttemptError,
    ContentFilterError,
    classify_status,
    parse_retry_after,
)

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


async def send_request(endpoint: Endpoint, request: Request, timeout_s: float) -> dict[str, Any]:
    """Send a request once and return the body of the answer, in the form of OpenAI's protocol.

    Raises:
        AttemptError: no answer came; the error says whether to retry.
        ContentFilterError: the provider's content filter rejected the prompt.
    """
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


async def _send_direct(endpoint: Endpoint, request: Request, timeout_s: float) -> dict[str, Any]:
    import aiohttp

    assert endpoint.api_base is not None
    body = {"model": endpoint.model.split("/", 1)[1]} | request.build_body()
    url = endpoint.api_base.rstrip("/") + ("/completions" if request.prompt is not None else "/chat/completions")
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        async with (
            asyncio.timeout(timeout_s),
            _get_session().post(
                url, data=json.dumps(body), headers=headers | {"Content-Type": "application/json"}
            ) as got,
        ):
            text = (await got.read()).decode("utf-8", "replace")
            status, wait = got.status, got.headers.get("Retry-After")
    except TimeoutError:
        raise AttemptError(f"timed out after {timeout_s:g} s", retry=True, maybe_billed=True) from None
    except aiohttp.ClientConnectorError as error:
        raise AttemptError(f"cannot connect to {error.host}: {error.strerror or 'refused'}", retry=True) from None
    except (aiohttp.ClientError, OSError) as error:
        what = f"the connection was cut: {type(error).__name__}"
        raise AttemptError(what, retry=True, maybe_billed=True) from None
    if status != 200:
        raise classify_status(status, text, wait)
    try:
        value = json.loads(text)
    except ValueError:
        raise AttemptError("the response is not JSON, or was cut off", retry=True, maybe_billed=True) from None
    if not isinstance(value, dict):
        raise AttemptError("the response contains no answer", retry=True, maybe_billed=True)
    return value


async def _send_through_litellm(endpoint: Endpoint, request: Request, timeout_s: float) -> dict[str, Any]:
    import litellm

    litellm.suppress_debug_info = True
    # Without these the openai client retries on its own, and no limit sees it.
    where: dict[str, Any] = {"model": endpoint.model, "timeout": timeout_s, "num_retries": 0, "max_retries": 0}
    if endpoint.api_base:
        where["api_base"] = endpoint.api_base
    if endpoint.api_key:
        where["api_key"] = endpoint.api_key
    # A deep copy, since litellm changes some values in place, and requests share turns, tools and schema.
    params = copy.deepcopy(request.build_body())
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
    try:
        async with asyncio.timeout(timeout_s + 1):
            raw = await ask(**params, **where)
    except TimeoutError:
        raise AttemptError(f"timed out after {timeout_s:g} s", retry=True, maybe_billed=True) from None
    except litellm.exceptions.ContentPolicyViolationError as error:
        raise ContentFilterError(str(error)) from None
    except Exception as error:
        raise _classify_litellm_error(error) from None
    value = raw.model_dump()
    value["cost_usd"] = (getattr(raw, "_hidden_params", None) or {}).get("response_cost")
    return value


def _get_text_client(timeout_s: float) -> Any:
    """Return a client for text completions. Without one, litellm opens and leaks a connection per request."""
    key = id(asyncio.get_running_loop())
    if key not in _text_clients:
        import openai

        _text_clients[key] = openai.AsyncOpenAI(timeout=timeout_s, max_retries=0)
    return _text_clients[key]


def _classify_litellm_error(error: Exception) -> AttemptError | ContentFilterError:
    import litellm

    message, status = f"{type(error).__name__}: {error}", getattr(error, "status_code", None)
    if isinstance(error, litellm.exceptions.Timeout):
        return AttemptError(f"timed out: {message}", retry=True, maybe_billed=True)
    if isinstance(error, litellm.exceptions.APIConnectionError):
        return AttemptError(message, retry=True, maybe_billed=True)
    if not isinstance(status, int):
        return AttemptError(message)
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    wait = headers.get("retry-after") if hasattr(headers, "get") else None
    found = classify_status(status, message, wait)
    if isinstance(found, AttemptError):
        found.wait_s = parse_retry_after(wait)
    return found


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
