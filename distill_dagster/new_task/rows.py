"""Read the rows of a new task from the records of a file: text, answer as written, slice, id, all masked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill_dagster.config import LABEL_KINDS, TaskKind
from distill_dagster.config.inbox import DEFAULT_PHONE_REGIONS
from distill_dagster.core.errors import Problem
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.chats import find_turns
from distill_dagster.intake.masking import mask_id, mask_json, mask_text
from distill_dagster.intake.row_files import SourceRecord, get_by_path
from distill_dagster.new_task.answers import UnreadableAnswerError, build_object, read_answer_cell, split_reasoning
from distill_dagster.new_task.columns import Columns, format_cell, get_fields, is_missing
from distill_dagster.new_task.labels import NotALabelError, read_label_cell

SKIP_REMEDY = "Fix it, or leave such rows out with --skip-invalid."


@dataclass(frozen=True)
class TableRow:
    """One usable row. `key` is the normalized text: equal for rows with the same text.

    `answer` is a label, any JSON value for kinds without labels, or None for a row that nobody answered.
    """

    record: SourceRecord
    text: str
    key: str
    answer: Any = None
    reasoning: str | None = None
    slice: str | None = None
    id: str | None = None
    messages: tuple[dict[str, str], ...] = ()


@dataclass
class TableRows:
    """The rows of a table, the problems with the others, and what was masked by kind."""

    rows: list[TableRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    masked: Counter[str] = field(default_factory=Counter)
    blank: int = 0


def read_rows_of_table(
    records: Sequence[SourceRecord], columns: Columns, kind: TaskKind, mask: bool = True
) -> TableRows:
    """Read every record. A record without any value is left out and counted, one without a text is a problem.

    Args:
        mask: replace secrets and personal data in texts and answers by their kind.
    """
    table = TableRows()

    def mask_value(text: str) -> str:
        if not mask:
            return text
        masked = mask_text(text, DEFAULT_PHONE_REGIONS)
        table.masked.update(masked.counts)
        return masked.text

    for record in records:
        fields = get_fields(record)
        if all(is_missing(value) for value in fields.values()):
            table.blank += 1
            continue
        try:
            table.rows.append(_read_row(record, fields, columns, kind, mask_value, mask))
        except _UnusableRowError as error:
            table.problems.append(record.make_problem(f"{error}.", SKIP_REMEDY, error.field))
    return table


class _UnusableRowError(ValueError):
    """A record that cannot become a row, with the field at fault."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


def _read_row(
    record: SourceRecord,
    fields: Mapping[str, Any],
    columns: Columns,
    kind: TaskKind,
    mask_value: Callable[[str], str],
    mask: bool,
) -> TableRow:
    messages: tuple[dict[str, str], ...] = ()
    if columns.messages is not None and not columns.text:
        messages, answer = _read_chat(fields, mask_value)
        text = "\n".join(turn["content"] for turn in messages if turn["role"] == "user")
    else:
        text, answer = mask_value(_read_text(fields, columns, kind)), _read_written_answer(fields, columns, kind)
    reasoning = _get(fields, columns.reasoning)
    if kind == "math" and is_missing(reasoning):
        reasoning, answer = split_reasoning(answer)
    if kind not in LABEL_KINDS and answer is not None:
        answer = mask_json(answer, mask_value)
    slice_, id_ = _get(fields, columns.slice), _get(fields, columns.id)
    id_text = None if is_missing(id_) else format_cell(id_)[:200]
    return TableRow(
        record,
        text,
        normalize_text(text),
        answer,
        None if is_missing(reasoning) else mask_value(format_cell(reasoning)),
        None if is_missing(slice_) else format_cell(slice_),
        mask_id(id_text, DEFAULT_PHONE_REGIONS) if id_text and mask else id_text,
        messages,
    )


def _read_chat(
    fields: Mapping[str, Any], mask_value: Callable[[str], str]
) -> tuple[tuple[dict[str, str], ...], str | None]:
    """A conversation up to its last user turn, and the assistant's reply to it, if there is one."""
    try:
        turns = find_turns(dict(fields))
    except ValueError as error:
        raise _UnusableRowError(f"the conversation {error}", "messages") from None
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise _UnusableRowError("the conversation has no user turn", "messages")
    asked, replies = turns[: last + 1], turns[last + 1 :]
    if any(turn.has_attachment for turn in asked):
        raise _UnusableRowError("the conversation has a picture, a sound or a file", "messages")
    if any(turn.role == "tool" or turn.tool_calls for turn in asked):
        raise _UnusableRowError("the conversation has tool calls, which a prompt cannot contain", "messages")
    if not asked[-1].text.strip():
        raise _UnusableRowError("the last user turn is empty", "messages")
    messages = tuple(
        {"role": turn.role, "content": mask_value(turn.text.strip())} for turn in asked if turn.text.strip()
    )
    reply = next((turn.text.strip() for turn in replies if turn.role == "assistant" and turn.text.strip()), None)
    return messages, reply


def _get(fields: Mapping[str, Any], name: str | None) -> Any:
    return None if name is None else get_by_path(dict(fields), name)


def _read_text(fields: Mapping[str, Any], columns: Columns, kind: TaskKind) -> str:
    parts = []
    for name in columns.text:
        value = _get(fields, name)
        if isinstance(value, dict | list) and value:
            raise _UnusableRowError("the text is not a string", name)
        if not is_missing(value):
            words = str(value).strip()
            is_named = kind == "nli" and len(columns.text) > 1
            parts.append(f"{name[:1].upper()}{name[1:]}: {words}" if is_named else words)
    if not parts or (kind == "nli" and len(parts) < len(columns.text)):
        raise _UnusableRowError("the text is empty", columns.text[0] if columns.text else None)
    return ("\n" if kind == "nli" else "\n\n").join(parts)


def _read_written_answer(fields: Mapping[str, Any], columns: Columns, kind: TaskKind) -> Any:
    """The label as it is written, or the answer as a JSON value."""
    values = [_get(fields, name) for name in columns.answer]
    if not values:
        return None
    try:
        if kind in LABEL_KINDS:
            return read_label_cell(values[0])
        if kind == "extraction" and len(values) > 1:
            return build_object(columns.answer, values)
        return read_answer_cell(values[0], kind)
    except (NotALabelError, UnreadableAnswerError) as error:
        raise _UnusableRowError(str(error), columns.answer[0]) from None


def name_place(row: TableRow) -> str:
    """Where in the file a row is, for messages."""
    return f"line {row.record.line}" if row.record.line else row.record.name or row.record.file.name
