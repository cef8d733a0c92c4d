"""One door to every teacher: a request in, a `Response` out, through litellm."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from distill_dagster.errors import TeacherError
from distill_dagster.hashing import content_hash
from distill_dagster.spec import TeacherSpec
from distill_dagster.teacher.softlabels import Position
from distill_dagster.teacher.store import Response

if TYPE_CHECKING:
    from distill_dagster.teacher.recorded import Recorded

# litellm otherwise asks the network for its price list at import.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


NO_KEY = "no-key"
"""Sent to servers that want no key: the client refuses to send nothing."""
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)(_|$)")


@dataclass(frozen=True)
class Request:
    """One thing to ask. Exactly one of `prompt` (text API) and `messages` (chat API) is set."""

    identity: str
    sample_index: int
    params: dict[str, Any]
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """request_key: all that shapes the answer, and nothing of where, when or for whom it is asked."""
        asked: dict[str, Any] = {"prompt": self.prompt, "messages": self.messages}
        asked |= {"tools": self.tools, "response_format": self.response_format}
        return content_hash(asked | {"teacher": self.identity, "params": self.params, "sample": self.sample_index})


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is asked: a litellm model id, and an address and key where they are not the provider's own."""

    model: str
    identity: str
    api_base: str | None = None
    api_key: str | None = None
    recorded: Recorded | None = None
    """What answers in place of a server, for a replay teacher."""

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r}, {self.identity!r}, api_base={self.api_base!r})"


def endpoint_of(spec: TeacherSpec) -> Endpoint:
    """The endpoint of a teacher that is not embedded; its key comes from the environment variable named in the spec.

    Without such a name an OpenAI-compatible server at an address of the user's own gets no key at all: not the one in
    OPENAI_API_KEY, which is meant for somebody else. Every provider's own address gets the provider's own variable.

    Raises:
        TeacherError: the variable is not set.
    """
    key = None
    if spec.api_key_env:
        key = os.environ.get(spec.api_key_env)
        if not key:
            raise TeacherError(
                f"The teacher {spec.model} wants its key in the environment variable {spec.api_key_env}, which is "
                f"not set. Set it, or mend teacher.api_key_env in task.yaml."
            )
    elif spec.model.startswith(("openai/", "text-completion-openai/")):
        if spec.api_base:
            key = NO_KEY
        elif not os.environ.get("OPENAI_API_KEY"):
            raise TeacherError(
                f"The teacher {spec.model} wants its key in the environment variable OPENAI_API_KEY, which is not set. "
                f"Set it, or name another with teacher.api_key_env, or an address with teacher.api_base, in task.yaml."
            )
    model = spec.model
    if spec.api == "text" and model.startswith("openai/"):
        model = "text-completion-" + model
    return Endpoint(model, content_hash(spec.identity()), spec.api_base, key)


class Client:
    """Asks one endpoint. Retries what is worth a retry, with jitter; a permanent failure stops at once."""

    def __init__(self, endpoint: Endpoint, spec: TeacherSpec) -> None:
        self._endpoint, self._spec = endpoint, spec
        self.in_flight = 0
        self.calls = 0
        self._text_client: Any = None

    async def close(self) -> None:
        """Close the connections. They belong to the event loop that asked."""
        if self._text_client is not None:
            await self._text_client.close()
            self._text_client = None

    async def ask(self, request: Request) -> Response:
        """Ask once, with retries.

        Raises:
            TeacherError: the answer did not come; `permanent` tells whether asking for other rows is pointless too.
        """
        import litellm
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        transient = (
            litellm.exceptions.RateLimitError,
            litellm.exceptions.Timeout,
            litellm.exceptions.APIConnectionError,
            litellm.exceptions.ServiceUnavailableError,
            litellm.exceptions.InternalServerError,
            _NoAnswerError,
        )
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(transient),
            stop=stop_after_attempt(self._spec.max_retries + 1),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            reraise=True,
        )
        self.in_flight += 1
        try:
            return await retrying(self._once, request)
        except (litellm.exceptions.AuthenticationError, litellm.exceptions.NotFoundError) as error:
            raise PermanentTeacherError(self._scrubbed(error)) from None
        except Exception as error:
            raise TeacherError(self._scrubbed(error)) from None
        finally:
            self.in_flight -= 1

    async def _once(self, request: Request) -> Response:
        import litellm

        litellm.suppress_debug_info = True
        self.calls += 1
        where: dict[str, Any] = {"model": self._endpoint.model, "timeout": self._spec.timeout_s, "num_retries": 0}
        # The openai client would retry by itself beneath our own retries, unseen by any limit.
        where["max_retries"] = 0
        if self._endpoint.api_base:
            where["api_base"] = self._endpoint.api_base
        if self._endpoint.api_key:
            where["api_key"] = self._endpoint.api_key
        started, in_flight = time.perf_counter(), self.in_flight
        params = dict(request.params)
        if "seed" not in (litellm.get_supported_openai_params(self._endpoint.model) or ["seed"]):
            # Samples still differ by temperature and draw; litellm would refuse the whole request.
            params.pop("seed", None)
        if request.tools is not None:
            params["tools"] = request.tools
        if request.response_format is not None:
            params["response_format"] = request.response_format
        if request.messages is not None:
            raw = await litellm.acompletion(messages=request.messages, **params, **where)
        else:
            if self._endpoint.model.startswith("text-completion-openai/"):
                where["client"] = self._shared_text_client()
            raw = await litellm.atext_completion(prompt=request.prompt, **params, **where)
        latency = time.perf_counter() - started
        if not raw.choices or (request.messages is None and raw.choices[0].text is None):
            # litellm makes a choice without a text of a body that holds none, such as a proxy's `{}`.
            raise _NoAnswerError("the body holds no answer")
        return response_from(raw, latency, in_flight)

    def _shared_text_client(self) -> Any:
        """litellm opens, and leaks, a connection for each text completion unless it is handed a client."""
        if self._text_client is None:
            import openai

            self._text_client = openai.AsyncOpenAI(
                api_key=self._endpoint.api_key,
                base_url=self._endpoint.api_base,
                timeout=self._spec.timeout_s,
                max_retries=0,
            )
        return self._text_client

    def _scrubbed(self, error: Exception) -> str:
        """The error in words, without any secret: providers echo keys, also those that litellm found by itself."""
        return scrubbed(f"{type(error).__name__}: {error}", self._endpoint.api_key)


