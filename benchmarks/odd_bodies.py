"""Bodies that providers send in place of a plain answer, for the benchmark's server. Each has a public bug report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
HUGE = 10**30
Body = dict[str, Any]


def chat(content: Any, finish: Any = "stop", **message: Any) -> Body:
    """Return the body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "slow", "choices": [choice], "usage": USAGE}


READABLE: dict[str, Callable[[str], Body]] = {
    "content in parts": lambda label: chat([{"type": "text", "text": label[:2]}, {"type": "text", "text": label[2:]}]),
    "thinking in a part": lambda label: chat([{"type": "thinking", "thinking": "?"}, {"type": "text", "text": label}]),
    "thinking in tags": lambda label: chat(f"<think>login, or billing?</think>\n{label}"),
    "thinking in other tags": lambda label: chat(f"<reasoning>delivery?</reasoning>{label}"),
    "thinking in a field": lambda label: chat(label, reasoning_content="refund\u2028or not"),
    "null fields": lambda label: chat(label, tool_calls=None, function_call=None, refusal=None, reasoning_content=None)
    | {"system_fingerprint": None, "error": None},
    "numbers as text": lambda label: chat(label)
    | {"created": "1700000000000", "usage": {name: str(count) for name, count in USAGE.items()}},
    "integers beyond 64 bits": lambda label: chat(label)
    | {"created": HUGE, "usage": USAGE | {"prompt_tokens_details": {"cached_tokens": HUGE}}},
    "wrong types": lambda label: chat(label, tool_calls="none") | {"id": 7, "model": ["slow"], "created": []},
    "an empty error": lambda label: chat(label) | {"error": {}},
}  # fmt: skip
"""Bodies with an answer that a careful client finds, by the name of their fault."""

UNREADABLE: dict[str, Callable[[str], Any]] = {
    "no choices": lambda label: chat(label) | {"choices": []},
    "null choices": lambda label: chat(label) | {"choices": None},
    "choices of numbers": lambda label: chat(label) | {"choices": [1, 2]},
    "a list": lambda label: [chat(label)["choices"][0]["message"]["role"]],
    "null": lambda label: None,
    "a number as content": lambda label: chat(17),
    "an error in a 200": lambda label: {"error": {"message": f"upstream failed on {label}", "code": 502}},
    "broken off: error": lambda label: chat(label[:3], "error"),
    "broken off: unknown": lambda label: chat(label[:3], "MALFORMED_FUNCTION_CALL"),
    "broken off: length": lambda label: chat("<think>is it refund or", "length"),
}
"""Bodies without a whole answer. Those with a usage were paid for."""


def build_odd_body(kind: str, label: str) -> str:
    """Return the text of an odd body."""
    return json.dumps((READABLE | UNREADABLE)[kind](label))


NAMELESS = "line that names no request"
LINES: dict[str, Callable[[str], str]] = {
    "U+2028 in a line": lambda line: line,
    "line cut in the middle": lambda line: line[: len(line) // 2],
    NAMELESS: lambda line: line.replace('"custom_id"', '"id"', 1),
    "no line": lambda line: "",
}
"""What becomes of a line of a batch's result; the first keeps it whole, with line separators of Unicode in it."""
