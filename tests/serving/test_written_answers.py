"""Answers that a student writes: parsed, streamed in pieces, stopped when the client goes, and calls of tools."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from distill_dagster.serving.protocol import read_chat_request
from distill_dagster.serving.streaming import PieceReader
from distill_dagster.student.types import TaskSettings
from tests.support.kinds import ANSWERS, build_task
from tests.support.serving import KeywordRuntime, serve
from tests.support.task import LABELS
from tests.support.waiting import wait_until

REASONED = "Reasoning: 3 + 4 = 7, Answer is near.\nAnswer: 7"


def test_a_written_answer_is_read_as_predictions_are(tmp_path: Path) -> None:
    task = build_task("math", reasoning=True)
    with serve(task, KeywordRuntime(LABELS, written=REASONED), tmp_path) as running:
        found = running.ask("Ana has 3 pens and buys 4.").json()
        assert running.client.post("/v1/classify", json={"input": "a"}).json()["error"]["code"] == "no_labels"
    message = found["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("7", "3 + 4 = 7, Answer is near.")
    assert found["distill"]["confidence"] is None


def test_a_stock_client_streams_a_written_answer(tmp_path: Path) -> None:
    with serve(build_task("math", reasoning=True), KeywordRuntime(LABELS, written=REASONED), tmp_path) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        chunks = list(
            client.chat.completions.create(
                model="shop_mail", messages=[{"role": "user", "content": "3 and 4?"}], stream=True
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "7"
    thoughts = [str((delta.model_extra or {}).get("reasoning_content") or "") for delta in deltas]
    assert "".join(thoughts) == "3 + 4 = 7, Answer is near."
    assert sum(map(bool, thoughts)) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_client_that_goes_stops_the_writing(tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, written="Answer: " + "word " * 2000, pause_s=0.002)
    with serve(build_task("qa"), runtime, tmp_path) as running:
        body = {"messages": [{"role": "user", "content": "Where?"}], "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=30) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number == 6:
                    break
        wait_until(lambda: runtime.closed_streams == 1, "the writing ends", 0.01)
        assert running.read_metric("distill_answers_total") == 0  # it was not written to its end


def test_streams_that_wait_for_their_turn_are_limited(tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, written="Answer: x", hold=threading.Event())
    body = {"messages": [{"role": "user", "content": "Where?"}], "stream": True}

    def ask() -> httpx.Response:
        return httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=30)

    with serve(build_task("qa"), runtime, tmp_path, max_waiting=1) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask)
        wait_until(lambda: len(runtime.batches) == 1, "the first stream", 0.01)
        second = pool.submit(ask)
        wait_until(lambda: running.server.answerer.batcher.waiting == 1, "the second stream", 0.01)
        assert ask().status_code == 429
        assert runtime.hold is not None
        runtime.hold.set()
        assert first.result().text.endswith("data: [DONE]\n\n")
        assert second.result().text.endswith("data: [DONE]\n\n")


def test_a_stream_that_fails_says_so(tmp_path: Path) -> None:
    with serve(build_task("qa"), KeywordRuntime(LABELS, written="Answer: x"), tmp_path) as running:
        body = {"messages": [{"role": "user", "content": "broken"}], "stream": True}
        text = running.client.post("/v1/chat/completions", json=body).text
    last = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")][-1]
    assert "this text breaks it" in last["error"]["message"]
    assert "[DONE]" not in text


def test_tool_calls_have_the_clients_form(tmp_path: Path) -> None:
    written = f"Answer: {json.dumps(ANSWERS['tool_call'])}"
    with serve(build_task("tool_call"), KeywordRuntime(LABELS, written=written), tmp_path) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        found = client.chat.completions.create(
            model="shop_mail", messages=[{"role": "user", "content": "Where is order 7?"}]
        )
    [call] = found.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("find_order", {"number": 7})
    assert found.choices[0].finish_reason == "tool_calls"


def test_tools_of_a_client_that_are_the_tasks_change_no_prompt() -> None:
    """A client sends its tools with every request, in an order of its own. The student reads those of its training."""
    own = TaskSettings.from_task(build_task("tool_call")).tools
    assert own is not None

    def read(tools: Any, of_task: str | None = own) -> str | None:
        body = {"messages": [{"role": "user", "content": "Where is order 7?"}], "tools": tools}
        return read_chat_request(body, False, of_task).prompt.tools

    listed = json.loads(own)
    turned = [{name: tool[name] for name in reversed(tool)} for tool in reversed(listed)]
    assert json.dumps(turned) != json.dumps(listed)
    assert [read(tools) for tools in (listed, turned, None, [])] == [None] * 4
    assert json.loads(read(listed[:1]) or "") == listed[:1], "others than the task's are read"
    assert read(listed, None) is None, "a student without tools was trained without any"


def test_what_is_no_answer_reaches_the_client_as_text(tmp_path: Path) -> None:
    with serve(build_task("math"), KeywordRuntime(LABELS, written="Answer: who knows"), tmp_path) as running:
        found = running.ask("3 and 4?").json()
    assert found["choices"][0]["message"]["content"] == "who knows"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        (REASONED, "3 + 4 = 7, Answer is near.", "7"),
        ("Answer: seven", "", "seven"),
        ("Answers differ", "", "Answers differ"),
        ("seven", "", "seven"),
        ("Reasoning: cut at its end\nAnsw", "cut at its end\nAnsw", ""),
        ("", "", ""),
    ],
)
def test_pieces_of_any_size_are_divided_alike(size: int, text: str, reasoning: str, content: str) -> None:
    reader, found = PieceReader(), {"reasoning_content": "", "content": ""}
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for piece, is_last in [*((piece, False) for piece in pieces), ("", True)]:
        for delta in reader.read(piece, is_last):
            for field, value in delta.items():
                found[field] += value
    assert found == {"reasoning_content": reasoning, "content": content}
