"""Simulate projects of 10^4, 10^6 and 10^8 completions, fed with what this repository has measured per row and run.

Usage: python benchmarks/scale_simulation.py [--quick] [--json FILE] [--plot FILE]

A discrete-event simulation (SimPy): runs wait for a place in Dagster's queue, ask a teacher whose rate all share, use
the cores of their machine, and may lose their worker. After them come the cut and a training. Each size is simulated
with one switch turned after the other. The result says which resource is busy most of the time: that is the bottleneck.

What is measured comes from benchmarks/results (`MEASURED` names file and figure). What is assumed, such as the latency
and the price of a teacher, is in `Teacher` and in the plans, and docs/scale.md repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import simpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import RESULTS, wanted, write_result

MEASURED = {
    "request_cpu_s": ("teacher_throughput", "cpu_ms", 1e-3),
    "in_process_s": ("incremental", "slices1000_s_per_slice", 1.0),
    "launched_s": ("scale", "s_per_slice_launched_alone", 1.0),
    "cut_cpu_s": ("filters", "first_cut_cpu_s", 1e-6),
    "cut_1m_gb": ("scale", "cut_1m_gb", 1.0),
    "cut_5m_gb": ("scale", "cut_5m_gb", 1.0),
    "instance_mb": ("incremental", "slices1000_instance_mb", 1e-3),
    "train_tokens_s": ("gpu", "tokens_s_1b_qlora", 1.0),
}
"""Cost: the file and the figure that it comes from, and the factor to seconds or MiB per row, run or slice. The seconds
of the cut were measured with 10^6 rows, the instance with 10^3 slices. `cut_1m_gb` is the memory of 10^6 rows."""
DOCS = RESULTS.parent.parent / "docs" / "scale.md"
MARK, END = "<!-- written by benchmarks/scale_simulation.py -->", "<!-- end -->"
BATCHES = 40
"""A run asks in so many rounds: fine enough for limits and losses, and few enough events for 10^4 runs."""
GPU_PER_MINUTE, GPU_USD_H = 1_200, 2.5
"""What one GPU answers as a teacher of 8 billion parameters, and its price: assumptions."""
TOKENS_PER_ROW = 200
"""Tokens of a training row: an assumption."""
IMPORT_S = 5.0
"""Seconds that a launched run needs to start a process and import, if `scale.json` has no figure yet: an assumption."""


@dataclass(frozen=True)
class Teacher:
    """A teacher as the simulation sees it. All of it is assumed.

    Args:
        concurrency: Requests at the same time of one run.
        per_minute: Requests that it answers per minute, for all runs together.
        usd_per_1k: Price of 1,000 completions.
        gpus: GPUs that serve it, if it is one's own: each answers `GPU_PER_MINUTE` requests for `GPU_USD_H` an hour.
    """

    latency_s: float = 2.0
    concurrency: int = 64
    per_minute: float = 10_000
    usd_per_1k: float = 0.2
    gpus: int = 0


@dataclass(frozen=True)
class Plan:
    """One way to make a dataset and a student.

    Args:
        at_once: Runs at the same time. 0: all slices one after the other in one process.
        cores: Cores of all machines that run slices.
        cut_cores: Cores that make the cut.
        trained_rows: Rows that the student learns from.
        lost_per_hour: How often a worker is lost, per worker and hour.
    """

    name: str
    slices: int
    rows: int
    at_once: int = 0
    cores: int = 2
    cut_cores: int = 2
    trained_rows: int = 10_000
    gpus: int = 1
    lost_per_hour: float = 0.0
    teacher: Teacher = Teacher()

    @property
    def total(self) -> int:
        """Completions of the dataset."""
        return self.slices * self.rows


@dataclass
class Outcome:
    """What one simulated plan took."""

    slices_s: float = 0.0
    cut_s: float = 0.0
    train_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=lambda: {"teacher": 0.0, "cores": 0.0, "queue": 0.0})
    lost: int = 0
    asked_again: int = 0


def read_costs() -> tuple[dict[str, float], dict[str, str]]:
    """Read the measured costs, and where each comes from."""
    costs: dict[str, float] = {}
    sources: dict[str, str] = {}
    for name, (file, figure, factor) in MEASURED.items():
        path = RESULTS / f"{file}.json"
        found = json.loads(path.read_text())["figures"].get(figure) if path.exists() else None
        if found is None and name == "launched_s":
            costs[name], sources[name] = IMPORT_S + costs["in_process_s"], "assumed"
            continue
        assert found is not None, f"{path} has no figure {figure}"
        costs[name], sources[name] = found * factor, f"{file}.json: {figure}"
    return costs, sources


class Simulation:
    """One plan, simulated."""

    def __init__(self, plan: Plan, costs: dict[str, float], seed: int = 0) -> None:
        self.plan, self.costs, self.outcome = plan, costs, Outcome()
        self.environment = simpy.Environment()
        self._random = random.Random(seed)
        self._cores = simpy.Resource(self.environment, plan.cores)
        self._queue = simpy.Resource(self.environment, max(plan.at_once, 1))
        self._next_send = 0.0

    def run(self) -> Outcome:
        """Simulate the slices, then add the cut and the training, which come after all of them."""
        for _ in range(self.plan.slices):
            self.environment.process(self._make_slice())
        self.environment.run()
        outcome, plan = self.outcome, self.plan
        outcome.slices_s = self.environment.now
        outcome.cut_s = plan.total * self.costs["cut_cpu_s"] / plan.cut_cores
        outcome.train_s = min(plan.trained_rows, plan.total) * TOKENS_PER_ROW / self.costs["train_tokens_s"] / plan.gpus
        return outcome

    def _make_slice(self) -> Generator[Any, Any, Any]:
        plan, outcome = self.plan, self.outcome
        left = float(plan.rows)
        while left > 0:
            with self._queue.request() as place:
                yield place
                began = self.environment.now
                lost_at = began + self._draw_loss()
                yield from self._compute(self.costs["launched_s" if plan.at_once else "in_process_s"])
                while left > 0 and self.environment.now < lost_at:
                    size = min(left, max(plan.teacher.concurrency, plan.rows / BATCHES))
                    yield from self._ask(size)
                    yield from self._compute(size * self.costs["request_cpu_s"])
                    left -= size
                outcome.busy_s["queue"] += self.environment.now - began
            if left > 0:  # the worker is gone: what it had received is stored, what was on its way is asked for again
                outcome.lost += 1
                outcome.asked_again += plan.teacher.concurrency

    def _draw_loss(self) -> float:
        rate = self.plan.lost_per_hour
        return self._random.expovariate(rate / 3600) if rate else float("inf")

    def _compute(self, seconds: float) -> Generator[Any, Any, Any]:
        with self._cores.request() as core:
            yield core
            yield self.environment.timeout(seconds)
        self.outcome.busy_s["cores"] += seconds

    def _ask(self, requests: float) -> Generator[Any, Any, Any]:
        """Wait until the teacher has answered: for its rate, which all runs share, and for its latency."""
        teacher, now = self.plan.teacher, self.environment.now
        service = requests * 60 / teacher.per_minute
        self._next_send = max(self._next_send, now) + service
        self.outcome.busy_s["teacher"] += service
        by_latency = requests * teacher.latency_s / teacher.concurrency
        yield self.environment.timeout(max(self._next_send - now, by_latency))


def serve_teacher(gpus: int) -> Teacher:
    """A teacher of one's own on this many GPUs."""
    return Teacher(per_minute=gpus * GPU_PER_MINUTE, usd_per_1k=0.0, gpus=gpus)


