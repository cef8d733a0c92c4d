"""The dataset in other formats, loaded back with `datasets`, and given to TRL and to a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest

from distill_dagster.config import Task
from distill_dagster.release.dataset_formats import DatasetFormat, count_by, iter_records, write_dataset
from distill_dagster.tables.messages import Message, append_answer, make_message
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.kinds import build_task

ASK, ANSWER = make_message("user", "Where is “my” parcel?"), "delivery"
CHAT = [
    make_message("system", "Be short."),
    make_message("user", "Hello"),
    make_message("assistant", "Hi"),
    make_message("user", "Where is it?"),
]


def dataset(*rows: tuple[list[Message], str], splits: str = "tv") -> pl.DataFrame:
    names = {"t": "train", "v": "validation"}
    return build_frame(
        [
            dict.fromkeys(DATASET)
            | {"prompt_id": f"p{n}", "slice": "a", "messages": append_answer(messages, answer), "teacher": "x"}
            | {"answer": json.dumps(answer), "split": names[splits[n % len(splits)]]}
            for n, (messages, answer) in enumerate(rows)
        ],
        DATASET,
        ("prompt_id",),
    )


def write(task: Task, rows: pl.DataFrame, format: DatasetFormat, folder: Path) -> list[dict[str, Any]]:
    """Write the rows and load them back with `datasets`."""
    import datasets

    files = write_dataset(task, rows, format, folder)
    loader = "parquet" if format == "parquet" else "json"
    loaded = datasets.load_dataset(
        loader, data_files={file.stem: str(file) for file in files}, cache_dir=str(folder / "cache")
    )
    assert {name: part.num_rows for name, part in loaded.items()} == count_by(rows, "split")
    return list(loaded["train"])


@pytest.mark.parametrize("format", get_args(DatasetFormat))
def test_every_format_is_loaded_back_and_keeps_the_answer(format: DatasetFormat, tmp_path: Path) -> None:
    task = build_task("classification", instructions="Sort it.")
    rows = dataset(([ASK], ANSWER), ([ASK], "refund"))
    [record] = write(task, rows, format, tmp_path)
    text = json.dumps(record, ensure_ascii=False, default=str)
    assert "Where is “my” parcel?" in text
    assert ANSWER in text
    assert ("Sort it." in text) == (format != "parquet")
    assert "refund" not in text


def test_a_conversation_keeps_its_turns(tmp_path: Path) -> None:
    task = build_task("conversation", instructions="Help.")
    rows = dataset((CHAT, "In Porto."), splits="t")
    [openai] = write(task, rows, "openai", tmp_path / "openai")
    assert [turn["role"] for turn in openai["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert openai["messages"][0]["content"] == "Help.\n\nBe short."
    [trl] = write(task, rows, "trl", tmp_path / "trl")
    assert trl["completion"] == [{"role": "assistant", "content": "In Porto."}]
    [alpaca] = write(task, rows, "alpaca", tmp_path / "alpaca")
    assert alpaca == {
        "instruction": "Help.\n\nBe short.",
        "input": "Where is it?",
        "output": "In Porto.",
        "history": [["Hello", "Hi"]],
    }
    [sharegpt] = write(task, rows, "sharegpt", tmp_path / "sharegpt")
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["human", "gpt", "human", "gpt"]


def test_calls_of_tools_are_openais(tmp_path: Path) -> None:
    task = build_task("tool_call")
    answer = json.dumps([{"name": "find_order", "arguments": {"number": 7}}])
    rows = dataset(([ASK], answer), splits="t")
    [record] = write(task, rows, "openai", tmp_path / "openai")
    [call] = record["messages"][-1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"number": 7}
    assert [tool["function"]["name"] for tool in record["tools"]] == ["find_order", "open_ticket"]
    [shared] = write(task, rows, "sharegpt", tmp_path / "sharegpt")
    assert shared["conversations"][-1] == {"from": "function_call", "value": answer}
    for words in ("I cannot help.", "null", '{"name": "find_order"}', "[7]"):
        [refused] = iter_records(task, dataset(([ASK], words), splits="t"), "openai")
        assert refused["messages"][-1]["content"] == words
    none = dataset(([ASK], "[]"), splits="t")
    [record] = write(task, none, "openai", tmp_path / "none")
    assert record["messages"][-1]["content"] == "[]"


def test_calls_within_a_conversation_are_kept(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": '{"number": 7}'}}
    called = make_message("assistant", None) | {"tool_calls": json.dumps([call])}
    found = make_message("tool", "in Porto") | {"tool_call_id": "c1"}
    rows = dataset(([ASK, called, found], "It is in Porto."), splits="t")
    task = build_task("conversation", instructions="Help.")
    [openai] = write(task, rows, "openai", tmp_path / "openai")
    assert openai["messages"][2]["tool_calls"][0]["function"]["name"] == "find_order"
    assert openai["messages"][3]["tool_call_id"] == "c1"
    [sharegpt] = write(task, rows, "sharegpt", tmp_path / "sharegpt")
    turns = sharegpt["conversations"]
    assert [turn["from"] for turn in turns] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(turns[1]["value"]) == [{"name": "find_order", "arguments": {"number": 7}}]


def test_trl_trains_on_the_completion_of_its_format(tmp_path: Path) -> None:
    import trl
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    from tests.support.tiny_model import write_tiny_model

    model = write_tiny_model(tmp_path / "model", layers=1, size=16)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    files = write_dataset(
        build_task("classification", instructions="Sort."), dataset(([ASK], ANSWER), splits="t"), "trl", tmp_path
    )
    rows = load_dataset("json", data_files=[str(file) for file in files], cache_dir=str(tmp_path / "c"), split="train")
    arguments = trl.SFTConfig(output_dir=str(tmp_path / "out"), max_steps=1, report_to=[], use_cpu=True, bf16=False)
    trainer = trl.SFTTrainer(str(model), arguments, train_dataset=rows, processing_class=tokenizer)
    [prepared] = list(trainer.train_dataset)
    learned = [token for token, label in zip(prepared["input_ids"], prepared["labels"], strict=True) if label != -100]
    assert ANSWER in tokenizer.decode(learned)
    assert "parcel" not in tokenizer.decode(learned)
