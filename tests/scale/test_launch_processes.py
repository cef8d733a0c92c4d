"""`--launch` with the real daemon, queue and a process per run: Ctrl-C leaves the runs, and all is made once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from distill_dagster.core.paths import Home
from distill_dagster.orchestration.launcher import SUBMITTED_STATUSES, get_workspace_path
from tests.e2e.project import GROUP, STUDENT_ASSETS, TASK, Project, create_project
from tests.e2e.test_ui_process import RunningUi
from tests.support.provider import FakeProvider
from tests.support.waiting import HANG_S, wait_until

pytestmark = [pytest.mark.scale, pytest.mark.slow]


@pytest.fixture
def project(provider: FakeProvider, tmp_path: Path) -> Iterator[Project]:
    """A task that was never run, in a running UI."""
    made = create_project(tmp_path, provider.url)
    ui = RunningUi(made)
    try:
        wait_until(ui.is_ready, "the UI")
        yield made
    finally:
        ui.process.send_signal(signal.SIGTERM)
        ui.process.wait(HANG_S)
    assert not get_workspace_path(Home(made.home, made.root / "tasks")).exists(), "nobody answers there any more"


def test_an_interrupted_command_leaves_its_runs_and_the_next_one_finishes(
    project: Project, provider: FakeProvider
) -> None:
    log = project.root / "backfill.txt"
    first = project.start("backfill", TASK, "--launch", log=log)
    wait_until(lambda: first.poll() is not None or _count_runs(project), "a launched run")
    first.send_signal(signal.SIGINT)
    assert first.wait(HANG_S) == 130, log.read_text()
    assert "in Dagster: nothing was cancelled" in log.read_text()
    assert "distill/campaign=" in log.read_text()

    second = project.start("refresh", TASK, "--launch", "--json", log=project.root / "refresh.txt")
    assert second.wait(HANG_S) == 0, (project.root / "refresh.txt").read_text()
    for asset in GROUP:
        assert {project.record(asset, key).missing_rows for key in project.slices()} == {0}
    for asset in STUDENT_ASSETS:
        project.record(asset, "one")
    assert len(provider.requests) == project.stored_answers(), "no answer was asked for twice"


def _count_runs(project: Project) -> int:
    with project.instance() as instance:
        return instance.get_runs_count(dg.RunsFilter(statuses=SUBMITTED_STATUSES))
