"""Streamed chat completions: the chunks that a client gets, and what a student writes divided into their fields."""

from __future__ import annotations

import json
import time
from typing import Any

from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.serving.answering import ServedAnswer
from distill_dagster.serving.protocol import format_usage


class ChunkFormatter:
    """Formats the chunks of one streamed chat completion."""

    def __init__(self, id_: str, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{id_}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def format_delta(self, delta: dict[str, str], finish_reason: str | None = None, **extra: Any) -> bytes:
        """A chunk with a piece of the message."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._format(self._head | {"choices": [choice]} | extra)

    def format_usage(self, found: ServedAnswer) -> bytes:
        """The last chunk, for clients that ask for it."""
        return self._format(self._head | {"choices": [], "usage": format_usage([found])})

    @staticmethod
    def format_error(message: str) -> bytes:
        """A chunk that says why the stream ends early."""
        return ChunkFormatter._format({"error": {"message": message, "type": "server_error", "code": "unavailable"}})

    @staticmethod
    def _format(value: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class PieceReader:
    """Divides what a student writes, piece by piece, into reasoning and answer, without their marks."""

    def __init__(self) -> None:
        self._text, self._sent = "", {"reasoning_content": 0, "content": 0}

    def read(self, piece: str, is_last: bool = False) -> list[dict[str, str]]:
        """The deltas that this piece adds to the message."""
        self._text += piece
        text = self._text.lstrip()
        marks = (REASONING_MARK, ANSWER_MARK)
        if not is_last and any(mark.startswith(text) for mark in marks):
            return []  # perhaps the beginning of a mark
        if not text.startswith(REASONING_MARK):
            return self._cut("content", text.removeprefix(ANSWER_MARK).lstrip(), 0)
        reasoning, mark, answer = text.removeprefix(REASONING_MARK).partition(f"\n{ANSWER_MARK}")
        held = 0 if mark or is_last else len(ANSWER_MARK) + 1
        deltas = self._cut("reasoning_content", reasoning.lstrip(), held)
        return [*deltas, *(self._cut("content", answer.lstrip(), 0) if mark else [])]

    def _cut(self, field: str, text: str, held: int) -> list[dict[str, str]]:
        """What of a text was not sent yet, without the last `held` characters."""
        end = max(len(text) - held, self._sent[field])
        piece, self._sent[field] = text[self._sent[field] : end], end
        return [{field: piece}] if piece else []
