"""The files of OpenAI's batch API: one request per line in, one answer or error per line out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distill_dagster.config import TeacherSpec
from distill_dagster.core import redaction
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.prices import TokenPrice
from distill_dagster.teacher.providers.responses import parse_response, redact_response

MAX_BATCH_REQUESTS, MAX_BATCH_BYTES = 50_000, 100 * 1024 * 1024
"""Limits of one batch: as many requests as OpenAI accepts, and half of the bytes."""


@dataclass(frozen=True)
class ResultLine:
    """One line of a batch's result: the answer to a request, or the reason why there is none."""

    key: str
    response: Response | None
    error: str


def get_batch_url(spec: TeacherSpec) -> str:
    """The API that the requests of a batch go to."""
    return "/v1/completions" if spec.api == "text" else "/v1/chat/completions"


def build_request_line(endpoint: Endpoint, spec: TeacherSpec, request: Request) -> str:
    """One line of a batch file: the request as the provider's own API takes it."""
    import litellm

    model = litellm.get_llm_provider(spec.model)[0]
    body: dict[str, Any] = {"model": model} | request.build_body()
    if "seed" not in (litellm.get_supported_openai_params(endpoint.model) or ["seed"]):
        body.pop("seed", None)
    line = {"custom_id": request.key, "method": "POST", "url": get_batch_url(spec), "body": body}
    return json.dumps(line, ensure_ascii=False)


def split_into_batches(lines: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Split request lines, by request_key, into parts that fit into one batch each."""
    part, size = dict[str, str](), 0
    for key, line in lines.items():
        length = len(line.encode()) + 1
        if part and (len(part) == MAX_BATCH_REQUESTS or size + length > MAX_BATCH_BYTES):
            yield part
            part, size = {}, 0
        part[key] = line
        size += length
    if part:
        yield part


def parse_result_lines(content: bytes, spec: TeacherSpec) -> Iterator[ResultLine]:
    """Parse a result file. Skips unreadable lines; their requests count as not answered."""
    for text in content.decode("utf-8", "replace").splitlines():
        if not text.strip():
            continue
        try:
            value = json.loads(text)
            key, response = str(value["custom_id"]), value.get("response") or {}
            body, status = response.get("body") or {}, int(response.get("status_code") or 0)
            error = value.get("error") or body.get("error")
            if error or status != 200:
                message = error.get("message") or error.get("code") if isinstance(error, dict) else error
                yield ResultLine(key, None, f"{message or 'no reason was given'} (status {status})")
            else:
                yield _parse_answer(key, body, spec)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            continue


def _parse_answer(key: str, body: dict[str, Any], spec: TeacherSpec) -> ResultLine:
    response = redact_response(parse_response(body, 0.0, 0), redaction.list_credentials())
    cost = compute_batch_cost(spec, response.prompt_tokens, response.completion_tokens)
    response = replace(response, cost_usd=cost, mode="batch")
    if spec.soft_labels == "logprobs" and response.text and not response.positions:
        return ResultLine(key, None, "the answer has no token log-probabilities; set `soft_labels: votes` in task.yaml")
    return ResultLine(key, response, "")


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
