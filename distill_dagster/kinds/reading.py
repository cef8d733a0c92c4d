"""From what a model wrote to reasoning and answer, or to the reason why there is none."""

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
    """What one response says. `status` is ok, refused or truncated; `error` says why an ok response has no answer.

    `answer` is canonical JSON text.
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

    Reasoning is taken from a provider's `reasoning_content`, from tags such as <think>, from the `reasoning` field of a
    structured answer, from what stands before the match of `answer.pattern`, or from what stands before `Answer:`. The
    text is cut at `stop` (by default the task's `answer.stop`) first, where a raw completion runs on.

    `tool_calls` are those of the provider; an empty list where tools were offered and none was called.

    In a slice that wants refusals one is the right answer, and anything else is none.
    """
    spec = kind.task.answer
    cut = finish_reason == "length"
    for end in (stop, spec.stop):
        if end and end in text:  # the answer ended, and only what follows it was cut
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
        named = value[REFUSAL_KEY] if isinstance(value, dict) else value
        said = (named if isinstance(named, str) else "").strip() or words or "(no words)"
        if question.refusal_wanted:
            return ParsedAnswer("ok", to_canonical_json(make_refusal(said)), reasoning)
        return ParsedAnswer("refused", None, reasoning, f"the teacher refused: {said[:200]}")
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


def _is_refused_answer(found: Any, words: str) -> bool:
    if is_refusal(found):
        return True
    if isinstance(found, str) and is_refusal_text(found):
        return True
    # A number or an object that was found is an answer, whatever the sentence before it apologises for.
    return (found is None or found == [] or isinstance(found, str)) and is_refusal_text(words)


def _split_reasoning_tags(text: str) -> tuple[str | None, str, bool]:
    """(what stands in reasoning tags, the text without it, whether a tag was never closed)."""
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
    # <answer>…</answer> is what such models put the rest into
    lower = text.lower()
    begin, close = lower.find("<answer>"), lower.find("</answer>")
    if 0 <= begin < close:
        text = text[begin + len("<answer>") : close]
    return "\n\n".join(part.strip() for part in inside), text.strip(), open_tag


@dataclass(frozen=True)
class _FoundAnswer:
    """The answer as it stands in a response, or None; the reasoning that was written with it; whether it ended."""

    value: Any
    reasoning: str | None = None
    complete: bool = False


def _is_whole_answer(kind: Kind, value: dict[str, Any]) -> bool:
    """Whether an object is itself an extracted answer, of a schema with a field of the name `answer`."""
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
        # Reasoning that never came to an answer line may still end in one ("The answer is 7"): `canonical` looks.
        told = thinks and kind.structured and len(rest.split()) > 3
        return _FoundAnswer(rest or None, rest if told else None, value is not None)
    before = text[: marked.start()].strip().removeprefix(REASONING_MARK).strip()
    answer, ended = text[marked.end() :].lstrip(), False
    if kind.one_line:
        answer, line_break, _ = answer.partition("\n")
        ended = bool(line_break)
    return _FoundAnswer(
        answer.strip() or None, before or None, ended or (bool(answer) and find_json(answer) is not None)
    )
