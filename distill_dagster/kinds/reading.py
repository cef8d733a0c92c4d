"""Read the reasoning and the answer from the text of a model, or say why there is no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_text import read_json
from distill_dagster.core.patterns import find_last_group
from distill_dagster.core.thinking import split_thinking
from distill_dagster.kinds.base import REASONING_MARK, InvalidAnswerError, Kind, Question
from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal, is_refusal_text, make_refusal
from distill_dagster.kinds.written_calls import find_written_calls, has_marks

CUT = "the answer was cut at max_tokens"
STILL_THINKING = f"{CUT}, while the model was still thinking: raise teacher.thinking_tokens"
_FENCE = re.compile(r"\A\s*```[\w+-]*[ \t]*\r?\n|\s*```\s*\Z")
_WRAPPER = re.compile(r"\{\s*[\"'“]?(?:final[_ ]?)?(?:answer|reasoning)[\"'”]?\s*(?::|\Z)", re.IGNORECASE | re.ASCII)
_ANSWER_LINE = re.compile(
    r"^[ \t]*(?:[#>]+[ \t]*)?(?:\*\*)?(?:final[ \t]+)?answer(?:\*\*)?[ \t]*[:：](?:\*\*)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.ASCII | re.DOTALL)


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
    split = split_thinking(text)
    rest, cut = split.answer, finish_reason == "length"
    for end in (stop, kind.task.answer.stop):
        if end and end in rest:  # the answer is complete; only what follows it was cut
            rest, cut = rest.split(end, 1)[0], False
    notes = [part for part in (reasoning_content, split.thinking) if part and part.strip()]
    declined = finish_reason == "refusal"
    if not split.ended and not declined:
        return ParsedAnswer("truncated", None, _join(notes), STILL_THINKING)
    found = _FoundAnswer(None)
    if not declined:
        if tool_calls is None:
            found = _find_answer(kind, rest, question)
        else:
            found = _find_calls(kind, rest, question, tool_calls, finish_reason)
        notes += [found.reasoning] if found.reasoning and found.reasoning.strip() and not notes else []
    reasoning, words, value = _join(notes), rest.strip(), found.value
    if declined or _is_refused_answer(value, words):
        stated = value[REFUSAL_KEY] if isinstance(value, dict) else value
        refusal = (stated if isinstance(stated, str) else "").strip() or words or "(no words)"
        if question.refusal_wanted:
            return ParsedAnswer("ok", to_canonical_json(make_refusal(refusal)), reasoning)
        return ParsedAnswer("refused", None, reasoning, f"the teacher refused: {refusal[:200]}")
    if question.refusal_wanted:
        return ParsedAnswer("ok", None, reasoning, "a refusal is wanted in this slice, and the teacher answered")
    if cut and not found.complete:
        return ParsedAnswer("truncated", None, reasoning, CUT if words or not reasoning else STILL_THINKING)
    try:
        if value is None:
            raise InvalidAnswerError(found.problem or "no answer was found in the text")
        return ParsedAnswer("ok", to_canonical_json(kind.canonicalize(value, question)), reasoning)
    except InvalidAnswerError as why:
        return ParsedAnswer("truncated" if cut else "ok", None, reasoning, str(why))


def _join(notes: list[str]) -> str | None:
    return "\n\n".join(note.strip() for note in notes) or None


def _is_refused_answer(value: Any, words: str) -> bool:
    if is_refusal(value) or (isinstance(value, str) and is_refusal_text(value)):
        return True
    # A number or an object is an answer, even after an apology.
    return (value is None or value == [] or isinstance(value, str)) and is_refusal_text(words)


@dataclass(frozen=True)
class _FoundAnswer:
    """The answer as written in a response, or None; the reasoning written with it; whether the answer is complete.

    `problem` says why there is no answer, although one was begun.
    """

    value: Any
    reasoning: str | None = None
    complete: bool = False
    problem: str | None = None


def _find_calls(
    kind: Kind, text: str, question: Question, calls: list[dict[str, Any]], finish_reason: str | None
) -> _FoundAnswer:
    """The answer of a model that was offered tools, or that called one: the calls, wherever it wrote them."""
    called = bool(calls) or finish_reason == "tool_calls"
    if kind.answer_kind != "tool_calls":
        if called and (finish_reason == "tool_calls" or not text.strip()):
            return _FoundAnswer(None, problem="the model called a tool and gave no answer")
        return _find_answer(kind, text, question)
    if calls:
        if has_marks(text) and not _are_among(kind, text, calls):
            return _FoundAnswer(None, text, problem="a tool call was left in the text next to the others")
        return _FoundAnswer(
            calls, text, complete=finish_reason != "length"
        )  # in a cut answer more calls may be missing
    written = find_written_calls(text, kind.task.tools)
    if written.problem or written.calls is not None:
        return _FoundAnswer(written.calls, complete=written.is_closed, problem=written.problem)
    if called:
        return _FoundAnswer(None, problem="the provider says that the model called a tool, and sent no call")
    return _FoundAnswer([] if text.strip() else None, text)


def _are_among(kind: Kind, text: str, calls: list[dict[str, Any]]) -> bool:
    """Whether all calls in a text are among the ones that the provider took out of it."""
    try:
        written = kind.canonicalize(text, Question())
        return all(call in kind.canonicalize(calls, Question()) for call in written)
    except InvalidAnswerError:
        return False


def _find_answer(kind: Kind, text: str, question: Question) -> _FoundAnswer:
    spec, thinks = kind.task.answer, kind.task.reasoning
    if spec.pattern:
        match = find_last_group(spec.pattern, text, "answer")
        return _FoundAnswer(None, text) if match is None else _FoundAnswer(match[0].strip(), text[: match[1]], True)
    asked_for_json = thinks or kind.structured
    bare = _FENCE.sub("", text).strip()
    if found := _find_wrapped(kind, bare, question) or (
        _search_wrapped(kind, text, question) if asked_for_json else None
    ):
        return found
    if _WRAPPER.match(bare) or (asked_for_json and _WRAPPER.search(text)):
        found_json = read_json(text)
        if found_json.is_cut or found_json.is_broken:
            state = "cut" if found_json.is_cut else "malformed"
            return _FoundAnswer(None, problem=f"the JSON of the answer is {state}")
    if asked_for_json and (tags := list(_ANSWER_TAG.finditer(text))):
        before = _strip_mark(text[: tags[-1].start()]) if thinks else ""
        return _FoundAnswer(tags[-1][1].strip() or None, before or None, True)
    marked = _ANSWER_LINE.search(text) if asked_for_json else None
    if marked:
        before, answer = _strip_mark(text[: marked.start()]), text[marked.end() :].strip()
    else:
        before, answer = "", bare if kind.one_line else text.strip()  # a longer answer may be code in a fence
    if marked is None and thinks:
        answer = _strip_mark(text)
        # Reasoning without an answer line may still end in an answer ("The answer is 7"): `canonicalize` looks for it.
        before = answer if kind.structured and len(answer.split()) > 3 else ""
    if kind.answer_kind == "tool_calls":
        return _find_written(kind, answer, before)
    ended = False
    if marked and kind.one_line:
        answer, line_break, _ = text[marked.end() :].lstrip().partition("\n")
        answer, ended = answer.strip(), bool(line_break)
    if not ended and (answer[:1] in ("{", "[", "`") or kind.answer_kind == "object"):
        found_json = read_json(answer)
        ended = bool(found_json.values) and not found_json.is_cut
    return _FoundAnswer(answer or None, before or None, ended)


def _find_written(kind: Kind, answer: str, before: str) -> _FoundAnswer:
    """The tool calls in an answer of which nothing but JSON is expected."""
    written = find_written_calls(answer, kind.task.tools)
    value = written.calls if written.calls is not None else answer or None
    return _FoundAnswer(None if written.problem else value, before or None, written.is_closed, written.problem)


def _strip_mark(text: str) -> str:
    return text.strip().removeprefix(REASONING_MARK).strip()


def _find_wrapped(kind: Kind, text: str, question: Question) -> _FoundAnswer | None:
    """The answer in a text that is JSON and nothing else, in the form that a teacher is asked for; else None."""
    found = read_json(text)
    is_all = len(found.values) == 1 and text.startswith("{") and text.endswith("}")
    return _read_wrapped(kind, text, list(found.values), question) if is_all else None


def _search_wrapped(kind: Kind, text: str, question: Question) -> _FoundAnswer | None:
    """The answer in JSON anywhere in a text, in the form that a teacher is asked for; None if there is none."""
    values = list(read_json(text).values)
    if not kind.structured:  # an answer that is a text may quote JSON
        values = [value for value in values if isinstance(value, dict) and "reasoning" in value]
    return _read_wrapped(kind, text, values, question)


def _read_wrapped(kind: Kind, text: str, found: list[Any], question: Question) -> _FoundAnswer | None:
    values = [value for value in found if isinstance(value, dict)]
    if len(values) == 1 and list(values[0]) == [REFUSAL_KEY] and isinstance(values[0][REFUSAL_KEY], str):
        return _FoundAnswer(values[0], None, True)
    wrapped = [pair for value in values if (pair := _unwrap(kind, value)) is not None]
    if not wrapped:
        return None
    answers, notes = zip(*wrapped, strict=True)
    reasoning = next((note for note in notes if note), None)
    if kind.answer_kind == "tool_calls":  # one call in each, or all calls in one
        written = find_written_calls(text, kind.task.tools)
        value = written.calls if written.calls is not None else answers[0]
        return _FoundAnswer(None if written.problem else value, reasoning, written.is_closed, written.problem)
    if len({to_canonical_json(answer) for answer in answers}) == 1:
        return _FoundAnswer(answers[0], reasoning, True)
    return _choose(kind, answers, question, reasoning)


def _choose(kind: Kind, answers: tuple[Any, ...], question: Question, reasoning: str | None) -> _FoundAnswer:
    """The one answer among several that fits the kind, in whatever form it was written."""
    fitting: dict[str, Any] = {}
    for answer in answers:
        try:
            fitting.setdefault(to_canonical_json(kind.canonicalize(answer, question)), answer)
        except InvalidAnswerError:
            continue
    if len(fitting) > 1:
        return _FoundAnswer(None, reasoning, problem="the text has several different answers")
    return _FoundAnswer(next(iter(fitting.values()), answers[0]), reasoning, True)


def _unwrap(kind: Kind, value: dict[str, Any]) -> tuple[Any, str | None] | None:
    """The answer and the reasoning in an object such as {"reasoning": …, "answer": …}, or None for another object."""
    fields = {name.strip().casefold().replace("_", " "): inner for name, inner in value.items()}
    name = next((name for name in ("answer", "final answer") if name in fields), None)
    if name is None or (kind.answer_kind == "object" and (set(fields) - {name, "reasoning"} or _is_whole(kind, value))):
        return None
    reasoning = fields.get("reasoning")
    return fields[name], reasoning if isinstance(reasoning, str) else None


def _is_whole(kind: Kind, value: dict[str, Any]) -> bool:
    """Whether an object is itself an extracted answer: its schema may have a field named `answer`."""
    try:
        kind.canonicalize(value, Question())
    except InvalidAnswerError:
        return False
    return True
