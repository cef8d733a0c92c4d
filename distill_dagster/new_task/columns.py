"""Find which column of a table is the text, the label or answer, the slice and the id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill_dagster.config import TaskKind
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.intake.row_files import SourceRecord, get_by_path

MAX_LABELS = 200
"""A column with more different values is not taken for labels."""
_SAMPLES = 3
_TEXT_NAMES = (
    "text",
    "message",
    "messagetext",
    "body",
    "content",
    "prompt",
    "question",
    "query",
    "utterance",
    "sentence",
    "input",
    "ticket",
    "comment",
    "review",
    "email",
    "mail",
    "description",
    "instruction",
    "document",
    "article",
    "dialogue",
    "passage",
    "post",
    "tweet",
    "sms",
    "nachricht",
    "anfrage",
    "beschreibung",
    "kommentar",
    "inhalt",
    "texte",
    "mensaje",
    "texto",
    "messaggio",
    "testo",
    "bericht",
    "tekst",
    "subject",
    "title",
    "betreff",
)
_LABEL_NAMES = (
    "label",
    "labels",
    "goldlabel",
    "category",
    "class",
    "classname",
    "intent",
    "topic",
    "sentiment",
    "kategorie",
    "klasse",
    "thema",
    "categorie",
    "categoria",
    "etiqueta",
    "etichetta",
    "labelname",
    "target",
    "tag",
    "queue",
    "department",
)
_ANSWER_NAMES = (
    "answer",
    "answers",
    "answertext",
    "output",
    "completion",
    "response",
    "reply",
    "summary",
    "highlights",
    "target",
    "solution",
    "result",
    "translation",
    "reference",
    "expected",
    "gold",
    "groundtruth",
    "antwort",
    "zusammenfassung",
)
_WRITTEN_NAMES = ("output", "completion", "response", "reply", "translation")
_SLICE_NAMES = ("slice",)
_MESSAGE_NAMES = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class ColumnSummary:
    """What a column contains.

    Attributes:
        filled: the number of records with a value.
        distinct: the number of different values.
        mean_chars: the mean length of a value as text.
        samples: some values as text.
        is_plain: nearly every value is a text, a number or a boolean.
        has_own_name: one of the values is the name of the column, as if the first row were taken for names.
    """

    name: str
    filled: int
    distinct: int
    mean_chars: float
    samples: tuple[str, ...]
    is_plain: bool
    has_own_name: bool = False

    @property
    def key(self) -> str:
        """The name without case, spaces and signs."""
        return re.sub(r"[\W_]+", "", self.name).casefold()


@dataclass(frozen=True)
class Columns:
    """The columns that a task is made from. Names are columns, dotted paths or JSON pointers.

    Several `text` columns are joined into one prompt. Several `answer` columns are the fields of a JSON object.
    """

    text: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    slice: str | None = None
    id: str | None = None
    reasoning: str | None = None
    messages: str | None = None


@dataclass(frozen=True)
class ColumnGuess:
    """Columns and kind as far as names and values show them.

    Attributes:
        unsure: questions that only a person can answer: `kind`, `text` or `answer`.
        answer_candidates: columns that may be labels.
    """

    columns: Columns
    kind: TaskKind | None
    unsure: tuple[str, ...] = ()
    answer_candidates: tuple[str, ...] = ()
    slice_candidates: tuple[str, ...] = field(default=())


def is_missing(value: Any) -> bool:
    """Whether a cell has no value."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def format_cell(value: Any) -> str:
    """A cell as one line of text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        value = to_canonical_json(_make_plain(value))
    return " ".join(str(value).split())


def _make_plain(value: Any) -> Any:
    """A value of a Parquet or XLSX file as JSON: a date becomes its text."""
    if isinstance(value, dict):
        return {str(name): _make_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(inner) for inner in value]
    is_json = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and value == value)
    return value if is_json else str(value)


def get_fields(record: SourceRecord) -> dict[str, Any]:
    """The fields of a record. A record that is a list is a trace of chat messages."""
    return record.value if isinstance(record.value, dict) else {"messages": record.value}


def summarize_columns(records: Iterable[SourceRecord]) -> list[ColumnSummary]:
    """Every column in the order of the file."""
    values: dict[str, Counter[str]] = {}
    plain: Counter[str] = Counter()
    for record in records:
        for name, value in get_fields(record).items():
            counts = values.setdefault(name, Counter())
            if not is_missing(value):
                counts[format_cell(value)] += 1
                plain[name] += isinstance(value, str | int | float)
    return [_summarize(name, counts, plain[name] > 0.9 * counts.total()) for name, counts in values.items()]


def _summarize(name: str, counts: Counter[str], is_plain: bool) -> ColumnSummary:
    filled = counts.total()
    chars = sum(len(value) * number for value, number in counts.items())
    samples = tuple(value for value, _ in counts.most_common(_SAMPLES))
    own = name in counts
    return ColumnSummary(name, filled, len(counts), chars / max(filled, 1), samples, is_plain, own)


def guess_columns(summaries: Sequence[ColumnSummary], given: Columns, kind: TaskKind | None = None) -> ColumnGuess:
    """Complete the columns and the kind that a person named.

    Names of columns decide. Values decide only what is left: the text is the column with the longest values. A column
    of few values may be labels, or a channel or a status, so it is only a candidate.
    """
    by_key = {summary.key: summary.name for summary in reversed(summaries)}
    guess = given
    if kind is None and not given.text and not given.answer:
        kind, guess = _recognize_shape(by_key, summaries, given)
    if kind == "nli" and not guess.text and {"premise", "hypothesis"} <= by_key.keys():
        guess = replace(guess, text=(by_key["premise"], by_key["hypothesis"]))
    if kind == "conversation" and not guess.messages and not guess.text:
        guess = replace(guess, messages=_find_named(by_key, _MESSAGE_NAMES))
    unsure = []
    if not guess.text and not guess.messages:
        text, is_sure = _guess_text(summaries, by_key, guess)
        guess = replace(guess, text=(text,) if text else ())
        if not is_sure:
            unsure.append("text")
    taken = {*guess.text, guess.slice, guess.id, guess.reasoning, guess.messages}
    free = [summary for summary in summaries if summary.name not in taken]
    few = [summary for summary in free if _may_be_labels(summary)]
    if not guess.answer and not guess.messages:
        free_keys = {summary.key: summary.name for summary in reversed(free)}
        label = _find_named({summary.key: summary.name for summary in reversed(few)}, _LABEL_NAMES)
        label = label or _find_ending(few, _LABEL_NAMES[:12])
        if kind in (None, "classification", "nli"):
            if label is None and kind is not None:
                label = _find_named(free_keys, _LABEL_NAMES)
            guess = replace(guess, answer=(label,) if label else ())
            kind = kind or ("classification" if label else None)
            if kind is None:
                kind, guess = _guess_written_answer(free_keys, free, guess)
        else:
            answer = _find_named(free_keys, _ANSWER_NAMES) or _find_named(free_keys, _LABEL_NAMES)
            guess = replace(guess, answer=(answer,) if answer else ())
        if not guess.answer:
            unsure.append("answer")
    if guess.id is None:
        guess = replace(guess, id=_guess_id(summaries, {*guess.text, *guess.answer, guess.slice}))
    if guess.slice is None:
        guess = replace(guess, slice=_find_named(by_key, _SLICE_NAMES))
    if kind is None and guess.answer:
        kind = _guess_kind_of_answer([s for s in summaries if s.name in guess.answer])
    if kind is None:
        unsure.append("kind")
    taken |= {*guess.answer, guess.id, guess.slice}
    candidates = tuple(summary.name for summary in few if summary.name not in guess.answer)
    slices = tuple(summary.name for summary in few if summary.name not in taken)
    return ColumnGuess(guess, kind, tuple(unsure), candidates, slices)


def _recognize_shape(
    by_key: dict[str, str], summaries: Sequence[ColumnSummary], given: Columns
) -> tuple[TaskKind | None, Columns]:
    """The kind and columns of datasets that are published in a common form."""

    def get(*keys: str) -> tuple[str, ...]:
        return tuple(by_key[key] for key in keys if key in by_key)

    plain = {summary.key for summary in summaries if summary.is_plain and not _has_lists(summary)}
    if {"premise", "hypothesis"} <= by_key.keys():
        return "nli", replace(given, text=get("premise", "hypothesis"))
    if messages := _find_named({key: name for key, name in by_key.items() if key not in plain}, _MESSAGE_NAMES):
        return "conversation", replace(given, messages=messages)
    if "instruction" in by_key and (output := get("output", "response")[:1]):  # Alpaca, Dolly
        return "generation", replace(given, text=get("instruction", "input", "context"), answer=output)
    if "query" in by_key and {"tools", "answers"} <= by_key.keys():
        return "tool_call", replace(given, text=get("query"), answer=get("answers"))
    for summary_key in ("summary", "highlights"):
        if summary_key in by_key:
            text = get("article", "document", "dialogue", "text", "body", "content")[:1]
            return "summarization", replace(given, text=text, answer=get(summary_key))
    if "question" in by_key and (answer := get("answer", "answers", "answertext")[:1]):
        asked = get("context", "question") if "context" in plain else get("question")
        found = next(summary for summary in summaries if summary.name == answer[0])
        return _guess_kind_of_question(found), replace(given, text=asked, answer=answer)
    return None, given


def _guess_written_answer(
    free_keys: dict[str, str], free: Sequence[ColumnSummary], guess: Columns
) -> tuple[TaskKind | None, Columns]:
    """The kind and column of answers that are no labels: objects, tool calls, or texts that a model wrote."""
    if name := _find_named(free_keys, _ANSWER_NAMES):
        found = next(summary for summary in free if summary.name == name)
        is_written = found.is_plain and found.key in _WRITTEN_NAMES
        kind: TaskKind | None = "generation" if is_written else _guess_kind_of_answer([found])
        if kind is not None:
            return kind, replace(guess, answer=(name,))
    return None, guess


def _guess_kind_of_question(answers: ColumnSummary) -> TaskKind:
    numbers = all(re.search(r"####\s*-?[\d.,]+$", value) or _is_number(value) for value in answers.samples)
    return "math" if answers.samples and numbers else "qa"


def _guess_kind_of_answer(answers: Sequence[ColumnSummary]) -> TaskKind | None:
    """The kind of answers in columns that a person named."""
    if len(answers) > 1 or (answers and all(sample.startswith("{") for sample in answers[0].samples)):
        return "extraction"
    if answers and all(sample.startswith('[{"') for sample in answers[0].samples):
        return "tool_call"
    return "classification" if answers and _may_be_labels(answers[0]) else None


def _may_be_labels(summary: ColumnSummary) -> bool:
    is_repeated = 2 <= summary.distinct <= MAX_LABELS and 3 * summary.distinct <= summary.filled
    return summary.is_plain and is_repeated and summary.mean_chars <= 60


def _guess_text(summaries: Sequence[ColumnSummary], by_key: dict[str, str], given: Columns) -> tuple[str | None, bool]:
    """The column of the text, and whether that is sure."""
    taken = {*given.answer, given.slice, given.id, given.reasoning}
    free = [summary for summary in summaries if summary.name not in taken and summary.is_plain and summary.filled]
    if named := _find_named({summary.key: summary.name for summary in reversed(free)}, _TEXT_NAMES):
        return named, True
    words = [summary for summary in free if 2 * summary.distinct > summary.filled and summary.mean_chars >= 12]
    words = [summary for summary in words if not all(_is_code(sample) for sample in summary.samples)]
    ranked = sorted(words, key=lambda summary: -summary.mean_chars)
    if not ranked:
        return (free[0].name, True) if len(free) == 1 else (None, False)
    is_sure = len(ranked) == 1 or ranked[0].mean_chars > 2 * ranked[1].mean_chars
    return ranked[0].name, is_sure


def _guess_id(summaries: Sequence[ColumnSummary], taken: set[str | None]) -> str | None:
    """A column whose name says id, and whose values are all different."""
    for summary in summaries:
        is_unique = summary.is_plain and summary.distinct == summary.filled and summary.mean_chars <= 60
        if is_unique and summary.name not in taken and re.search(r"(?i)(^|[\W_])(id|uuid|nr|no|key)$", summary.name):
            return summary.name
    return None


def _find_named(by_key: dict[str, str], keys: Iterable[str]) -> str | None:
    return next((by_key[key] for key in keys if key in by_key), None)


def _find_ending(summaries: Sequence[ColumnSummary], endings: Sequence[str]) -> str | None:
    """The only column whose name ends with one of these, such as `issue category`."""
    found = [summary.name for summary in summaries if summary.key.endswith(tuple(endings))]
    return found[0] if len(found) == 1 else None


def _has_lists(summary: ColumnSummary) -> bool:
    """Whether the values are lists of objects, as JSON or as Python writes them."""
    return bool(summary.samples) and all(sample.startswith(("[{", "[ {")) for sample in summary.samples)


def _is_code(value: str) -> bool:
    """Whether a value is a number, a date or an id, not words."""
    return " " not in value.strip() or not re.search(r"[^\W\d_]{2}", value)


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[-+$€£]?\s*\d[\d.,' ]*%?", value.strip()) is not None


def find_unknown_columns(columns: Columns, records: Sequence[SourceRecord]) -> list[str]:
    """The names of columns that no record has."""
    names = [*columns.text, *columns.answer, columns.slice, columns.id, columns.reasoning, columns.messages]
    known = {name for record in records for name in get_fields(record)}
    rest = [name for name in names if name is not None and name not in known]
    return [name for name in rest if all(get_by_path(record.value, name) is None for record in records)]
