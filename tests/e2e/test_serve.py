"""`distill serve` as a process: a stock OpenAI client, the teacher, the log, and a clean end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import openai

from distill_dagster.core.paths import Home
from distill_dagster.intake.request_log import read_request_log
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.release.routing.table import ExportRouting
from tests.e2e.project import TASK, Project
from tests.support.provider import FakeProvider, Fault
from tests.support.releases import write_adapter_release
from tests.support.waiting import wait_until


def release(project: Project, routing: ExportRouting | None) -> Home:
    home = Home(project.home, project.root / "tasks")
    adapter = project.lake.get_folder(TASK, "student_adapter", "one")
    write_adapter_release(home, build_task_folder(project.folder), "one", adapter, routing)
    return home


def test_a_stock_client_is_answered_by_student_and_teacher(
    project: Project, provider: FakeProvider, tmp_path: Path
) -> None:
    home = release(project, ExportRouting(None, "dev"))
    log = tmp_path / "serve.log"
    process = project.start("serve", TASK, "--port", "0", log=log)
    try:
        wait_until(lambda: "It answers on" in log.read_text() or process.poll() is not None, "the server starts")
        said = log.read_text()
        assert process.poll() is None, said
        assert "release 1 of one, export adapter" in said
        assert "The teacher answers everything" in said
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address is not None
        assert f"curl {address.group()}/v1/chat/completions" in said
        client = openai.OpenAI(base_url=f"{address.group()}/v1", api_key="unused", max_retries=0)

        def ask(text: str) -> openai.types.chat.ChatCompletion:
            return client.chat.completions.create(model=TASK, messages=[{"role": "user", "content": text}])

        found = ask("my delivery went to jane@example.org")
        assert found.choices[0].message.content == "delivery"
        assert (found.model_extra or {})["distill"]["route"] == "teacher"
        assert provider.texts[-1] == "my delivery went to jane@example.org"
        provider.fail = lambda *_: Fault(status=500)
        found = ask("a login by mail to somebody")
        assert (found.model_extra or {})["distill"]["route"] == "student"
        assert found.choices[0].message.content in ("refund", "delivery", "login")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert "The server has stopped." in log.read_text()
    rows = list(read_request_log(home.requests / TASK))
    assert [row.text for row in rows] == ["my delivery went to <EMAIL>", "a login by mail to somebody"]
    assert [row.route for row in rows] == ["teacher", "student"]


def test_what_cannot_be_served_says_why(project: Project) -> None:
    nothing = project.distill("serve", TASK)
    assert nothing.code == 1
    assert "has no release yet" in nothing.err
    home = release(project, None)
    for arguments, words in [
        (("--release", "7"), "has no release 7"),
        (("--export", "onnx"), "no export 'onnx'"),
        (("--host", "0.0.0.0"), "DISTILL_API_KEY is not set"),
    ]:
        refused = project.distill("serve", TASK, *arguments)
        assert refused.code == 1
        assert words in refused.err
    changed = home.releases / TASK / "1" / "student.json"
    changed.chmod(0o644)
    changed.write_text("{}")
    assert "student.json was changed" in project.distill("serve", TASK).err
