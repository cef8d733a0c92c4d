"""Turn the records of other programs into labelled rows of a task folder."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_dagster.config import SLICE_KEY_PATTERN, Task
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.chats import ChatTurn
from distill_dagster.intake.import_options import TARGET_FILES, ImportLog, ImportOptions
from distill_dagster.intake.inbox import sanitize_file_name
from distill_dagster.intake.prompt_fields import FoundPrompt, PromptFieldError, find_chat, find_prompt
from distill_dagster.intake.recorded_responses import find_choices, find_last_assistant
from distill_dagster.intake.recordings import WITH_PICTURE
from distill_dagster.intake.row_files import SourceRecord, get_by_path
from distill_dagster.intake.source_fields import find_id, find_slice
from distill_dagster.tasks import LabelledRow, read_rows

REJECTED, MAPPED_AWAY, WITH_TOOLS = "rejected by the annotator", "left out by --map", "with tool calls in the chat"
_VERDICTS = ("accept", "reject", "ignore")
"""What Prodigy's field `answer` says of a label."""
RawRow = dict[str, Any]


def build_rows(
    task: Task, records: Sequence[SourceRecord], log: ImportLog
) -> list[tuple[SourceRecord, RawRow, LabelledRow]]:
    """The records as raw and parsed rows, checked as the rows in the files of a task folder are.

    Raises:
        InputError: records cannot be used, and they are not to be left out.
    """
    builder = _RowBuilder(task, log)
    rows = [(record, raw) for record in records if (raw := builder.build(record)) is not None]
    builder.add_remarks()
    _distinguish_ids(rows, log.options)
    parsed = _parse_rows(task, rows, log)
    log.stop_if_invalid()
    return [(record, raw, row) for (record, raw), row in zip(rows, parsed, strict=True) if row is not None]


