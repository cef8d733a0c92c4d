"""Find the prompt in a record: named fields, the usual fields of other programs, or the turns of a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_dagster.intake.chats import (
    ChatTurn,
    find_turns,
    has_attachments,
    has_picture,
    is_chat,
    parse_cell,
    read_chat,
    read_turn,
)
from distill_dagster.intake.row_files import get_by_path

_TEXT_FIELDS = ("text", "prompt", "question", "input", "query")
_REQUEST_FIELDS = (
    *("request", "body", "request_body", "requestBody", "raw_request", "generic_request", "modelInput"),
    *("inputs", "input", "kwargs"),
)


class PromptFieldError(ValueError):
    """The prompt of a record was not found, with the remedy. `is_ambiguous` if there are several places for it."""

    def __init__(self, message: str, remedy: str, is_ambiguous: bool = False) -> None:
        self.remedy, self.is_ambiguous = remedy, is_ambiguous
        super().__init__(message)


@dataclass(frozen=True)
class FoundPrompt:
    """The prompt of a record.

    Attributes:
        text: the text, or the last user turn.
        turns: all turns of a chat up to the last of its user; empty if the record is no chat.
        has_attachment: whether a picture, a sound or a file belongs to the prompt.
    """

    text: str
    turns: tuple[ChatTurn, ...] = ()
    has_attachment: bool = False


def find_prompt(value: Any, fields: Sequence[str] = ()) -> FoundPrompt:
    """The prompt of a record.

    Args:
        fields: names, dotted paths or JSON pointers. The texts of several fields are joined with an empty line.

    Raises:
        PromptFieldError: there is no prompt, or it is not clear which fields it is in.
    """
    record = value if isinstance(value, dict) else {}
    try:
        found = _read_named(value, fields) if fields else _find_usual(value, record)
    except ValueError as error:
        if isinstance(error, PromptFieldError):
            raise
        raise PromptFieldError(f"the text {error}.", "Export it again: a spreadsheet cuts long cells.") from None
    if found is None:
        names = ", ".join(list(record)[:12]) or "no fields"
        remedy = f"Name its field with --text-field. The record has: {names}."
        raise PromptFieldError("the text is missing.", remedy)
    if not found.text.strip() and not found.has_attachment:
        raise PromptFieldError("the text is empty.", "Write it, or remove the record.")
    return found


def find_chat(value: Any) -> list[ChatTurn]:
    """The turns of a log or trace: of the record itself, or of the request in it.

    Raises:
        ValueError: the text of a field begins as a chat and cannot be read.
    """
    if isinstance(value, list):
        return read_chat(value)
    if not isinstance(value, dict):
        return []
    for name in _REQUEST_FIELDS:
        request = parse_cell(value.get(name))
        if isinstance(request, dict):
            inner = parse_cell(request.get("body"))
            if turns := find_turns(inner if isinstance(inner, dict) else request):
                return turns
    return find_turns(value)


def join_instruction(record: dict[str, Any]) -> str | None:
    """The instruction of a record with its input (Alpaca) or context (Dolly); None if the record has none.

    Raises:
        PromptFieldError: the record has another text next to the instruction.
    """
    instruction = record.get("instruction")
    if not _is_text(instruction):
        return None
    others = [name for name in ("text", "prompt", "question") if _is_text(record.get(name))]
    if others and "input" not in record:
        raise _make_ambiguity(["instruction", *others])
    parts = [record.get(name) for name in ("instruction", "input", "context")]
    return "\n\n".join(str(part).strip() for part in parts if _is_text(part))


def _find_usual(value: Any, record: dict[str, Any]) -> FoundPrompt | None:
    attached = has_attachments(record)
    if (text := join_instruction(record)) is not None:
        return FoundPrompt(text, _read_history(record, text), attached or has_picture(text))
    cells = {name: parse_cell(record.get(name)) for name in _TEXT_FIELDS}
    texts = {name: cell for name, cell in cells.items() if isinstance(cell, str)}
    name = next((name for name, text in texts.items() if text.strip()), next(iter(texts), None))
    if name == "question" and _is_text(record.get("context")):
        raise _make_ambiguity(["context", "question"])
    if name is not None:
        _refuse_json_object(name, texts[name])
        return FoundPrompt(texts[name], (), attached or has_picture(texts[name]))
    return _cut_chat(find_chat(value), attached)


def _refuse_json_object(name: str, text: str) -> None:
    """Stop at a text that is a JSON object: nobody said which of its fields is the prompt."""
    try:
        value = json.loads(text) if name != "text" and text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and value:
        inner = next((field for field, item in value.items() if isinstance(item, str)), next(iter(value)))
        remedy = f"Name a field in it, such as --text-field {name}.{inner}, or the whole: --text-field {name}."
        raise PromptFieldError("the text is a JSON object.", remedy, is_ambiguous=True)


def _read_history(record: dict[str, Any], text: str) -> tuple[ChatTurn, ...]:
    """The earlier turns of an instruction (LLaMA-Factory): pairs of a question and its answer."""
    history = record.get("history")
    pairs = [pair for pair in history if isinstance(pair, list)] if isinstance(history, list) else []
    turns = [
        ChatTurn(role, str(said)) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=False)
    ]
    return (*turns, ChatTurn("user", text)) if turns else ()


def _read_named(value: Any, fields: Sequence[str]) -> FoundPrompt | None:
    texts, attached = [], False
    for name in fields:
        content = parse_cell(get_by_path(value, name))
        if is_chat(content) and len(fields) == 1:
            return _cut_chat(read_chat(content))
        if isinstance(content, list | dict):
            turn = read_turn(content if isinstance(content, dict) else {"content": content})
            attached |= turn.has_attachment
            content = turn.text if turn.text or turn.has_attachment else content
        if content is None and len(fields) == 1:
            return None
        if content is not None and not isinstance(content, str):
            raise PromptFieldError("the text field is not a string.", "Name another field with --text-field.")
        texts.append(content or "")
    return FoundPrompt(
        "\n\n".join(text.strip() for text in texts if text.strip()) if len(texts) > 1 else texts[0], (), attached
    )


def _cut_chat(turns: list[ChatTurn], attached: bool = False) -> FoundPrompt | None:
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        return None
    turns = turns[: last + 1]
    return FoundPrompt(turns[-1].text, tuple(turns), attached or any(turn.has_attachment for turn in turns))


def _make_ambiguity(names: list[str]) -> PromptFieldError:
    listed = " and ".join(repr(name) for name in names)
    options = " ".join(f"--text-field {name}" for name in names)
    return PromptFieldError(
        f"the fields {listed} may both belong to the prompt.",
        f"Name one of them, or both: {options}.",
        is_ambiguous=True,
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
