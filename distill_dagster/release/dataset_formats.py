"""The dataset in formats of other programs: one file for each split.

- `openai`: `messages`, with `tool_calls` and `tools`. OpenAI's fine-tuning and most trainers read it.
- `trl`: `prompt` and `completion`, both lists of turns. TRL computes its loss on the completion alone.
- `alpaca`: `instruction`, `input`, `output`, and `history` for earlier turns, as LLaMA-Factory reads it.
- `sharegpt`: `conversations` with `from` and `value`, and `system`.
- `parquet`: the table itself, with soft labels, reasoning, teacher and ids.

The task's instructions are the system text, in front of that of a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.progress import report_progress
from distill_dagster.tables.messages import Message, format_messages, get_user_text

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import Task

DatasetFormat = Literal["openai", "trl", "alpaca", "sharegpt", "parquet"]
SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "tool": "observation"}

_Turn = dict[str, Any]
_Record = dict[str, Any]


def read_dataset_format(name: str) -> DatasetFormat:
    """The format with this name.

    Raises:
        DistillError: there is none.
    """
    known: tuple[DatasetFormat, ...] = get_args(DatasetFormat)
    for format in known:
        if format == name:
            return format
    raise DistillError(f"There is no format {name!r} of datasets. Use one of {', '.join(known)}.")


def write_dataset(task: Task, dataset: pl.DataFrame, format: DatasetFormat, folder: Path) -> list[Path]:
    """Write the rows of each split to `<folder>/<split>.jsonl`, or `.parquet`. The folder is created.

    Args:
        dataset: a table with the schema `DATASET`. The last turn of its `messages` is the answer.

    Returns:
        The files, train first. A split without rows has none.
    """
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split in ("train", "validation"):
        rows = dataset.filter(pl.col("split") == split)
        if rows.is_empty():
            continue
        if format == "parquet":
            path = folder / f"{split}.parquet"
            rows.write_parquet(path)
        else:
            path = folder / f"{split}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for number, record in enumerate(iter_records(task, rows, format)):
                    if number % 1000 == 0:
                        report_progress(f"writing {path.name}", number, rows.height)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        written.append(path)
    return written


def iter_records(task: Task, rows: pl.DataFrame, format: DatasetFormat) -> Iterator[_Record]:
    """The records of a text format, one for each row."""
    build = _BUILDERS[format]
    for messages in rows["messages"].to_list():
        yield build(task, messages)


def _build_turns(task: Task, messages: list[Message]) -> list[_Turn]:
    """The turns in OpenAI's form: one system turn, and calls of tools as `tool_calls`."""
    system = "\n\n".join([task.instructions, *(m["content"] or "" for m in messages if m["role"] == "system")])
    turns: list[_Turn] = [{"role": "system", "content": system}]
    turns += [_convert(message) for message in messages if message["role"] != "system"]
    if task.kind == "tool_call" and (calls := _read_calls(turns[-1]["content"])):
        turns[-1] = {"role": "assistant", "content": None, "tool_calls": calls}
    return turns


def _convert(message: Message) -> _Turn:
    turn: _Turn = {"role": message["role"], "content": message["content"]}
    if message["tool_calls"]:
        turn["tool_calls"] = json.loads(message["tool_calls"])
    for field in ("tool_call_id", "name"):
        if value := message[field]:
            turn[field] = value
    return turn


def _read_calls(content: str | None) -> list[_Turn]:
    """The calls that an answer of kind tool_call lists; none if it is the empty list, a refusal, or has reasoning."""
    try:
        calls = json.loads(content or "")
    except ValueError:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return []  # a refusal whose words happen to be JSON
    return [
        {
            "id": f"call_{hash_content([number, call])[:12]}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for number, call in enumerate(calls)
    ]


def _list_tools(task: Task) -> _Record:
    tools = [{"type": "function", "function": tool.model_dump()} for tool in task.tools]
    return {"tools": tools} if tools else {}


def _build_openai(task: Task, messages: list[Message]) -> _Record:
    return {"messages": _build_turns(task, messages)} | _list_tools(task)


def _build_trl(task: Task, messages: list[Message]) -> _Record:
    turns = _build_turns(task, messages)
    return {"prompt": turns[:-1], "completion": turns[-1:]} | _list_tools(task)


def _build_alpaca(task: Task, messages: list[Message]) -> _Record:
    """One prompt is `input`. Of a conversation with answers in between, the last one is, and the others `history`."""
    *prompt, answer = [message for message in messages if message["role"] != "system"]
    system = [message["content"] or "" for message in messages if message["role"] == "system"]
    record: _Record = {"instruction": "\n\n".join([task.instructions, *system])}
    pairs = _pair_turns(prompt)
    if pairs is None:
        return record | {"input": format_messages(prompt), "output": answer["content"]}
    *history, (last, _) = pairs
    return record | {"input": last, "output": answer["content"]} | ({"history": history} if history else {})


def _pair_turns(prompt: list[Message]) -> list[list[str]] | None:
    """Pairs of a user's text and the answer to it, the last without one. None if the turns do not alternate."""
    roles = [message["role"] for message in prompt]
    if all(role == "user" for role in roles):
        return [[get_user_text(prompt), ""]]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        return None
    texts = [message["content"] or "" for message in prompt] + [""]
    return [texts[place : place + 2] for place in range(0, len(texts), 2)]


def _build_sharegpt(task: Task, messages: list[Message]) -> _Record:
    system, *turns = _build_turns(task, messages)
    conversations = [part for turn in turns for part in _convert_to_sharegpt(turn)]
    tools = _list_tools(task)
    more = {"tools": json.dumps(tools["tools"], ensure_ascii=False)} if tools else {}
    return {"system": system["content"], "conversations": conversations} | more


def _convert_to_sharegpt(turn: _Turn) -> Iterator[dict[str, str]]:
    """A turn, with calls of tools as a turn of their own: a list of names with arguments, as LLaMA-Factory reads it."""
    calls = turn.get("tool_calls") or []
    if turn["content"] or not calls:
        yield {"from": SHAREGPT_ROLES[turn["role"]], "value": turn["content"] or ""}
    if calls:
        called = [{"name": one["function"]["name"], "arguments": _read_arguments(one)} for one in calls]
        yield {"from": "function_call", "value": json.dumps(called, ensure_ascii=False)}


def _read_arguments(call: _Turn) -> Any:
    """The arguments of a call as an object, or their text if that is no JSON."""
    arguments = call["function"]["arguments"]
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


_BUILDERS: dict[str, Callable[[Any, list[Message]], _Record]] = {
    "openai": _build_openai,
    "trl": _build_trl,
    "alpaca": _build_alpaca,
    "sharegpt": _build_sharegpt,
}


def count_by(dataset: pl.DataFrame, column: str) -> dict[str, int]:
    """How many rows have each value of a column, the most frequent first."""
    counts: Iterable[tuple[str, int]] = dataset[column].value_counts(sort=True).iter_rows()
    return {str(value): count for value, count in sorted(counts, key=lambda pair: (-pair[1], str(pair[0])))}
