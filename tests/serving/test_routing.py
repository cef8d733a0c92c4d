"""Who answers: the student, the teacher below the threshold, the student again where the teacher does not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from distill_dagster.config import Task
from distill_dagster.core.errors import TeacherError
from distill_dagster.intake.request_log import LoggedRequest, read_request_log
from distill_dagster.release.routing.table import ExportRouting
from distill_dagster.serving.teacher import TeacherAnswer, UnansweredError
from distill_dagster.student.types import StudentPrompt
from tests.support.serving import KeywordRuntime, Running, serve
from tests.support.task import LABELS, write_small_task
from tests.support.waiting import HANG_S, wait_until

CERTIFIED = ExportRouting(0.8, "dev")


@dataclass
class ToldTeacher:
    """Answers every prompt with one label, or with an error."""

    answer_with: str = "delivery"
    error: TeacherError | None = None
    hold: threading.Event | None = None
    asked: list[str] = field(default_factory=list)
    closed: bool = False

    def answer(self, prompt: StudentPrompt) -> TeacherAnswer:
        self.asked.append(prompt.text)
        if self.hold is not None:
            self.hold.wait(30)
        if self.error is not None:
            raise self.error
        return TeacherAnswer(self.answer_with, 0.99, 100, 7)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return write_small_task(tmp_path_factory.mktemp("task")).task


def read_log(running: Running, count: int) -> list[LoggedRequest]:
    """The log, once it has this many requests."""
    wait_until(lambda: len(list(read_request_log(running.log))) >= count, f"{count} logged requests", 0.01)
    return list(read_request_log(running.log))


def test_below_the_threshold_the_teacher_answers(task: Task, tmp_path: Path) -> None:
    teacher = ToldTeacher()
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED) as running:
        kept, asked = running.ask("a refund"), running.ask("unsure, a login")
        [kept_row, asked_row] = read_log(running, 2)
    assert kept.json()["choices"][0]["message"]["content"] == "refund"
    assert kept.headers["x-distill-route"] == "student"
    assert asked.json()["choices"][0]["message"]["content"] == "delivery"
    assert asked.headers["x-distill-route"] == "teacher"
    assert asked.headers["x-distill-confidence"] == "0.4000"
    assert asked.json()["distill"] | {"student_answer": "login", "route": "teacher"} == asked.json()["distill"]
    assert asked.json()["usage"]["prompt_tokens"] == len("unsure, a login") + 100
    assert teacher.asked == ["unsure, a login"]
    assert teacher.closed
    assert (kept_row.route, kept_row.answer, kept_row.teacher_answer, kept_row.threshold) == (
        "student",
        "refund",
        None,
        0.8,
    )
    assert (asked_row.route, asked_row.answer, asked_row.student_answer) == ("teacher", "delivery", "login")
    assert (asked_row.student, asked_row.release, asked_row.export) == ("tiny", 3, "adapter")


def test_without_a_threshold_the_teacher_answers_everything(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path, ToldTeacher(), ExportRouting(None, "dev")) as running:
        assert running.ask("a refund").headers["x-distill-route"] == "teacher"


def test_without_a_teacher_the_student_answers_everything(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path, None, CERTIFIED) as running:
        assert running.ask("unsure, a login").headers["x-distill-route"] == "student"


def test_a_teacher_that_fails_is_not_asked_for_a_while(task: Task, tmp_path: Path) -> None:
    teacher = ToldTeacher(error=TeacherError("down"))
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED) as running:
        found = [running.ask(f"unsure, a login {n}") for n in range(3)]
        assert running.read_metric("distill_teacher_failures_total") == 3
    assert [one.json()["choices"][0]["message"]["content"] for one in found] == ["login"] * 3
    assert all(one.json()["distill"]["fallback_failed"] for one in found)
    assert len(teacher.asked) == 1


def test_why_a_teacher_failed_is_told_once(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = ToldTeacher(error=TeacherError("HTTP 500: no answer to 'I am jane@example.org'"))
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED) as running:
        for n in range(3):
            running.ask(f"unsure, a login {n}")
    assert caplog.text.count("HTTP 500: no answer to 'I am <EMAIL>'") == 1
    assert "jane" not in caplog.text


def test_after_a_pause_one_request_tries_the_teacher_alone(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_dagster.serving.teacher.PAUSE_S", 0.0)
    teacher = ToldTeacher(error=TeacherError("down"))
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED) as running, ThreadPoolExecutor(1) as pool:
        running.ask("unsure, a login")
        teacher.hold, teacher.error = threading.Event(), None
        trying = pool.submit(running.ask, "unsure, the second login")
        wait_until(lambda: len(teacher.asked) == 2, "the try", 0.01)
        assert running.ask("unsure, the third login").json()["distill"]["fallback_failed"]  # at once
        teacher.hold.set()
        assert trying.result().headers["x-distill-route"] == "teacher"
        assert running.ask("unsure, the fourth login").headers["x-distill-route"] == "teacher"
    assert len(teacher.asked) == 3


def test_a_teacher_that_may_take_longer_than_the_request_costs_no_answer(task: Task, tmp_path: Path) -> None:
    teacher = ToldTeacher(hold=threading.Event())
    assert teacher.hold is not None
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED, timeout_s=0.5) as running:
        found = running.ask("unsure, a login")
        teacher.hold.set()
    assert found.status_code == 200
    assert found.json()["distill"]["fallback_failed"]


def test_an_answer_that_is_none_does_not_stop_the_asking(task: Task, tmp_path: Path) -> None:
    teacher = ToldTeacher(error=UnansweredError("it refused"))
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED) as running:
        for n in range(2):
            assert running.ask(f"unsure, a login {n}").json()["distill"]["fallback_failed"]
    assert len(teacher.asked) == 2


def test_a_teacher_that_takes_too_long_costs_no_answer(task: Task, tmp_path: Path) -> None:
    teacher = ToldTeacher(hold=threading.Event())
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED, teacher_timeout_s=0.05) as running:
        assert running.ask("unsure, a login").json()["choices"][0]["message"]["content"] == "login"
        assert teacher.hold is not None
        teacher.hold.set()


def test_a_teacher_that_hangs_does_not_keep_the_server_from_its_end(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_dagster.serving.teacher.STOP_S", 0.05)
    teacher = ToldTeacher(hold=threading.Event())
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED, teacher_timeout_s=0.05) as running:
        running.ask("unsure, a login")
    assert teacher.closed
    assert teacher.hold is not None
    assert not teacher.hold.is_set()
    teacher.hold.set()


def test_a_shadow_that_hangs_does_not_keep_the_server_from_its_end(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("teacher", "answering"):
        monkeypatch.setattr(f"distill_dagster.serving.{module}.STOP_S", 0.05)
    teacher = ToldTeacher(hold=threading.Event())
    assert teacher.hold is not None
    with serve(task, KeywordRuntime(LABELS), tmp_path, teacher, CERTIFIED, 1.0, teacher_timeout_s=3600) as running:
        assert running.ask("a refund").status_code == 200
    assert not teacher.hold.is_set()
    teacher.hold.set()
    [row] = read_request_log(tmp_path)
    assert (row.answer, row.shadowed) == ("refund", False)


def test_more_calls_than_slots_wait_for_one(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dagster.serving.teacher.WIDTH", 2)
    teacher = ToldTeacher(hold=threading.Event())
    assert teacher.hold is not None
    runtime = KeywordRuntime(LABELS)
    with serve(task, runtime, tmp_path, teacher, CERTIFIED) as running, ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(running.ask, f"unsure, a login {n}") for n in range(5)]
        wait_until(lambda: sum(map(len, runtime.batches)) == 5, "the student's answers", 0.01)
        wait_until(lambda: len(teacher.asked) == 2, "two calls", 0.01)
        teacher.hold.set()
        assert [call.result().headers["x-distill-route"] for call in calls] == ["teacher"] * 5


def test_a_client_that_hangs_up_costs_no_teacher(task: Task, tmp_path: Path) -> None:
    teacher, runtime = ToldTeacher(), KeywordRuntime(LABELS, hold=threading.Event())
    assert runtime.hold is not None
    with serve(task, runtime, tmp_path, teacher, CERTIFIED) as running:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/classify", json={"input": ["unsure", "unsure too"]}, timeout=0.5)
        wait_until(lambda: 'status="499"' in running.read_metrics(), "the end of the request", 0.01)
        runtime.hold.set()
        assert running.ask("a refund").status_code == 200
    assert teacher.asked == []


def test_a_share_of_what_the_student_keeps_is_shadowed(task: Task, tmp_path: Path) -> None:
    teacher, draws = ToldTeacher(), iter([0.05, 0.5, 0.5, 0.5] * 10)
    lock = threading.Lock()

    def chance() -> float:
        with lock:
            return next(draws)

    runtime = KeywordRuntime(LABELS)
    with serve(task, runtime, tmp_path, teacher, CERTIFIED, 0.1, chance=chance, log_share=0.2) as running:
        assert running.ask("a refund").headers["x-distill-route"] == "student"  # drawn: 0.05 < 0.1
        [row] = read_log(running, 1)
        assert running.ask("a login").headers["x-distill-route"] == "student"
        assert running.read_metric("distill_shadows_total") == 1
    assert teacher.asked == ["a refund"]
    assert (row.shadowed, row.answer, row.teacher_answer, row.sampled) == (True, "refund", "delivery", False)


def test_a_conversation_is_logged_masked_and_with_its_slice(task: Task, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "I am jane@example.org"},
        {"role": "assistant", "content": "Hello jane@example.org"},
        {"role": "user", "content": "a refund"},
    ]
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        running.client.post("/v1/chat/completions", json={"messages": messages, "metadata": {"slice": "web"}})
        [row] = read_log(running, 1)
    assert row.text == "I am <EMAIL>\na refund"
    assert row.messages is not None
    assert [turn["content"] for turn in row.messages] == ["I am <EMAIL>", "Hello <EMAIL>", "a refund"]
    assert row.slice == "web"


def test_what_a_client_calls_a_slice_is_logged_only_if_it_is_one(task: Task, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a refund"}]
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        for name in ("jane@example.org", "../web", "web-1"):
            running.client.post("/v1/chat/completions", json={"messages": messages, "metadata": {"slice": name}})
        rows = read_log(running, 3)
    assert [row.slice for row in rows] == [None, None, "web-1"]


@pytest.mark.parametrize("together", [False, True])
def test_a_full_disk_costs_neither_old_logs_nor_the_end(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, together: bool
) -> None:
    """Each line that is lost is counted, also if lines are written `together`."""
    answered = threading.Event()
    old = tmp_path / "requests-2026.jsonl"
    old.write_text("{}\n")

    def open_full(path: Path) -> BinaryIO:
        if together:
            answered.wait(HANG_S)
        path.touch()
        return Path("/dev/full").open("ab")

    monkeypatch.setattr("distill_dagster.serving.request_log._create_file", open_full)
    with serve(task, KeywordRuntime(LABELS), tmp_path, log_files=3) as running:
        for n in range(5):
            assert running.ask(f"a refund {n}").status_code == 200
        answered.set()
        wait_until(lambda: running.read_metric("distill_log_failures_total") == 5, "five failures", 0.01)
    assert old.exists()
    assert caplog.text.count("requests are not logged: No space left on device") == 1


def test_log_files_are_limited(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path, log_file_mb=0.0005, log_files=2) as running:
        for n in range(6):
            running.ask(f"a refund {n}")
    files = sorted(tmp_path.glob("requests-*.jsonl"))
    assert len(files) == 2
    assert [row.text for row in read_request_log(tmp_path)][-1] == "a refund 5"
    assert all(path.stat().st_size <= 0.0005 * 2**20 for path in files)


def test_what_a_killed_process_left_is_ignored(task: Task, tmp_path: Path) -> None:
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        running.ask("a refund")
    [path] = tmp_path.glob("requests-*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"id": "torn')
    assert [row.text for row in read_request_log(tmp_path)] == ["a refund"]


def test_what_is_remembered_for_feedback_is_limited(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_dagster.serving.request_log.REMEMBERED_CHARS", 100)
    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        ids = [running.ask(text).json()["id"] for text in ("a refund " + "x" * 80, "a login " + "x" * 80)]
        found = [running.client.post("/v1/feedback", json={"id": id_, "right": True}).status_code for id_ in ids]
    assert found == [400, 200]


def test_a_proxy_spreads_requests_and_falls_back(task: Task, tmp_path: Path) -> None:
    """LiteLLM's router, as docs/serving.md shows it: a server that is down costs no answer."""
    import litellm

    def deploy(name: str, url: str) -> dict[str, object]:
        return {
            "model_name": name,
            "litellm_params": {"model": "openai/shop_mail", "api_base": url, "api_key": "unused"},
        }

    with serve(task, KeywordRuntime(LABELS), tmp_path) as running:
        down, up = "http://127.0.0.1:9/v1", f"{running.url}/v1"
        router = litellm.Router(
            [deploy("shop_mail", down), deploy("teacher", up)], fallbacks=[{"shop_mail": ["teacher"]}], num_retries=0
        )
        found = router.completion("shop_mail", [{"role": "user", "content": "a login"}])
    assert found.choices[0].message.content == "login"
