"""The files that OpenAI's batch API takes: one request per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from distill_dagster.config import TeacherSpec
from distill_dagster.teacher.providers.capabilities import adapt_params
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request

MAX_BATCH_BYTES = 100 * 1024 * 1024
"""Limit of one batch: half of the bytes that OpenAI accepts."""

_ESCAPED = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""Line separators of Unicode, which JSON allows in texts. Some gateways would split a line there."""


def get_batch_url(spec: TeacherSpec) -> str:
    """The API that the requests of a batch go to."""
    return "/v1/completions" if spec.api == "text" else "/v1/chat/completions"


def build_request_line(endpoint: Endpoint, spec: TeacherSpec, request: Request) -> str:
    """One line of a batch file: the request as the provider's own API takes it."""
    import litellm

    model = litellm.get_llm_provider(spec.model)[0]
    body: dict[str, Any] = {"model": model} | adapt_params(endpoint.model, request.build_body())
    if "seed" not in (litellm.get_supported_openai_params(endpoint.model) or ["seed"]):
        body.pop("seed", None)
    line = {"custom_id": request.key, "method": "POST", "url": get_batch_url(spec), "body": body}
    return json.dumps(line, ensure_ascii=False).translate(_ESCAPED)


def split_into_batches(lines: Mapping[str, str], most: int) -> Iterator[dict[str, str]]:
    """Split request lines, by request_key, into parts of at most `most` that fit into one batch each."""
    part, size = dict[str, str](), 0
    for key, line in lines.items():
        length = len(line.encode()) + 1
        if part and (len(part) == most or size + length > MAX_BATCH_BYTES):
            yield part
            part, size = {}, 0
        part[key] = line
        size += length
    if part:
        yield part
