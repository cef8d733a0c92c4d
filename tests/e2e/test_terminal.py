"""What a person sees on a terminal of 80 columns, through a real pty."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from tests.e2e.project import HELD_OUT_REQUESTS, SEED_REQUESTS, TASK, Project, create_project
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS
from tests.support.terminal import Terminal, distill_command

HELD_AFTER = 10


class HeldProvider(FakeProvider):
    """A teacher that answers some requests and then none, until `release` is set: time to look at the screen."""

    def __init__(self) -> None:
        super().__init__(LABELS)
        self.release = threading.Event()
        self.fail = self._hold

    def _hold(self, _: ReceivedRequest, __: int) -> Fault | None:
        if len(self.requests) > HELD_AFTER:
            self.release.wait()
        return None


@pytest.fixture
def held() -> Iterator[HeldProvider]:
    with HeldProvider() as provider:
        yield provider
        provider.release.set()


@pytest.fixture
def paid(held: HeldProvider, tmp_path: Path) -> Project:
    """A task that was never run, with a teacher that has a price and answers one request at a time."""
    teacher = {"price": {"input_usd": 1000, "output_usd": 1000}, "concurrency": 1}
    return create_project(tmp_path / "paid", held.url, teacher=teacher)


def open_terminal(project: Project, *arguments: str, stdout: Path | None = None) -> Terminal:
    environment = project.environment(PYTHONPATH=str(PROJECT_FOLDER))
    return Terminal(distill_command(*arguments), environment, project.root, stdout=stdout)


def test_progress_on_80_columns(paid: Project, held: HeldProvider) -> None:
    paid.change_task(students={"one": {"epochs": 8}})  # long enough for its progress to be drawn
    with open_terminal(paid, "run", TASK) as terminal:
        screen = terminal.wait_for(lambda s: re.search(rf"{HELD_AFTER}/\d+ .* left", s), "some answers and a rate")
        lines = screen.splitlines()
        assert re.search(r"step \d+ of 15  golden_completions +0:\d\d$", lines[-3])
        assert re.fullmatch(r"  asking the teacher ━+[╸╺]━+ 10/24 [\d.]+/(s|min) \d+:\d\d left", lines[-2])
        assert re.fullmatch(r"  \d+ of about \d+ tokens · \$\d\.\d\d of about \$\d\.\d\d", lines[-1].replace(",", ""))
        assert sum("asking the teacher" in line for line in lines) == 1, "an old frame was left on the screen"
        held.release.set()
        assert terminal.wait() == 0
        shown = terminal.everything
        assert re.search(rb"training student.*\d+/\d+.*loss \d\.\d\d\d", terminal.raw)
    made = [line for line in shown.splitlines() if line.startswith("✓")]
    assert [int(line.split()[1].split("/")[0]) for line in made] == list(range(1, 16))
    assert all(line.split()[1].endswith("/15") for line in made)
    adapter = next(line for line in made if "student_adapter[one]" in line)
    assert re.search(r" loss \d\.\d\d\d$", adapter)
    assert "asking the teacher" not in shown, "a frame of the live display was left behind"
    assert "Traceback" not in shown
    assert "Warning" not in shown
    kept = list((paid.home / "instance" / "storage").rglob("*.complete"))
    assert len(kept) >= 5, "what steps write is in files, which the UI shows"
    total = " ".join(shown.split())
    requests = SEED_REQUESTS + HELD_OUT_REQUESTS
    assert re.search(rf"Total: 15 artifacts made in .*, {requests} requests sent, 0 answered by the store, ", total)
    assert re.search(r"tokens, \$\d\.\d\d Next: `distill report shop_mail --open` ", total)


def test_ctrl_c_says_what_is_kept_and_nothing_is_asked_again(paid: Project, held: HeldProvider) -> None:
    with open_terminal(paid, "run", TASK) as terminal:
        terminal.wait_for(lambda s: f"{HELD_AFTER}/24" in s, "some answers")
        terminal.press("\x03")
        assert terminal.wait() == 130
        shown = " ".join(terminal.everything.split())
    assert "interrupted" in shown
    assert "no answer that arrived is paid for again" in shown
    assert "The same command continues." in shown
    assert "Traceback" not in shown
    assert "orphan" not in shown
    stored = paid.stored_answers()
    assert stored == HELD_AFTER
    held.release.set()
    held.requests.clear()
    assert paid.run().code == 0
    assert len(held.requests) == SEED_REQUESTS + HELD_OUT_REQUESTS - stored


def test_a_command_says_whom_it_waits_for_and_can_be_interrupted(paid: Project, held: HeldProvider) -> None:
    with open_terminal(paid, "run", TASK) as first:
        first.wait_for(lambda s: f"{HELD_AFTER}/24" in s, "some answers")
        with open_terminal(paid, "backfill", TASK) as second:
            screen = second.wait_for(lambda s: re.search(r"waiting \d:\d\d: ", s), "the word of waiting")
            wait = " ".join(screen.split("waiting", 1)[1].split())
            assert f"golden_completions of {TASK} is running in" in wait
            assert str(first.process.pid) in wait
            assert "(pool teacher)" in wait
            second.press("\x03")
            assert second.wait() == 130
            assert "interrupted" in second.everything
        with open_terminal(paid, "backfill", TASK) as third:
            third.wait_for(lambda s: re.search(r"waiting \d:\d\d: ", s), "the word of waiting")
            held.release.set()
            assert third.wait() == 0
        assert first.wait() == 0


def test_json_is_all_of_stdout_and_progress_stays_on_the_terminal(paid: Project, held: HeldProvider) -> None:
    out = paid.root / "out.json"
    with open_terminal(paid, "backfill", TASK, "--json", stdout=out) as terminal:
        terminal.wait_for(lambda s: "asking the teacher" in s, "progress")
        held.release.set()
        assert terminal.wait() == 0
    assert json.loads(out.read_text())["teacher_calls"] == SEED_REQUESTS + HELD_OUT_REQUESTS


def test_quiet_shows_nothing_but_problems(paid: Project, held: HeldProvider) -> None:
    held.release.set()
    with open_terminal(paid, "backfill", TASK, "--quiet") as terminal:
        assert terminal.wait() == 0
        assert terminal.everything.strip() == ""
        assert terminal.raw == b""
    with open_terminal(paid, "backfill", TASK, "-q", "--slice", "nowhere") as terminal:
        assert terminal.wait() == 2
        assert "there is no slice 'nowhere'" in " ".join(terminal.everything.split())