def list_plans(quick: bool) -> list[Plan]:
    """The plans of docs/scale.md. With `quick` each has a tenth of the slices."""
    small = Plan("10^4, one process", slices=20, rows=500, teacher=Teacher(per_minute=500))
    medium = Plan("10^6, one process", slices=1_000, rows=1_000, trained_rows=50_000)
    eight = replace(medium, name="10^6, 8 runs at once", at_once=8, cores=8)
    large = Plan("10^8, 50 runs at once", 10_000, 10_000, 50, 50, 2, 200_000, 1, 0.0, Teacher(per_minute=30_000))
    served = serve_teacher(128)
    own = replace(large, name="…, own teacher on 32 GPUs", teacher=serve_teacher(32))
    plans = [
        small,
        replace(small, name="…, a rate of 5,000", teacher=Teacher(per_minute=5_000)),
        medium,
        replace(medium, name="…, a rate of 100,000", teacher=Teacher(per_minute=100_000)),
        eight,
        replace(eight, name="…, and a rate of 100,000", teacher=Teacher(per_minute=100_000)),
        large,
        own,
        replace(own, name="…, on 128 GPUs", teacher=served),
        replace(own, name="…, cut on 64 cores, 8 GPUs train", teacher=served, cut_cores=64, gpus=8),
        replace(own, name="…, and 200 runs at once", teacher=served, at_once=200, cores=200, cut_cores=64, gpus=8),
        replace(
            own,
            name="…, and workers lost every 4 h",
            teacher=served,
            at_once=200,
            cores=200,
            cut_cores=64,
            gpus=8,
            lost_per_hour=0.25,
        ),
    ]
    return [replace(plan, slices=max(1, plan.slices // 10)) for plan in plans] if quick else plans


def describe(plan: Plan, outcome: Outcome, costs: dict[str, float]) -> dict[str, Any]:
    """Sum up a simulated plan: hours, money, memory, and what is busy most of the time."""
    spans = {"slices": outcome.slices_s, "cut": outcome.cut_s, "training": outcome.train_s}
    capacity = {"teacher": 1, "cores": plan.cores, "queue": max(plan.at_once, 1)}
    share = {name: outcome.busy_s[name] / capacity[name] / outcome.slices_s for name in capacity}
    # Places in the queue are taken whenever runs wait for anything. They are the limit only if nothing else is.
    busiest = max(("teacher", "cores"), key=lambda name: share[name])
    gpu_h = (plan.teacher.gpus * outcome.slices_s + plan.gpus * outcome.train_s) / 3600
    waiting = "runs at once" if plan.at_once else "one process"
    return {
        "name": plan.name,
        "completions": plan.total,
        **{f"{name}_h": round(seconds / 3600, 3) for name, seconds in spans.items()},
        "total_h": round(sum(spans.values()) / 3600, 3),
        "busy": {name: round(value, 3) for name, value in share.items()},
        "bottleneck": busiest if share[busiest] > 0.8 else waiting,
        "longest": max(spans, key=lambda name: spans[name]),
        "usd": round(plan.total * plan.teacher.usd_per_1k / 1000 + gpu_h * GPU_USD_H, 2),
        "cut_memory_gb": round(estimate_cut_gb(plan.total, costs), 1),
        "instance_gb": round(plan.slices * costs["instance_mb"] / 1024, 2),
        "workers_lost": outcome.lost,
        "asked_again_share": round(outcome.asked_again / plan.total, 7),
    }


def estimate_cut_gb(rows: int, costs: dict[str, float]) -> float:
    """Memory of the cut, by what 1 and 5 million rows take: a line through both, and for fewer rows one to 0."""
    first, each = costs["cut_1m_gb"], (costs["cut_5m_gb"] - costs["cut_1m_gb"]) / 4
    millions = rows / 1e6
    return millions * first if millions < 1 else first + (millions - 1) * each


def simulate(quick: bool) -> dict[str, Any]:
    """Simulate all plans, and 300 slices of 20 rows, which were measured too: a check of the simulation."""
    costs, sources = read_costs()
    plans = [describe(plan, Simulation(plan, costs).run(), costs) for plan in list_plans(quick)]
    measured = json.loads((RESULTS / "incremental.json").read_text())["figures"]["slices300_s"]
    check = Simulation(Plan("300 slices", 300, 20, teacher=Teacher(0.0, 8, 1e6)), costs).run().slices_s
    check_figures = {"check_simulated_s": round(check, 1), "check_measured_s": measured}
    return {"costs": costs, "sources": sources, **check_figures, "plans": plans}


def plot(plans: list[dict[str, Any]], path: Path) -> None:
    """Draw the hours of each plan by stage, on a logarithmic axis, with its bottleneck."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from distill_dagster.core.plots import COLOURS

    figure = Figure(figsize=(8, 0.9 + 0.42 * len(plans)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for at, plan in enumerate(plans):
        for offset, (stage, colour) in enumerate(zip(("slices", "cut", "training"), COLOURS, strict=False)):
            label = stage if at == 0 else None
            axes.barh(at + 0.26 * (offset - 1), plan[f"{stage}_h"], height=0.24, color=colour, label=label)
        axes.text(plan["slices_h"] * 1.1, at - 0.26, plan["bottleneck"], va="center", fontsize=7, color="#333333")
    axes.set_yticks(range(len(plans)), [plan["name"] for plan in plans], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.002, 6 * max(plan["slices_h"] for plan in plans))
    axes.set_xlabel("hours")
    axes.grid(axis="x", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", fontsize=8)
    axes.set_title("Simulated hours by stage; next to the slices: what limits them", fontsize=9)
    figure.savefig(path, dpi=140)


def write_table(plans: list[dict[str, Any]]) -> None:
    """Write the table of docs/scale.md between its two comments."""
    lines = ["| plan | slices (h) | cut (h) | training (h) | limit | USD | memory of the cut (GB) | instance (GB) |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for plan in plans:
        hours = " | ".join(f"{plan[f'{stage}_h']:,.2f}" for stage in ("slices", "cut", "training"))
        sizes = f"{plan['usd']:,.0f} | {plan['cut_memory_gb']:,.1f} | {plan['instance_gb']:,.2f}"
        lines.append(f"| {plan['name']} | {hours} | {plan['bottleneck']} | {sizes} |")
    last = plans[-1]
    lost = f"The last plan loses {last['workers_lost']:,} workers, each every four hours on average. It asks"
    lines += ["", f"{lost} {last['asked_again_share']:.2%} of its completions again."]
    before, rest = DOCS.read_text(encoding="utf-8").split(MARK)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{MARK}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Simulate, print a line per plan, and write figures and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    found = simulate(arguments.quick)
    for plan in found["plans"]:
        limits = f"{plan['bottleneck']:12} {plan['longest']:8}"
        print(f"{plan['name']:34} {plan['total_h']:8.2f} h  {limits} {plan['usd']:10.2f} USD")
    target = wanted(arguments, "scale_simulation")
    write_result(target, found)
    if image := arguments.plot or (None if arguments.quick else RESULTS / "scale_simulation.png"):
        plot(found["plans"], image)
    if target == RESULTS / "scale_simulation.json":
        write_table(found["plans"])


if __name__ == "__main__":
    main()