def scrubbed(text: str, api_key: str | None) -> str:
    """A message for people without any secret, and not too long."""
    found = {v for name, v in os.environ.items() if _SECRET_NAME.search(name) and len(v) >= 8}
    for secret in sorted(found | {api_key or ""}, key=len, reverse=True):
        if secret:
            text = text.replace(secret, "***")
    return text[:500]


class _NoAnswerError(Exception):
    """A response that came, but is none."""


class PermanentTeacherError(TeacherError):
    """No request to this teacher can succeed (key refused, model unknown): the others are not sent."""


def response_from(raw: Any, latency: float, in_flight: int) -> Response:
    choice = raw.choices[0]
    message = getattr(choice, "message", None)
    usage = getattr(raw, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    declined = _declined(message)
    return Response(
        text=_clean((message.content if message is not None else choice.text) or declined or ""),
        finish_reason="refusal" if declined else choice.finish_reason,
        positions=_positions(getattr(choice, "logprobs", None)),
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
        cached_tokens=getattr(details, "cached_tokens", None),
        cost_usd=_cost(raw),
        latency_s=latency,
        in_flight=in_flight,
        model_reported=getattr(raw, "model", None),
        received_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        reasoning=_clean(reasoning) if (reasoning := getattr(message, "reasoning_content", None)) else None,
        tool_calls=_tool_calls(message),
    )


def _declined(message: Any) -> str | None:
    """The words in which a model declined, where the provider gives them a field of their own (OpenAI)."""
    found = getattr(message, "refusal", None) or (getattr(message, "provider_specific_fields", None) or {}).get(
        "refusal"
    )
    return str(found) if found and not message.content else None


def _tool_calls(message: Any) -> list[dict[str, Any]] | None:
    """The calls of a message by name and arguments, these as the JSON text that came."""
    calls = getattr(message, "tool_calls", None) or []
    return [{"name": c.function.name, "arguments": _clean(c.function.arguments or "{}")} for c in calls] or None


def _clean(text: str) -> str:
    """Half of a surrogate pair, which a model may stop in the middle of, can be neither stored nor written."""
    return text.encode("utf-8", "replace").decode()


def _cost(raw: Any) -> float | None:
    """USD where litellm knows the price, else None: never a guess, and never 0 for an unknown price."""
    cost = (getattr(raw, "_hidden_params", None) or {}).get("response_cost")
    return float(cost) if cost else None


def _positions(logprobs: Any) -> list[Position]:
    """Both shapes of log-probabilities: chat (`content`), and OpenAI's older one (`tokens`, `top_logprobs`)."""
    if logprobs is None:
        return []
    read = logprobs.get if isinstance(logprobs, dict) else lambda name: getattr(logprobs, name, None)
    positions: list[Position] = []
    for entry in read("content") or []:
        get = entry.get if isinstance(entry, dict) else lambda name, entry=entry: getattr(entry, name, None)
        if probs := get("top_probs"):  # llama.cpp behind its samplers
            top = [(t["token"], _log(t["prob"])) for t in probs]
            positions.append(_taken_first((str(get("token")), _log(get("prob") or 0.0)), top))
            continue
        top = [
            (t["token"], t["logprob"]) if isinstance(t, dict) else (t.token, t.logprob)
            for t in get("top_logprobs") or []
        ]
        positions.append(_taken_first((str(get("token")), get("logprob") or 0.0), top))
    if positions:
        return positions
    tokens, values, tops = read("tokens") or [], read("token_logprobs") or [], read("top_logprobs") or []
    for token, value, top in zip(tokens, values, tops, strict=False):
        positions.append(_taken_first((token, value), list((top or {}).items())))
    return positions


def _log(probability: float) -> float:
    """Natural logarithm; 0, which is what single precision makes of less than 1e-45, stays finite."""
    return math.log(max(probability, 1e-45))


def _taken_first(taken: tuple[str, float], top: list[tuple[str, float]]) -> Position:
    return [(_clean(taken[0]), float(taken[1])), *((_clean(t), float(lp)) for t, lp in top if t != taken[0])]
