"""The result files of OpenAI's batch API: one answer or error per line, and what each request of a batch came to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from distill_dagster.config import TeacherSpec
from distill_dagster.core import redaction
from distill_dagster.core.formatting import count_noun
from distill_dagster.teacher.providers.attempts import (
    AttemptError,
    ContentFilterError,
    classify_error,
    classify_status,
)
from distill_dagster.teacher.providers.body_parts import read_count, to_dict
from distill_dagster.teacher.providers.error_bodies import find_error
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.prices import TokenPrice
from distill_dagster.teacher.providers.responses import (
    build_filtered_response,
    build_unusable_response,
    parse_response,
    redact_response,
)

_CUSTOM_ID = re.compile(r'"custom_id"\s*:\s*"([0-9a-f]{64})"')
"""The request_key in a line that is not JSON, for example because it was cut."""


@dataclass(frozen=True)
class ResultLine:
    """One line of a batch's result: the answer to a request, or the reason why there is none.

    Attributes:
        key: the request_key, or None if the line does not say which request it answers.
        response: what came. With an `error` it is not an answer, and says only what was used.
        error: why there is no answer, or an empty text.
        billed: the provider has worked on the request and bills it, whether its answer can be used or not.
    """

    key: str | None
    response: Response | None
    error: str = ""
    billed: bool = False


def parse_result_lines(content: bytes, spec: TeacherSpec) -> Iterator[ResultLine]:
    """Parse a result file. Every line that is not empty gives a result, whatever it contains.

    Lines end at line feeds alone: an answer may contain other line separators, such as U+2028.
    """
    for number, raw in enumerate(content.split(b"\n"), start=1):
        text = raw.decode("utf-8", "replace").strip().removeprefix("\ufeff")
        if not text:
            continue
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            found = _CUSTOM_ID.search(text)
            yield _build_unreadable(found.group(1) if found else None, number, f"it is not JSON: {error}", text)
            continue
        for line in value if isinstance(value, list) else [value]:
            yield _read_line(line, number, text, spec)


def _build_unreadable(key: str | None, number: int, why: str, text: str) -> ResultLine:
    reason = f"line {number} of the batch's result cannot be read ({why}); it counts as billed"
    answer = redact_response(build_unusable_response(text), redaction.list_credentials())
    return ResultLine(key, answer, reason, billed=True)


def _read_line(value: Any, number: int, text: str, spec: TeacherSpec) -> ResultLine:
    line = to_dict(value)
    key = str(line["custom_id"]).strip() if line.get("custom_id") else None
    response = to_dict(line.get("response"))
    body, status = response.get("body"), read_count(response.get("status_code")) or 0
    if isinstance(body, str):  # some gateways send the body as text
        with suppress(ValueError, RecursionError):
            body = json.loads(body)
    if status >= 300:
        told = body if body is not None else line.get("error")  # vLLM's runner puts the reason there
        return _build_failed(key, classify_status(status, told if isinstance(told, str) else json.dumps(told)), spec)
    error = find_error({"error": line.get("error")}, has_answer=True)
    if error is not None and not to_dict(body).get("choices"):
        # The provider did not work on the request, for example because the batch expired.
        found = classify_error(error.status, error)
        return _build_failed(key, found if isinstance(found, ContentFilterError) else AttemptError(error.message), spec)
    if body is None:
        return _build_unreadable(key, number, "it has neither an answer nor an error", text)
    try:
        answer = _price(parse_response(body, 0.0, 0, logprobs=spec.soft_labels == "logprobs"), spec)
    except (AttemptError, ContentFilterError) as failure:
        return _build_failed(key, failure, spec)
    declined = answer.finish_reason in ("refusal", "content_filter")
    if spec.soft_labels == "logprobs" and answer.text and not answer.positions and not declined:
        why = "the answer has no token log-probabilities; set `soft_labels: votes` in task.yaml"
        return ResultLine(key, answer, why, billed=True)
    return ResultLine(key, answer, billed=True)


def _build_failed(key: str | None, failure: AttemptError | ContentFilterError, spec: TeacherSpec) -> ResultLine:
    """The line of a request without an answer, with the reason that an online request would give."""
    if isinstance(failure, ContentFilterError):
        return ResultLine(key, replace(build_filtered_response(str(failure)), mode="batch"))
    answer = _price(failure.answer, spec) if failure.answer is not None else None
    return ResultLine(key, answer, str(failure), failure.maybe_billed)


def _price(response: Response, spec: TeacherSpec) -> Response:
    """The response without secrets, and with its cost by the price of batches."""
    cost = compute_batch_cost(spec, response.prompt_tokens, response.completion_tokens)
    return replace(redact_response(response, redaction.list_credentials()), cost_usd=cost, mode="batch")


def assign_lines(
    keys: Sequence[str], lines: Iterable[ResultLine], missing: str, answered: int
) -> dict[str, ResultLine]:
    """The result of each request of a batch. An answer counts more than an error for the same request.

    What was billed is counted, even if it cannot be said for which request: as many requests without a line count as
    billed as there are lines that name no request of the batch, and answers that the provider counts but did not send.

    Args:
        keys: the requests of the batch.
        missing: the reason for requests that no line mentions.
        answered: how many requests the provider says it answered.
    """
    known, results, billed = set(keys), dict[str, ResultLine](), list[ResultLine]()
    for line in sorted(lines, key=lambda line: bool(line.error)):
        if line.key in known:
            results.setdefault(str(line.key), line)
        elif line.billed:
            billed.append(line if line.error else replace(line, error=f"{line.key!r} names no request of the batch"))
    unsent = answered - sum(line.billed for line in [*results.values(), *billed])
    reason = f"the provider counts {count_noun(answered, 'answer')} and sent fewer; this request counts as billed"
    billed += [ResultLine(None, None, reason, billed=True)] * unsent
    for key in keys:
        if key not in results:
            results[key] = billed.pop(0) if billed else ResultLine(key, None, missing)
    return results


def compute_batch_cost(spec: TeacherSpec, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """USD by the declared price, else by litellm's list of batch prices. None if neither is known; it never guesses."""
    import litellm

    model = spec.model
    if spec.price is not None and prompt_tokens is not None and completion_tokens is not None:
        return TokenPrice(spec.price.input_usd, spec.price.output_usd).compute_cost(prompt_tokens, completion_tokens)
    entry = litellm.model_cost.get(model) or litellm.model_cost.get(model.partition("/")[2]) or {}
    prices = entry.get("input_cost_per_token_batches"), entry.get("output_cost_per_token_batches")
    if prompt_tokens is None or completion_tokens is None or prices[0] is None or prices[1] is None:
        return None
    return prompt_tokens * float(prices[0]) + completion_tokens * float(prices[1])