class _RowBuilder:
    """Builds the rows of one file, and counts what it changes."""

    def __init__(self, task: Task, log: ImportLog) -> None:
        self.task, self.log, self.options = task, log, log.options
        self.answer_field = "label" if task.has_labels else "answer"
        self.renamed: Counter[tuple[str, str]] = Counter()
        self.used_names: set[str] = set()
        self.cut_chats = 0

    def build(self, record: SourceRecord) -> RawRow | None:
        """The raw row of a record; None if it is left out or cannot be used."""
        fields = record.value if isinstance(record.value, dict) else {}
        if self._is_rejected(fields):
            self._skip(REJECTED)
            return None
        try:
            prompt = find_prompt(record.value, self.options.text_fields)
        except PromptFieldError as error:
            name = "+".join(self.options.text_fields) or "text"
            self.log.refuse(record, record.make_problem(str(error), error.remedy, name))
            return None
        if prompt.has_attachment:
            self._skip(WITH_PICTURE)
            return None
        raw: RawRow = {"id": find_id(record, self.options.id_field), "text": prompt.text.strip()}
        if self.task.kind == "conversation" and len(prompt.turns) > 1:
            if (messages := convert_turns(prompt.turns)) is None:
                self._skip(WITH_TOOLS)
                return None
            raw |= {"messages": messages, "text": None}  # the user's turns are the text
        elif sum(turn.role == "user" for turn in prompt.turns) > 1:
            self.cut_chats += 1
        answer = self._find_answer(record, fields, prompt)
        if answer is _LEFT_OUT:
            self._skip(MAPPED_AWAY)
            return None
        raw[self.answer_field] = answer
        raw |= self._copy_fields(record, fields)
        return None if self.log.is_invalid(record) else {name: v for name, v in raw.items() if v is not None}

    def _skip(self, reason: str) -> None:
        self.log.skipped[reason] += 1

    def _is_rejected(self, fields: dict[str, Any]) -> bool:
        """Whether an annotator said in Prodigy that the label is wrong, or said nothing."""
        verdict = fields.get("answer")
        return self.task.has_labels and self.options.label_field != "answer" and verdict in _VERDICTS[1:]

    def _copy_fields(self, record: SourceRecord, fields: dict[str, Any]) -> RawRow:
        """The other fields of a row, if the record has them with the type that a row needs."""
        raw: RawRow = {"source": sanitize_file_name(record.file)}
        key = fields.get("slice")
        is_slice = isinstance(key, str) and SLICE_KEY_PATTERN.fullmatch(key)
        raw["slice"] = find_slice(record, self.options, self.log) or (key if is_slice else None)
        if isinstance(fields.get("source"), str) and fields["source"].strip():
            raw["source"] = fields["source"]
        axes = fields.get("axes")
        if isinstance(axes, dict) and all(isinstance(value, str) for value in axes.values()):
            raw["axes"] = axes
        if self.options.reasoning_field:
            raw["reasoning"] = get_by_path(record.value, self.options.reasoning_field)
        elif isinstance(fields.get("reasoning"), str) and fields["reasoning"].strip():
            raw["reasoning"] = fields["reasoning"]
        return raw

    def _find_answer(self, record: SourceRecord, fields: dict[str, Any], prompt: FoundPrompt) -> Any:
        """The human answer: in its field, or else what the assistant says in the record."""
        name = self.options.label_field
        if name is not None:
            answer = get_by_path(record.value, name)
        else:
            answer = fields.get(self.answer_field)
            if self.task.has_labels and answer in (None, "") and isinstance(fields.get("accept"), list):
                answer = fields["accept"]  # Prodigy's choices
            if answer in (None, "") and (said := _find_said(record.value)) is not None:
                is_label = self.task.has_labels and self._rename(str(said).strip()) in self.task.label_names
                answer = said if is_label or prompt.turns or not self.task.has_labels else None
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            names = ", ".join(list(fields)[:12]) or "no fields"
            remedy = (
                "Add it, or leave out such records with --skip-invalid."
                if name
                else f"Name its field with --label-field. The record has: {names}."
            )
            problem = record.make_problem(f"the {self.answer_field} is missing.", remedy, name or self.answer_field)
            self.log.refuse(record, problem)
            return None
        if not self.task.has_labels:
            return self._map_answer(answer)
        return self._read_label(record, answer, name or self.answer_field)

    def _map_answer(self, answer: Any) -> Any:
        mapping = self.options.label_map
        if isinstance(answer, str) and answer in mapping:
            self.used_names.add(answer)
            return mapping[answer] or _LEFT_OUT
        return answer

    def _read_label(self, record: SourceRecord, answer: Any, name: str) -> Any:
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, list | dict):
            kind = "several labels" if isinstance(answer, list) else "an object"
            remedy = "Name the field of one label with --label-field, such as choices.0."
            self.log.refuse(record, record.make_problem(f"the label is {kind}.", remedy, name))
            return None
        written = str(answer).lower() if isinstance(answer, bool) else str(answer)
        label = self._rename(written)
        if label == "":
            return _LEFT_OUT
        if label not in self.task.label_names and label.removeprefix("-").isdecimal():
            message = f"the label is the class number {label}, and the task has names."
            remedy = f"Say what the numbers mean: --map {label}={self.task.label_names[0]} and so on."
            self.log.refuse(record, record.make_problem(message, remedy, name))
        elif label != written and label in self.task.label_names:
            self.renamed[written, label] += 1
        return label

    def _rename(self, written: str) -> str:
        """The label that a spelling means: by `--map`, or else but for case and spaces at its ends."""
        mapping = self.options.label_map
        for spelling in (written, written.strip()):
            if spelling in mapping:
                self.used_names.add(spelling)
                return mapping[spelling]
        if written in self.task.label_names:
            return written
        folded = " ".join(written.split()).casefold()
        same = [label for label in self.task.label_names if " ".join(label.split()).casefold() == folded]
        return same[0] if len(same) == 1 else written

    def add_remarks(self) -> None:
        """Say what was changed, and which names of `--map` no record has."""
        remarks = self.log.remarks
        changes = [f"{old!r} to {new!r} ({number})" for (old, new), number in sorted(self.renamed.items())]
        if changes:
            remarks.append(f"labels renamed: {', '.join(changes[:20])}{', …' if len(changes) > 20 else ''}.")
        if unused := [repr(old) for old in self.options.label_map if old not in self.used_names]:
            remarks.append(f"no record has the label {' or '.join(unused)} of --map.")
        if self.cut_chats:
            remarks.append(make_chat_remark(self.cut_chats, self.task.kind))


