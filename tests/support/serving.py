"""A student whose answers a test knows, and a server of it on a loopback port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from distill_dagster.config import InboxSpec, ServingSpec, Task
from distill_dagster.core.errors import ModelError
from distill_dagster.kinds import get_kind
from distill_dagster.release.routing.table import ExportRouting
from distill_dagster.release.runtimes.types import StudentAnswer
from distill_dagster.serving.answering import Answerer
from distill_dagster.serving.app import StudentServer
from distill_dagster.serving.batching import StudentBatcher
from distill_dagster.serving.metrics import ServerMetrics
from distill_dagster.serving.model import ServedModel
from distill_dagster.serving.request_log import RequestLog
from distill_dagster.serving.run import build_uvicorn, open_listener
from distill_dagster.serving.teacher import Teacher, TeacherGate
from distill_dagster.student.types import StudentPrompt
from tests.support.waiting import wait_until


@dataclass
class KeywordRuntime:
    """Answers with the label whose name is in the text: with confidence 0.9, or 0.4 if the text says `unsure`.

    A text with `broken` cannot be answered. With `written`, every answer is written instead, in pieces.
    """

    labels: Sequence[str]
    name: str = "adapter"
    batch_size: int = 4
    concurrency: int = 1
    pause_s: float = 0.0
    written: str | None = None
    hold: threading.Event | None = None
    """If set, a call waits for it."""
    batches: list[list[str]] = field(default_factory=list)
    opened: int = 0
    closed_streams: int = 0
    _alive: bool = False

    def open(self) -> None:
        self.opened += 1
        self._alive = True

    def close(self) -> None:
        self._alive = False

    def is_alive(self) -> bool:
        return self._alive

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        texts = [prompt.text for prompt in prompts]
        self.batches.append(texts)
        if self.hold is not None:
            assert self.hold.wait(30)
        time.sleep(self.pause_s)
        if any("broken" in text for text in texts):
            raise ModelError("this text breaks it")
        return [self._answer(text) for text in texts]

    def _answer(self, text: str) -> StudentAnswer:
        if self.written is not None:
            return StudentAnswer(self.written, self.written, None, None, len(text), len(self.written))
        label = next((label for label in self.labels if label in text), self.labels[0])
        confidence = 0.4 if "unsure" in text else 0.9
        rest = (1 - confidence) / (len(self.labels) - 1)
        probs = {name: confidence if name == label else rest for name in self.labels}
        return StudentAnswer(label, label, confidence, probs, len(text), 1)

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        [answer] = self.answer([prompt])
        try:
            for start in range(0, len(answer.raw_text), 3):
                time.sleep(self.pause_s)
                yield answer.raw_text[start : start + 3]
            yield answer
        finally:
            self.closed_streams += 1


@dataclass(frozen=True)
class Running:
    """A server that takes requests."""

    url: str
    server: StudentServer
    client: httpx.Client
    log: Path

    def ask(self, text: str, **more: Any) -> httpx.Response:
        body = {"model": "shop_mail", "messages": [{"role": "user", "content": text}]} | more
        return self.client.post("/v1/chat/completions", json=body)

    def read_metrics(self) -> str:
        return self.client.get("/metrics").text

    def read_metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.read_metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def serve(
    task: Task,
    runtime: KeywordRuntime,
    log: Path,
    teacher: Teacher | None = None,
    routing: ExportRouting | None = None,
    shadow_share: float = 0.0,
    api_key: str | None = None,
    chance: Callable[[], float] = lambda: 0.5,
    **spec: Any,
) -> Iterator[Running]:
    """Serve until the block ends, as `distill serve` does."""
    serving, metrics = ServingSpec(**spec), ServerMetrics()
    runtime.open()
    batcher = StudentBatcher(runtime, serving.max_waiting, metrics)
    gate = TeacherGate(teacher, serving.teacher_timeout_s) if teacher is not None else None
    kind = get_kind(task)
    routing = routing or ExportRouting(0.0, "task.yaml")
    answerer = Answerer(batcher, kind, runtime.written is None, metrics, routing, gate, shadow_share, chance)
    model = ServedModel("shop_mail", "tiny", 3, runtime.name, kind, runtime.written is None, 1_790_000_000)
    request_log = RequestLog(log, serving, InboxSpec(), metrics, chance)
    server = StudentServer(model, answerer, serving, metrics, request_log, api_key)
    addresses: list[str] = []
    with open_listener("127.0.0.1", 0) as listener:
        running = build_uvicorn(server, listener, addresses.append)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: bool(addresses), "the server takes requests", 0.01)
        try:
            with httpx.Client(base_url=addresses[0], timeout=30) as client:
                yield Running(addresses[0], server, client, log)
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server does not stop"
