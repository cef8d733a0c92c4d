"""The server over HTTP: a stock OpenAI client, labels, errors, limits, keys, feedback and the end."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from distill_dagster.config import Task
from distill_dagster.intake.request_log import read_feedback
from tests.support.serving import KeywordRuntime, Running, serve
from tests.support.task import LABELS, write_small_task
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return write_small_task(tmp_path_factory.mktemp("task")).task


@pytest.fixture(scope="module")
def running(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(task, KeywordRuntime(LABELS), tmp_path_factory.mktemp("log"), max_body_kb=8) as server:
        yield server


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)


def test_a_stock_client_gets_a_label(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="shop_mail",
        messages=[
            {"role": "system", "content": "You sort mails about login."},
            {"role": "user", "content": [{"type": "text", "text": "where is my delivery"}]},
        ],
        temperature=0.7,
    )
    assert found.choices[0].message.content == "delivery"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len("where is my delivery")  # without the system message
    details: dict[str, Any] = found.model_extra["distill"]
    assert details == {"route": "student", "confidence": 0.9, "student": "tiny", "release": 3, "export": "adapter"}


def test_a_stock_client_streams_a_label(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "the login page"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "login"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


def test_completions_and_models(client: openai.OpenAI) -> None:
    found = client.completions.create(model="shop_mail/tiny", prompt=["a refund", "a delivery"])
    assert [choice.text for choice in found.choices] == ["refund", "delivery"]
    assert [model.id for model in client.models.list()] == ["shop_mail", "tiny", "shop_mail/tiny"]


def test_labels_have_probabilities(running: Running) -> None:
    found = running.client.post("/v1/classify", json={"input": ["login?", "a refund, unsure"]}).json()
    assert [one["label"] for one in found["data"]] == ["login", "refund"]
    assert [one["confidence"] for one in found["data"]] == [0.9, 0.4]
    assert all(sum(one["probs"].values()) == pytest.approx(1) for one in found["data"])


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"{", 400, None, "not valid JSON"),
        (b"[" * 5000, 400, None, "not valid JSON"),
        (b"\xff\xfe", 400, None, "not valid JSON"),
        (b"[1]", 400, None, "not a JSON object"),
        (b"{}", 400, "messages", "missing or empty"),
        (b'{"messages": [{"role": "user", "content": " "}]}', 400, "messages", "no user message"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            400,
            "messages",
            "last",
        ),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', 400, "messages[0].role", "developer"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "messages[0].content", "surrogate"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            400,
            "messages[0].content",
            "texts only",
        ),
        (b'{"n": 2, "messages": [{"role": "user", "content": "a"}]}', 400, "n", "one answer"),
        (b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "a"}]}', 404, "model", "'shop_mail'"),
        (b'{"messages": [{"role": "user", "content": "it is broken"}]}', 503, None, "this text breaks it"),
        (b'{"messages": [{"role": "user", "content": "' + b"a" * 9000 + b'"}]}', 413, None, "8 KiB"),
    ],
)
def test_what_cannot_be_answered_says_why(
    running: Running, body: bytes, status: int, param: str | None, words: str
) -> None:
    found = running.client.post("/v1/chat/completions", content=body)
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert error["type"]
    assert found.headers["x-request-id"]
    assert running.ask("a refund").status_code == 200  # and the server goes on


def test_a_body_without_a_length_is_limited_too(running: Running) -> None:
    def send() -> Iterator[bytes]:
        for _ in range(20):
            yield b"a" * 1000

    assert running.client.post("/v1/chat/completions", content=send()).status_code == 413


def test_headers_without_end_are_cut(running: Running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    endless = b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x-more: " + b"a" * 30_000_000
    with socket.create_connection((host, int(port)), timeout=30) as connection, pytest.raises(ConnectionError):
        connection.sendall(endless)
    big = {"x-more": "a" * 60_000}
    for _ in range(3):  # the limit is that of one request, not of the connection
        assert running.client.get("/health", headers=big).status_code == 200
    assert running.client.post("/v1/classify", json={"input": "login" + " x" * 3000}).status_code == 200


def test_other_addresses(running: Running) -> None:
    assert running.client.get("/v2").json()["error"]["code"] == "unknown_url"
    assert running.client.get("/v1/classify").status_code == 405


def test_the_id_of_a_request_is_the_clients_if_it_is_plain(running: Running) -> None:
    def ask(id_: str) -> str:
        headers = {"x-request-id": id_}
        body = {"messages": [{"role": "user", "content": "a refund"}]}
        found = running.client.post("/v1/chat/completions", json=body, headers=headers)
        assert found.json()["id"] == f"chatcmpl-{found.headers['x-request-id']}"
        return found.headers["x-request-id"]

    assert ask("order-17.b") == "order-17.b"
    assert ask("a b") != "a b"


def test_health_and_metrics(running: Running) -> None:
    before = running.read_metric("distill_answers_total")
    running.ask("a refund")
    assert running.read_metric("distill_answers_total") == before + 1
    state = running.client.get("/health").json()
    assert (state["status"], state["task"], state["release"], state["waiting"]) == ("ok", "shop_mail", 3, 0)


def test_requests_that_wait_share_a_batch_with_those_of_their_length(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, hold=threading.Event(), batch_size=3)
    texts = ["refund", "login" + " x" * 200, "refund a", "login" + " x" * 190, "refund ab", "delivery abc"]
    with serve(task, runtime, tmp_path) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.ask, "the first is alone")
        wait_until(lambda: len(runtime.batches) == 1, "the first request", 0.01)
        asked = []
        for number, text in enumerate(texts):
            asked.append(pool.submit(running.ask, text))
            wait_until(lambda n=number: running.server.answerer.batcher.waiting == n + 1, "a request", 0.01)  # type: ignore[misc]
        assert runtime.hold is not None
        runtime.hold.set()
        answers = [call.result().json()["choices"][0]["message"]["content"] for call in asked]
        assert first.result().status_code == 200
    assert answers == ["refund", "login", "refund", "login", "refund", "delivery"]
    assert [len(batch) for batch in runtime.batches] == [1, 3, 3]
    assert all(len(text) < 20 for text in runtime.batches[1])


def test_a_text_that_breaks_a_batch_costs_no_other_its_answer(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS)
    with serve(task, runtime, tmp_path) as running:
        found = [running.client.post("/v1/classify", json={"input": ["a refund", "login"]}).status_code]
        body = {"prompt": ["a refund", "broken"]}
        assert running.client.post("/v1/completions", json=body).status_code == 503
        with ThreadPoolExecutor(4) as pool:
            texts = ["refund one", "broken", "login two", "delivery three"]
            found += [answer.status_code for answer in pool.map(running.ask, texts)]
    assert found == [200, 200, 503, 200, 200]


def test_too_many_requests_are_refused_at_once(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, hold=threading.Event())
    with serve(task, runtime, tmp_path, max_waiting=2) as running, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(running.ask, "a refund")]
        wait_until(lambda: len(runtime.batches) == 1, "the first request", 0.01)
        calls += [pool.submit(running.ask, "a login") for _ in range(2)]
        wait_until(lambda: running.server.answerer.batcher.waiting == 2, "two requests", 0.01)
        refused = running.ask("one too many")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert runtime.hold is not None
        runtime.hold.set()
        assert [call.result().status_code for call in calls] == [200, 200, 200]


def test_an_answer_that_takes_too_long_is_a_timeout(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, hold=threading.Event())
    with serve(task, runtime, tmp_path, timeout_s=0.05) as running:
        assert running.ask("a refund").status_code == 504
        assert runtime.hold is not None
        runtime.hold.set()


def test_a_student_that_has_ended_is_started_again(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS)
    with serve(task, runtime, tmp_path) as running:
        runtime.close()
        assert running.ask("a refund").status_code == 200
        assert runtime.opened == 2
        assert running.read_metric("distill_student_restarts_total") == 1
        assert running.client.get("/health").status_code == 200


def test_whoever_looks_at_the_health_of_a_student_that_has_ended_starts_it_again(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS)
    with serve(task, runtime, tmp_path) as running:
        runtime.close()
        assert running.client.get("/health").status_code == 503
        wait_until(lambda: running.client.get("/health").status_code == 200, "a healthy server", 0.01)
        assert runtime.opened == 2


def test_a_request_under_way_is_answered_before_the_end(task: Task, tmp_path: Path) -> None:
    runtime = KeywordRuntime(LABELS, hold=threading.Event())
    with ThreadPoolExecutor(1) as pool:
        with serve(task, runtime, tmp_path) as running:
            call = pool.submit(httpx.post, f"{running.url}/v1/classify", json={"input": "login"}, timeout=30)
            wait_until(lambda: len(runtime.batches) == 1, "the request", 0.01)
            assert runtime.hold is not None
            threading.Timer(0.2, runtime.hold.set).start()  # after the server was asked to stop
        assert call.result().json()["data"][0]["label"] == "login"


def test_a_key_is_needed_where_one_is_set(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path, api_key="sésame") as running:
        assert running.ask("a refund").status_code == 401
        assert running.client.get("/metrics").status_code == 401
        assert running.client.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong").models.list()
        header = {"authorization": "Bearer sésame".encode(), "host": b"ours.example"}
        assert httpx.get(f"{running.url}/v1/models", headers=header).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"host": "localhost.evil.example:80"},
    ],
)
def test_pages_of_other_sites_are_refused_without_a_key(running: Running, headers: dict[str, str]) -> None:
    refused = running.client.post("/v1/classify", json={"input": "login"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_origin")
    assert running.client.get("/metrics", headers=headers).status_code == 403
    for own in ({"host": "[::1]:8000"}, {"host": "LOCALHOST", "origin": "http://localhost:3000"}):
        assert running.client.post("/v1/classify", json={"input": "login"}, headers=own).status_code == 200


def test_feedback_waits_for_a_person(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path, log_share=0.0) as running:
        given = running.ask("a refund to jane@example.org").json()["id"]
        note = "call me on +1 202-555-0143"
        said = running.client.post("/v1/feedback", json={"id": given, "answer": "login", "note": note})
        assert said.json()["status"] == "waits for review"
        assert running.client.post("/v1/feedback", json={"id": given, "right": True}).status_code == 200
        for body, words in [
            ({"id": "chatcmpl-unknown", "right": True}, "There is no answer"),
            ({"id": given, "answer": "weather"}, "no answer of this task"),
            ({"id": given}, "Neither right nor answer"),
            ({"right": True}, "id is missing"),
            ({"id": given, "right": "yes"}, "neither true nor false"),
        ]:
            refused = running.client.post("/v1/feedback", json=body)
            assert refused.status_code == 400
            assert words in refused.json()["error"]["message"]
    first, second = read_feedback(tmp_path)
    assert (first.is_right, first.answer, first.text) == (False, "login", "a refund to <EMAIL>")
    assert first.note is not None
    assert "<PHONE>" in first.note
    assert (second.is_right, second.answer, second.request_id) == (True, None, given.removeprefix("chatcmpl-"))


def test_feedback_names_one_of_several_texts_or_a_clients_own_id(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        labels = running.client.post("/v1/classify", json={"input": ["a refund", "a login"]}).json()
        ids = [labels["data"][1]["id"]]
        texts = running.client.post("/v1/completions", json={"prompt": ["a refund", "a delivery"]}).json()
        ids.append(texts["distill"][1]["id"])
        own = {"x-request-id": "chatcmpl-7"}
        ids.append(running.client.post("/v1/classify", json={"input": "refund"}, headers=own).headers["x-request-id"])
        for id_ in ids:
            assert running.client.post("/v1/feedback", json={"id": id_, "right": True}).status_code == 200
    assert [one.text for one in read_feedback(tmp_path)] == ["a login", "a delivery", "refund"]


def test_feedback_to_one_answer_is_limited(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dagster.serving.request_log.MAX_FEEDBACK", 2)
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        given = running.ask("a refund").json()["id"]
        body = {"id": given, "right": True}
        assert [running.client.post("/v1/feedback", json=body).status_code for _ in range(4)] == [200, 200, 400, 400]
    assert len(list(read_feedback(tmp_path))) == 2


def test_a_cut_connection_harms_no_other_request(running: Running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({"messages": [{"role": "user", "content": "a refund"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    for sent in (head % len(body) + body, head % (len(body) + 10) + body, head % 100, b"\x00\xff\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
        assert running.ask("a login").json()["choices"][0]["message"]["content"] == "login"
    wait_until(lambda: running.read_metric("distill_requests_in_flight") == 1, "only this request", 0.02)
    # Of these two the body was not complete. The first was answered before its end was seen, or not.
    cut = re.search(r'distill_requests_total{path="/v1/chat/completions",status="499"} (\d)', running.read_metrics())
    assert cut is not None
    assert cut[1] in ("2", "3")