_LEFT_OUT: Any = object()
"""The answer of a record that `--map` leaves out."""


def convert_turns(turns: Sequence[ChatTurn]) -> list[dict[str, str]] | None:
    """The turns of a conversation as messages of a row; None if tools take part in it."""
    if any(turn.role == "tool" or turn.tool_calls or not turn.text.strip() for turn in turns):
        return None
    if any(turn.role == "system" for turn in turns[1:]):
        return None
    return [{"role": turn.role, "content": turn.text.strip()} for turn in turns]


def make_chat_remark(number: int, kind: str) -> str:
    """What is said of chats of which a task that is no conversation takes the last user turn."""
    return f"of {count_noun(number, 'chat')} the last user turn was taken: kind {kind} has no conversations."


def _find_said(value: Any) -> Any:
    """What the assistant says in a record: its completion, or its last turn, if no user turn follows."""
    try:
        _, choices = find_choices(value) if isinstance(value, dict) else ({}, [])
        turns = find_chat(value)
    except ValueError:
        return None
    if choices and not choices[0].is_empty:
        return choices[0].calls or choices[0].text
    said = find_last_assistant(turns)
    return (said.tool_calls or said.text) if said is not None and turns[-1] is said else None


def format_row(raw: RawRow) -> str:
    """A row as a line of a file."""
    return json.dumps(raw, ensure_ascii=False, default=str)  # a Parquet file may contain dates


def _distinguish_ids(rows: list[tuple[SourceRecord, RawRow]], options: ImportOptions) -> None:
    """Give rows without an id one from their text: the same text in the same file always gets the same id.

    Of equal texts, all but the first get a number, so that a duplicate text is not reported as a duplicate id.
    """
    seen = {raw["id"] for _, raw in rows if raw.get("id")}
    for place, (record, raw) in enumerate(rows):
        if raw.get("id"):
            continue
        text = raw.get("text") or "\n".join(m["content"] for m in raw["messages"] if m["role"] == "user")
        name = sanitize_file_name(record.file).rsplit(".", 1)[0]
        raw["id"] = f"{name}-{hash_content(normalize_text(text))[:10]}"
        if raw["id"] in seen:
            raw["id"] += f"-{record.line or place + 1}"
        seen.add(raw["id"])


def _parse_rows(task: Task, rows: list[tuple[SourceRecord, RawRow]], log: ImportLog) -> list[LabelledRow | None]:
    """Each row as the task's own file would be read; None for a row that cannot be used."""
    options = log.options
    named = {
        "label": options.label_field,
        "answer": options.label_field,
        "text": "+".join(options.text_fields),
        "id": options.id_field,
        "reasoning": options.reasoning_field,
    }
    good = list(range(len(rows)))
    parsed: list[LabelledRow | None] = [None] * len(rows)
    while good:
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / TARGET_FILES[options.target]
            copy.write_text("".join(f"{format_row(rows[place][1])}\n" for place in good), encoding="utf-8")
            result = read_rows(copy, task, labelled=True)
        if not result.problems and result.value is not None:
            for place, row in zip(good, result.value, strict=True):
                parsed[place] = row
            break
        broken = set()
        for problem in result.problems:
            place = good[(problem.line or 1) - 1]
            broken.add(place)
            field = named.get(problem.field or "") or problem.field
            record = rows[place][0]
            log.refuse(record, record.locate(replace(problem, field=field)))
        good = [place for place in good if place not in broken]
    return parsed
