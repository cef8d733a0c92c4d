"""The progress display of a run: two to four lines of at most 80 columns that say where it is and what it took."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console
from rich.live import Live

from distill_dagster.cli import run_display
from distill_dagster.cli.run_display import RunDisplay
from distill_dagster.core.progress import Progress
from distill_dagster.pipeline.run_events import RunEvent

ARTIFACTS = ("seed_prompts[invoices]", "teacher_completions[invoices]", "scored_completions[invoices]")


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(run_display.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def make_display(terminal: bool = True, width: int = 80) -> tuple[RunDisplay, io.StringIO]:
    written = io.StringIO()
    size = width if terminal else None
    return RunDisplay(Console(file=written, force_terminal=terminal, color_system=None, width=size)), written


def look(display: RunDisplay) -> list[str]:
    with display.console.capture() as seen:
        display.console.print(display)
    lines = [line.rstrip() for line in seen.get().splitlines()]
    assert all(len(line) <= display.console.width for line in lines), lines
    return lines


def ask(done: int, *, stored: int = 0, usd: float | None = None) -> Progress:
    sent = done - stored
    return Progress("asking the teacher", done, 480, stored, 100 * sent, usd, artifact=ARTIFACTS[1])


def test_asking_shows_step_count_rate_time_left_tokens_and_money(clock: Clock) -> None:
    display, written = make_display()
    display.notify(RunEvent("start", ARTIFACTS, step=5, steps=13))
    for artifact in ARTIFACTS[:2]:
        display.listen(Progress("", artifact=artifact))
    display.listen(Progress("", artifact=ARTIFACTS[0], finished=True))
    display.listen(ask(80, stored=80))
    clock.now += 10
    display.listen(ask(180, stored=80, usd=0.5))
    head, work, figures = look(display)
    assert "step 6 of 13  teacher_completions[invoices]" in head
    assert head.endswith("0:10")
    assert work.split("━")[0].strip() == "asking the teacher"
    assert work.endswith("180/480 10.0/s 0:30 left")
    assert figures.strip() == "10,000 of about 40,000 tokens · $0.50 of about $2.00 · 80 from the store"
    assert "✓  5/13 seed_prompts[invoices]" in written.getvalue()


def test_training_shows_the_loss_while_it_runs(clock: Clock) -> None:
    display, written = make_display()
    display.notify(RunEvent("start", ("student_adapter[smollm2-360m]",), step=12, steps=13))
    display.listen(Progress("", artifact="student_adapter[smollm2-360m]"))
    for step in range(1, 11):
        clock.now += 4
        display.listen(Progress("training student", step, 100, loss=1 / step, artifact="student_adapter[smollm2-360m]"))
    assert look(display)[1].endswith("10/100 15.0/min 6:00 left loss 0.100")
    display.listen(Progress("", artifact="student_adapter[smollm2-360m]", finished=True))
    display.notify(RunEvent("done", ("student_adapter[smollm2-360m]",), step=12, steps=13))
    assert written.getvalue().count("✓") == 1
    assert "✓ 12/13 student_adapter[smollm2-360m] 40 s, loss 0.100" in written.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_long_names_and_large_numbers_fit(clock: Clock, width: int) -> None:
    display, _ = make_display(width=width)
    name = "teacher_completions[a-slice-with-a-very-long-name-that-goes-on-and-on-and-on-for-ever]"
    display.notify(RunEvent("start", (name,), step=1234, steps=5000))
    for done in (1, 1_000_000):
        clock.now += 5
        work = "asking the teacher"
        display.listen(Progress(work, done, 2_000_000, 0, 987_654_321, 12_345.67, artifact=name))
    assert len(look(display)) <= 4
    if width >= 80:
        assert "1,000,000/2,000,000" in look(display)[1]


def test_who_is_waited_for_and_for_how_long(clock: Clock) -> None:
    display, written = make_display()
    holder = "predictions[one] of energy_mail is running in process 4711 (pool training)"
    display.notify(RunEvent("start", ARTIFACTS, step=1, steps=3))
    display.notify(RunEvent("waiting", ARTIFACTS, why=holder))
    clock.now += 75
    assert " ".join(" ".join(look(display)[1:]).split()) == f"waiting 1:15: {holder}"
    display.notify(RunEvent("resumed", ARTIFACTS))
    assert not any("waiting" in line for line in look(display))
    assert "waited 1 min 15 s" in written.getvalue()


def test_a_pause_that_a_teacher_asks_for_is_shown_until_work_goes_on(clock: Clock) -> None:
    display, _ = make_display()
    display.notify(RunEvent("start", ARTIFACTS[1:2], step=1, steps=3))
    display.listen(ask(10))
    display.listen(Progress("", artifact=ARTIFACTS[1], waits_for="openai/x asks for 30 s without requests (429)"))
    clock.now += 12
    assert look(display)[1].strip() == "waiting 0:12: openai/x asks for 30 s without requests (429)"
    display.listen(ask(11))
    assert "asking the teacher" in look(display)[1]


def test_a_reason_stands_where_it_failed_and_nothing_failed_is_marked_as_made() -> None:
    display, written = make_display()
    display.notify(RunEvent("start", ARTIFACTS, step=1, steps=3))
    display.listen(Progress("", artifact=ARTIFACTS[0]))
    display.listen(Progress("", artifact=ARTIFACTS[0], finished=True))
    display.listen(Progress("", artifact=ARTIFACTS[1]))
    reasons = {ARTIFACTS[1]: "the key [red] is refused", ARTIFACTS[2]: f"{ARTIFACTS[1]} failed"}
    display.notify(RunEvent("failed", ARTIFACTS, reasons=reasons, step=1, steps=3))
    lines = [" ".join(line.split()[:-2]) if "✓" in line else line for line in written.getvalue().splitlines()]
    assert lines == [
        "✓ 1/3 seed_prompts[invoices]",
        "✗ 2/3 teacher_completions[invoices]: the key [red] is refused",
        "✗ 3/3 scored_completions[invoices]: teacher_completions[invoices] failed",
    ]


def test_without_a_terminal_a_line_is_written_now_and_then(clock: Clock) -> None:
    display, written = make_display(terminal=False)
    display.notify(RunEvent("start", ARTIFACTS[1:2], step=2, steps=3))
    for second in range(100):
        clock.now += 1
        display.listen(ask(4 * second, usd=second / 100))
    lines = written.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1] == (
        "  step 2 of 3  teacher_completions[invoices]: asking the teacher: 396 of 480, 39,600 of about 48,000 tokens, "
        "$0.99 of about $1.20, 4.0/s, 0:21 left"
    )


def test_a_display_that_is_refreshed_while_lines_are_printed_does_not_lock_up() -> None:
    display, written = make_display()
    ended = threading.Event()

    def work() -> None:
        for number in range(300):
            name = f"seed_prompts[{number}]"
            display.notify(RunEvent("start", (name,), step=number + 1, steps=300))
            display.listen(Progress("", artifact=name))
            display.notify(RunEvent("done", (name,), step=number + 1, steps=300))
        ended.set()

    with Live(display, console=display.console, refresh_per_second=1000, transient=True) as live:
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        while not ended.is_set() and worker.is_alive():
            live.refresh()
    assert written.getvalue().count("✓") == 300
