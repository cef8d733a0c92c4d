"""Put the systems of several reports into one table: what each student gained, and at what latency, size and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from distill_dagster.evaluation.formatting import (
    OWN_MACHINE,
    format_dollars,
    format_milliseconds,
    format_points,
    format_size,
    is_local,
)
from distill_dagster.evaluation.metrics import (
    ASSISTANT,
    BASE,
    CENTROID,
    DISTILLED,
    GOLDEN,
    LINEAR_PROBE,
    SEED_ONLY,
    TEACHER,
    SystemComparison,
    SystemFacts,
    compute_metrics,
)
from distill_dagster.evaluation.recommendation import is_clearly_better
from distill_dagster.evaluation.system_names import SYSTEM_TITLES

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind

STUDENT_SYSTEMS = (BASE, SEED_ONLY, ASSISTANT, DISTILLED)
"""The systems of each student, in the order of what went into them."""


@dataclass(frozen=True)
class LeaderboardRow:
    """One system on golden. Scores are shares of 1, latency in seconds, size in bytes; None is unknown.

    `student` is "" for a system that is no student: the teacher and the baselines on sentence embeddings.
    """

    system: str
    student: str
    score: float | None
    low: float | None
    high: float | None
    latency_s: float | None
    bytes: int | None
    cost_usd_per_1k: float | None
    model: str | None = None
    is_best: bool = False
    """No other system is at least as good in score, latency and cost, and better in one of them (Pareto)."""

    def format_cells(self) -> tuple[str, ...]:
        """System, student, score with interval, latency, size, cost for 1,000 answers."""
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        cost = format_dollars(self.cost_usd_per_1k)
        if self.cost_usd_per_1k is None and is_local(self.system, SystemFacts(model=self.model)):
            cost = OWN_MACHINE
        return (
            SYSTEM_TITLES.get(self.system, self.system),
            self.student,
            "–" if self.score is None else f"{self.score:.2f}{bounds}",
            "–" if self.latency_s is None else format_milliseconds(self.latency_s),
            "–" if self.bytes is None else format_size(self.bytes),
            cost,
        )


@dataclass(frozen=True)
class Leaderboard:
    """The rows in the order in which they are shown, and what makes them hard to compare.

    `items` is the number of golden items, `metric` the name of the score.
    """

    metric: str
    items: int
    rows: tuple[LeaderboardRow, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "items": self.items,
            "systems": [asdict(row) for row in self.rows],
            "remarks": list(self.remarks),
        }


def build_leaderboard(reports: Mapping[str, Mapping[str, Any]]) -> Leaderboard:
    """Build the table from the metrics.json of each student, by the student's name.

    It has the teacher, the systems of each student, the linear probe, and the best of the other baselines. What does
    not belong to a student is the same in every report and is taken from the first that has it.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("a leaderboard needs a report")
    first = next(iter(reports.values()))
    shared: dict[str, LeaderboardRow] = {}
    own: list[LeaderboardRow] = []
    baselines: list[LeaderboardRow] = []
    for student, figures in reports.items():
        for system, values in figures["systems"].items():
            if system in (TEACHER, LINEAR_PROBE):
                shared.setdefault(system, _build_row(system, "", values))
            elif system not in STUDENT_SYSTEMS:
                baselines.append(_build_row(system, "" if system == CENTROID else student, values))
        own += [
            _build_row(name, student, figures["systems"][name])
            for name in STUDENT_SYSTEMS
            if name in figures["systems"]
        ]
    best = max(baselines, key=lambda row: row.score or 0.0, default=None)
    last = [row for row in (shared.get(LINEAR_PROBE), best) if row is not None]
    rows = [*([shared[TEACHER]] if TEACHER in shared else []), *own, *last]
    rows = mark_best_rows(rows)
    return Leaderboard(
        first["systems"][DISTILLED]["metric"],
        first["systems"][DISTILLED]["n"],
        tuple(rows),
        tuple(_list_remarks(reports)),
    )


def mark_best_rows(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Mark the systems that no other one beats: the Pareto front of score, latency and cost.

    An unknown latency or cost is only equal to another unknown one, so what is unknown decides nothing.
    """
    return [replace(row, is_best=not any(_is_beaten(row, other) for other in rows)) for row in rows]


def _is_beaten(row: LeaderboardRow, other: LeaderboardRow) -> bool:
    """Whether the other system is at least as good in everything, and better in something."""
    pairs = [(-(other.score or 0.0), -(row.score or 0.0))]
    for known, own in ((other.latency_s, row.latency_s), (other.cost_usd_per_1k, row.cost_usd_per_1k)):
        if (known is None) != (own is None):
            return False
        if known is not None and own is not None:
            pairs.append((known, own))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def describe_best_rows(board: Leaderboard) -> str:
    """Which systems no other one beats, as a sentence."""
    names = [f"{row.format_cells()[0]} {row.student}".strip() for row in board.rows if row.is_best]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Nothing beats these in score, latency and cost at once: {listed}."


def compare_students(
    predictions: Mapping[str, pl.DataFrame], best: str, spec: EvaluationSpec, kind: Kind
) -> list[SystemComparison]:
    """Compare the distilled student `best` with every other one, on the golden items that both answered.

    Args:
        predictions: the predictions table of each student's report, by the student's name.

    Returns:
        Comparisons with the student's name as `second`. Items whose reference changed between reports are left out.
    """
    import polars as pl

    own = predictions[best].filter((pl.col("system") == DISTILLED) & (pl.col("split") == GOLDEN))
    tables = [own]
    for student, table in predictions.items():
        if student != best:
            rows = table.filter((pl.col("system") == DISTILLED) & (pl.col("split") == GOLDEN))
            rows = rows.join(own, on=["item_id", "reference"], how="semi")
            tables.append(rows.with_columns(pl.lit(f"student {student}").alias("system")))
    compared = compute_metrics(pl.concat(tables), {}, (), spec, kind).golden.comparisons
    found = [c for (first, _), c in compared.items() if first == DISTILLED and c.n]
    return [replace(c, first=best, second=c.second.removeprefix("student ")) for c in found]


def describe_best_student(comparisons: Sequence[SystemComparison], confidence: float) -> str:
    """Which student scores highest, and which others are not clearly behind it. Empty without other students."""
    if not comparisons:
        return ""
    best = comparisons[0].first
    parts = [
        f"{c.second} is {'clearly' if is_clearly_better(c, 1 - confidence) else 'not clearly'} behind "
        f"({format_points(c.difference)} points)"
        for c in comparisons
    ]
    return f"Of the students {best} scores highest; {', '.join(parts)}."


def _build_row(system: str, student: str, values: Mapping[str, Any]) -> LeaderboardRow:
    score = values["score"]
    return LeaderboardRow(
        system,
        student,
        score["value"],
        score["low"],
        score["high"],
        values["latency_s"]["p50"],
        values.get("bytes"),
        values.get("cost_usd_per_1k"),
        values.get("model"),
    )


def _list_remarks(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    remarks = []
    if len({figures["dataset_version"] for figures in reports.values()}) > 1:
        remarks.append("The students were trained on different versions of the dataset.")
    if len({figures["systems"][DISTILLED]["n"] for figures in reports.values()}) > 1:
        remarks.append("The reports have different golden sets, so their scores cannot be compared.")
    return remarks
