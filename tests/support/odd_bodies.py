"""Hypothesis strategies for bodies that providers did not mean to send: good bodies with parts changed at any depth."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

USAGE = {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46, "prompt_tokens_details": {"cached_tokens": 8}}
CALL = {"id": "c", "type": "function", "function": {"name": "find_order", "arguments": '{"number": 7}'}}
TOKEN = {
    "token": " refund",
    "logprob": -0.2,
    "bytes": None,
    "top_logprobs": [{"token": " refund", "logprob": -0.2}, {"token": " login", "logprob": -2.0}],
}
ERROR = {"message": "upstream failed", "type": "server_error", "code": 502, "metadata": {"raw": "no"}}


def _build_body(**choice: Any) -> dict[str, Any]:
    fields = {"index": 0, "finish_reason": "stop"} | choice
    return {"id": "r", "object": "o", "created": 1, "model": "m", "choices": [fields], "usage": USAGE}


def _build_chat(**message: Any) -> dict[str, Any]:
    return _build_body(message={"role": "assistant", "content": "refund"} | message, logprobs={"content": [TOKEN]})


CHAT = [
    _build_chat(),
    _build_chat(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "refund"}]),
    _build_chat(content=None, tool_calls=[CALL, CALL]),
    _build_chat(content=None, function_call=CALL["function"]),
    _build_chat(reasoning_content="hm", reasoning_details=[{"type": "reasoning.text", "text": "hm"}]),
    _build_chat(content=None, refusal="I cannot."),
    _build_chat() | {"error": ERROR, "choices": None},
    _build_body(message={"content": "ref"}, finish_reason="error", error=ERROR),
]
TEXT = [
    _build_body(
        text=" refund",
        logprobs={
            "tokens": [" refund", "\n"],
            "token_logprobs": [-0.2, 0.0],
            "top_logprobs": [{" refund": -0.2, " login": -2.0}, {"\n": 0.0}],
        },
    ),
    _build_body(text=" login", finish_reason="length"),
]

ODD_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            7,
            0.5,
            2**63,
            10**30,
            -(10**30),
            math.nan,
            math.inf,
            -math.inf,
            "",
            " ",
            "7",
            "null",
        ]
    )
    | st.sampled_from(["error", "SAFETY", "a \ud83d surrogate", "\u2028", "\x00", "x" * 5000, '{"a": 1}', "<think>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "name", "token", "message", "code"]), inner)
    ),
    max_leaves=6,
)


def _list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*place, name)
        yield from _list_places(part, (*place, name))


@st.composite
def make_odd_bodies(draw: st.DrawFn, bodies: list[dict[str, Any]]) -> Any:
    """A good body in which up to three parts are replaced, removed, wrapped in a list or written as text."""
    body = copy.deepcopy(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_list_places(body))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        parent = body
        for name in way:
            parent = parent[name]
        match draw(st.sampled_from(["replace", "remove", "wrap", "write"])):
            case "replace":
                parent[last] = draw(ODD_VALUES)
            case "remove":
                del parent[last]
            case "wrap":
                parent[last] = [parent[last]]
            case "write":
                parent[last] = str(parent[last])
    return draw(ODD_VALUES) if draw(st.integers(0, 30)) == 0 else body
