"""Two processes that materialize different slices at the same time: no lock error, no lost row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import dagster as dg
import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from tests.e2e.project import GROUP, SEED_REQUESTS, TASK, Project
from tests.support.provider import FakeProvider
from tests.support.waiting import HANG_S, wait_until

ROUNDS = int(os.environ.get("DISTILL_TEST_ROUNDS", "2"))
EDIT_AND_BACKFILL = """
import sys, yaml, pathlib
from typer.testing import CliRunner
from distill_dagster.cli import app
folder, task, key, rounds = sys.argv[1:]
path = pathlib.Path(folder) / "slices" / f"{key}.yaml"
for n in range(int(rounds)):
    value = yaml.safe_load(path.read_text())
    value["seeds"].append(f"refund {n} of {key}")
    path.write_text(yaml.safe_dump(value))
    result = CliRunner().invoke(app, ["backfill", task, "--slice", key], catch_exceptions=False)
    assert result.exit_code == 0, result.output + result.stderr
"""


def test_two_processes_lose_nothing(project: Project, provider: FakeProvider) -> None:
    slices = ("shop", "web")
    before = project.stored_answers()
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    environment |= project.environment(PYTHONPATH=str(PROJECT_FOLDER))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EDIT_AND_BACKFILL, str(project.folder), TASK, key, str(ROUNDS)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for key in slices
    ]
    for process in processes:
        out, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, out
        assert "locked" not in out
    assert len(provider.requests) == 2 * 2 * ROUNDS
    assert project.stored_answers() == before + 2 * 2 * ROUNDS
    for key in slices:
        assert project.record("teacher_completions", key).rows == SEED_REQUESTS // 2 + 2 * ROUNDS
        assert project.record("scored_completions", key).rows == 6 + ROUNDS
    with project.instance() as instance:
        statuses = {run.status for run in instance.get_runs()}
        assert statuses == {dg.DagsterRunStatus.SUCCESS}
        for asset in GROUP:
            tags = instance.event_log_storage.get_latest_tags_by_partition(
                dg.AssetKey([TASK, asset]), dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
            )
            assert {key: tags[key]["dagster/data_version"] for key in slices} == {
                key: project.record(asset, key).data_version for key in slices
            }


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGHUP])
def test_a_command_that_waits_for_another_names_it_and_goes_on_once_that_dies(
    project: Project, provider: FakeProvider, end: signal.Signals
) -> None:
    """`SIGHUP` is what a process gets when its terminal is closed."""
    for key in ("shop", "web"):
        project.add_seeds(key, f"one more refund of {key}")
    answer = threading.Event()

    def hold(*_: object) -> None:
        answer.wait(HANG_S)

    provider.fail = hold
    logs = [project.root / "first.txt", project.root / "second.txt"]
    first = project.start("backfill", TASK, "--slice", "shop", log=logs[0])
    wait_until(lambda: provider.requests, "the first command to ask the teacher")
    second = project.start("backfill", TASK, "--slice", "web", log=logs[1])
    notice = f"teacher_completions[shop] of {TASK} is running in process {first.pid} (pool teacher)"
    wait_until(lambda: notice in logs[1].read_text(), "the second command to say whom it waits for")
    assert second.poll() is None
    first.send_signal(end)
    first.wait(HANG_S)
    answer.set()
    assert second.wait(HANG_S) == 0, logs[1].read_text()
    assert project.record("scored_completions", "web").rows == 7
