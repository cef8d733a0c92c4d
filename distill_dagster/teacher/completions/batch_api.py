"""Call the batch API of a provider through litellm, with the teacher's address and key, retries and bounded waits."""

from __future__ import annotations

import logging
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.teacher.providers.attempts import AttemptError, TeacherPausedError, classify_status
from distill_dagster.teacher.providers.client import Endpoint, redact_error
from distill_dagster.teacher.providers.rate_limits import MAX_WAIT_S
from distill_dagster.teacher.providers.transport import find_http_error

BATCH_PROVIDERS = ("openai", "azure", "hosted_vllm", "litellm_proxy")
"""Providers with OpenAI's batch API whose batches litellm can also list. Surviving a kill needs the list."""
_compute_backoff = wait_random_exponential(multiplier=0.5, max=30)


class NotAtProviderError(TeacherError):
    """The provider does not know a batch or a file: it deleted it, or it belongs to another account."""


def get_batch_provider(spec: TeacherSpec) -> str:
    """The teacher's provider, as litellm calls it.

    Raises:
        TeacherError: it has no batch API that litellm supports.
    """
    import litellm

    try:
        provider = str(litellm.get_llm_provider(spec.model)[1])
    except Exception:
        provider = spec.model.partition("/")[0]
    if provider not in BATCH_PROVIDERS:
        raise TeacherError(
            f"There is no batch API for {spec.model}: batch mode is for {', '.join(BATCH_PROVIDERS)}. Set "
            f"`mode: online` in task.yaml."
        )
    return provider


async def call_batch_api(endpoint: Endpoint, spec: TeacherSpec, call: Any, /, **arguments: Any) -> Any:
    """Call litellm with the teacher's address and key, and retry if the provider is overloaded.

    Raises:
        TeacherPausedError: the provider asks to wait longer than requests wait.
        NotAtProviderError: the provider does not know the batch or the file.
        TeacherError: the call failed for another reason. No message contains a key.
    """
    import litellm

    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)  # it reads the lines too, and warns of each odd one
    target: dict[str, Any] = {"custom_llm_provider": get_batch_provider(spec), "timeout": spec.timeout_s}
    target["max_retries"] = 0
    if endpoint.api_base:
        target["api_base"] = endpoint.api_base
    if endpoint.api_key:
        target["api_key"] = endpoint.api_key
    # Do not retry the creation of a batch: a cut connection may have created it. `_submit` looks for it.
    attempts = 1 if call is litellm.acreate_batch else spec.max_retries + 1
    retrying = AsyncRetrying(
        retry=retry_if_exception(_is_retryable),
        stop=stop_after_attempt(attempts),
        wait=_compute_wait,
        reraise=True,
    )
    try:
        return await retrying(call, **arguments, **target)
    except Exception as error:
        reason = redact_error(f"{type(error).__name__}: {error}", endpoint)
        if (wait_s := _find_wait(error)) is not None and wait_s > MAX_WAIT_S:
            raise TeacherPausedError(spec.model, wait_s, reason) from None
        failure = NotAtProviderError if getattr(error, "status_code", None) == 404 else TeacherError
        raise failure(f"The batch API of {spec.model}: {reason}") from None


def _is_retryable(error: BaseException) -> bool:
    if (_find_wait(error) or 0.0) > MAX_WAIT_S:
        return False
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 409, 429) or int(status) >= 500


def _find_wait(error: BaseException | None) -> float | None:
    """The seconds that the provider asks to wait, or None."""
    found = find_http_error(error) if error is not None else None
    failure = classify_status(*found) if found is not None else None
    return failure.wait_s if isinstance(failure, AttemptError) and failure.retry else None


def _compute_wait(state: RetryCallState) -> float:
    """Seconds: a random wait that grows with each attempt, but at least as long as the provider asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(_compute_backoff(state), _find_wait(error) or 0.0)
