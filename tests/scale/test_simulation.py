"""The simulation behind docs/scale.md agrees with what can be computed by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER

pytestmark = pytest.mark.scale
COSTS = {
    "request_cpu_s": 0.001,
    "in_process_s": 1.0,
    "launched_s": 5.0,
    "cut_cpu_s": 1e-5,
    "cut_1m_gb": 2.0,
    "cut_5m_gb": 4.0,
    "instance_mb": 0.25,
    "train_tokens_s": 1_000.0,
}


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(PROJECT_FOLDER / "benchmarks"))
    import scale_simulation

    yield scale_simulation
    sys.modules.pop("scale_simulation")


def test_one_process_adds_up_its_slices(simulation: ModuleType) -> None:
    teacher = simulation.Teacher(latency_s=2.0, concurrency=50, per_minute=1e9)
    plan = simulation.Plan("one process", slices=10, rows=1_000, cut_cores=2, trained_rows=500, teacher=teacher)
    found = simulation.Simulation(plan, COSTS).run()
    assert found.slices_s == pytest.approx(10 * (1.0 + 1_000 * 2.0 / 50 + 1_000 * 0.001))
    assert found.cut_s == pytest.approx(10_000 * 1e-5 / 2)
    assert found.train_s == pytest.approx(500 * simulation.TOKENS_PER_ROW / 1_000)
    assert simulation.describe(plan, found, COSTS)["bottleneck"] == "one process"


def test_the_rate_of_the_teacher_holds_over_all_runs(simulation: ModuleType) -> None:
    teacher = simulation.Teacher(latency_s=1.0, concurrency=100, per_minute=600)
    plan = simulation.Plan("many", slices=20, rows=300, at_once=20, cores=20, teacher=teacher)
    found = simulation.Simulation(plan, COSTS).run()
    assert found.slices_s >= 20 * 300 / 10
    assert found.slices_s == pytest.approx(20 * 300 / 10, rel=0.05)
    assert simulation.describe(plan, found, COSTS)["bottleneck"] == "teacher"


def test_a_lost_worker_costs_what_was_on_its_way(simulation: ModuleType) -> None:
    teacher = simulation.Teacher(latency_s=10.0, concurrency=10, per_minute=1e9)
    plan = simulation.Plan("safe", slices=8, rows=400, at_once=4, cores=4, teacher=teacher)
    lossy = simulation.Plan("lossy", slices=8, rows=400, at_once=4, cores=4, teacher=teacher, lost_per_hour=6.0)
    safe, found = (simulation.Simulation(one, COSTS, seed=1).run() for one in (plan, lossy))
    assert safe.lost == 0
    assert found.lost > 0
    assert found.asked_again == found.lost * 10
    assert found.slices_s > safe.slices_s
