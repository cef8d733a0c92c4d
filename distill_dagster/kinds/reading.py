"""Read the reasoning and the answer from the text of a model, or say why there is no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_text import find_json
from distill_dagster.core.patterns import find_last_group
from distill_dagster.kinds.base import REASONING_MARK, InvalidAnswerError, Kind, Question
from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal, is_refusal_text, make_refusal

_TAGS = ("think", "thinking", "thought", "reasoning", "scratchpad")
_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*\n?")
_ANSWER_LINE = re.compile(r"^[ \t]*(?:\*\*)?answer(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*", re.I | re.M)


@dataclass(frozen=True)
class ParsedAnswer:
    """What was read from one response.

    `status` is ok, refused or truncated. `answer` is canonical JSON text. `error` says why a response has no answer.
    """

    status: str
    answer: str | None = None
    reasoning: str | None = None
    error: str | None = None


def read_answer(
    kind: Kind,
    text: str,
    question: Question,
    *,
    finish_reason: str | None = None,
    reasoning_content: str | None = None,
    tool_calls: list[dict[str, Any]] | None = None,
    stop: str | None = None,
) -> ParsedAnswer:
    """Read one response.

    Reasoning comes from a provider's `reasoning_content` or from tags such as <think>. Otherwise it comes from the
    `reasoning` field of a structured answer, or from the text before `Answer:` or before the match of `answer.pattern`.
    If a refusal is wanted, a refusal is the answer, and anything else is an error.

    Args:
        finish_reason: the provider's; "length" means that the text was cut, "refusal" that the model declined.
        tool_calls: the provider's; an empty list if tools were offered and none was called.
        stop: cut the text here first, since a raw completion may continue. The task's `answer.stop` always applies.
    """
    spec = kind.task.answer
    cut = finish_reason == "length"
    for end in (stop, spec.stop):
        if end and end in text:  # the answer is complete; only what follows it was cut
            text, cut = text.split(end, 1)[0], False
    tagged, rest, open_tag = _split_reasoning_tags(text)
    notes = [part for part in (reasoning_content, tagged) if part and part.strip()]
    declined = finish_reason == "refusal"
    found = _FoundAnswer(None)
    if not declined and not (open_tag and not rest):
        found = _find_answer(kind, rest) if tool_calls is None else _FoundAnswer(tool_calls, rest, complete=True)
        notes += [found.reasoning] if found.reasoning and found.reasoning.strip() and not notes else []
    reasoning = "\n\n".join(note.strip() for note in notes) or None
    words = rest.strip()
    value = found.value
    if declined or _is_refused_answer(value, words):
        stated = value[REFUSAL_KEY] if isinstance(value, dict) else value
        refusal = (stated if isinstance(stated, str) else "").strip() or words or "(no words)"
        if question.refusal_wanted:
            return ParsedAnswer("ok", to_canonical_json(make_refusal(refusal)), reasoning)
        return ParsedAnswer("refused", None, reasoning, f"the teacher refused: {refusal[:200]}")
    if question.refusal_wanted:
        return ParsedAnswer("ok", None, reasoning, "a refusal is wanted in this slice, and the teacher answered")
    if cut and not found.complete:
        return ParsedAnswer("truncated", None, reasoning, "the answer was cut at max_tokens")
    try:
        if value is None:
            raise InvalidAnswerError("no answer was found in the text")
        return ParsedAnswer("ok", to_canonical_json(kind.canonicalize(value, question)), reasoning)
    except InvalidAnswerError as why:
        return ParsedAnswer("truncated" if cut else "ok", None, reasoning, str(why))


def _is_refused_answer(value: Any, words: str) -> bool:
    if is_refusal(value) or (isinstance(value, str) and is_refusal_text(value)):
        return True
    # A number or an object is an answer, even after an apology.
    return (value is None or value == [] or isinstance(value, str)) and is_refusal_text(words)


def _split_reasoning_tags(text: str) -> tuple[str | None, str, bool]:
    """Return the content of reasoning tags, the text without them, and whether a tag was never closed."""
    inside: list[str] = []
    open_tag = False
    for tag in _TAGS:
        start, end = f"<{tag}>", f"</{tag}>"
        while True:
            lower = text.lower()
            close = lower.find(end)
            begin = lower.find(start)
            if close >= 0 and (begin < 0 or begin > close):  # the chat template wrote the opening tag
                inside.append(text[:close])
                text = text[close + len(end) :]
            elif begin >= 0 and close >= 0:
                inside.append(text[begin + len(start) : close])
                text = text[:begin] + text[close + len(end) :]
            elif begin >= 0:
                inside.append(text[begin + len(start) :])
                text, open_tag = text[:begin], True
            else:
                break
    if not inside and not open_tag:
        return None, text, False
    # Models that use reasoning tags put the answer into <answer>…</answer>.
    lower = text.lower()
    begin, close = lower.find("<answer>"), lower.find("</answer>")
    if 0 <= begin < close:
        text = text[begin + len("<answer>") : close]
    return "\n\n".join(part.strip() for part in inside), text.strip(), open_tag


@dataclass(frozen=True)
class _FoundAnswer:
    """The answer as written in a response, or None; the reasoning written with it; whether the answer is complete."""

    value: Any
    reasoning: str | None = None
    complete: bool = False


def _is_whole_answer(kind: Kind, value: dict[str, Any]) -> bool:
    """Whether an object is itself an extracted answer: its schema may have a field named `answer`."""
    if kind.answer_kind != "object":
        return False
    try:
        kind.canonicalize(value, Question())
    except InvalidAnswerError:
        return False
    return True


def _find_answer(kind: Kind, text: str) -> _FoundAnswer:
    spec, thinks = kind.task.answer, kind.task.reasoning
    if spec.pattern:
        match = find_last_group(spec.pattern, text, "answer")
        return _FoundAnswer(None, text) if match is None else _FoundAnswer(match[0].strip(), text[: match[1]], True)
    bare = _FENCE.sub("", text).strip()
    value = find_json(bare) if bare[:1] in ("{", "[") else None
    if (
        isinstance(value, dict)
        and "answer" in value
        and set(value) <= {"answer", "reasoning"}
        and not _is_whole_answer(kind, value)
    ):
        reasoning = value.get("reasoning")
        return _FoundAnswer(value["answer"], reasoning if isinstance(reasoning, str) else None, True)
    if isinstance(value, dict) and list(value) == [REFUSAL_KEY] and isinstance(value[REFUSAL_KEY], str):
        return _FoundAnswer(value, None, True)
    marked = _ANSWER_LINE.search(text) if thinks or kind.structured else None
    if marked is None:
        rest = text.strip().removeprefix(REASONING_MARK).strip() if thinks else text.strip()
        # Reasoning without an answer line may still end in an answer ("The answer is 7"): `canonicalize` looks for it.
        is_reasoning = thinks and kind.structured and len(rest.split()) > 3
        return _FoundAnswer(rest or None, rest if is_reasoning else None, value is not None)
    before = text[: marked.start()].strip().removeprefix(REASONING_MARK).strip()
    answer, ended = text[marked.end() :].lstrip(), False
    if kind.one_line:
        answer, line_break, _ = answer.partition("\n")
        ended = bool(line_break)
    return _FoundAnswer(
        answer.strip() or None, before or None, ended or (bool(answer) and find_json(answer) is not None)
    )
