"""What the log of a run in the UI says about long work."""

from __future__ import annotations

from assets.stage_asset import LOG_INTERVAL_S, _log_each_tenth
from distill_dagster.core.progress import Progress


def test_the_log_says_how_far_a_training_is_and_how_long_it_takes() -> None:
    lines: list[str] = []
    now = 0.0
    listen = _log_each_tenth(lines.append, lambda: now)
    for step in range(1, 41):
        listen(Progress("training student", step, 40, loss=1 / step))
        now += 10
    assert lines[0] == "training student: 1 of 40, loss 1.000"
    assert lines[1] == "training student: 4 of 40, loss 0.250, 6:00 left"
    assert lines[-1] == "training student: 40 of 40, loss 0.025"
    assert len(lines) == 11, "one at each tenth, and the first"


def test_slow_work_is_logged_between_the_tenths() -> None:
    lines: list[str] = []
    now = 0.0
    listen = _log_each_tenth(lines.append, lambda: now)
    for step in range(1, 10):
        listen(Progress("training student", step, 1000))
        now += LOG_INTERVAL_S / 2
    assert len(lines) == 5
    assert lines[1] == "training student: 3 of 1,000, 41:32:30 left"
