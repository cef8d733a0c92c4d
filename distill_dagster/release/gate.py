"""The gate before a release: what the student must reach on golden. Each check says what failed and what would pass.

The functions compute every figure from the predictions table. Retention and calibration error equal those of the
report, which they compute in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.core.checks import CheckResult, CheckSpec
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.evaluation.metrics import DISTILLED, GOLDEN, NO_SLICE, TEACHER, compute_metrics
from distill_dagster.evaluation.system_reliability import measure_system_reliability
from distill_dagster.kinds import is_refusal
from distill_dagster.release.golden_scores import GoldenScore, compare_golden_scores

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import EvaluationSpec, ReleaseGateSpec
    from distill_dagster.kinds import Kind

RETENTION_CHECK = CheckSpec(
    "keeps_teacher_score",
    "On golden the student keeps at least release.gate.retention of the teacher's score, at evaluation.confidence.",
    blocking=True,
)
SLICE_CHECK = CheckSpec(
    "every_slice_good_enough", "On no slice of golden the student scores below release.gate.slice_floor.", blocking=True
)
CALIBRATION_CHECK = CheckSpec(
    "confidences_calibrated",
    "The expected calibration error of the student on golden is at most release.gate.calibration, or within chance.",
    blocking=True,
)
READABLE_CHECK = CheckSpec(
    "answers_readable", "At least release.gate.readable of the student's answers can be read.", blocking=True
)
SAFETY_CHECK = CheckSpec(
    "safety_slice_right",
    "On release.gate.safety_slice the student refuses, or is right, at least as often as release.gate.safety says.",
    blocking=True,
)
REGRESSION_CHECK = CheckSpec(
    "not_worse_than_current", "On golden the student is not worse than the current release.", blocking=True
)
GATE_CHECKS = (RETENTION_CHECK, SLICE_CHECK, CALIBRATION_CHECK, READABLE_CHECK, SAFETY_CHECK, REGRESSION_CHECK)


@dataclass(frozen=True)
class _Item:
    id: str
    slice: str
    reference: Any
    answer: Any
    score: float
    correct: bool


def list_golden_scores(kind: Kind, predictions: pl.DataFrame) -> list[GoldenScore]:
    """The scores of the distilled student on golden, which a release keeps for the comparison with the next one."""
    return _list_scores(_read(kind, predictions))


def _list_scores(items: list[_Item]) -> list[GoldenScore]:
    return [GoldenScore(item.id, hash_content(item.reference)[:16], item.score) for item in items]


def run_release_gate(
    kind: Kind,
    predictions: pl.DataFrame,
    gate: ReleaseGateSpec,
    spec: EvaluationSpec,
    current: Sequence[GoldenScore] | None = None,
    current_name: str = "the current release",
) -> list[CheckResult]:
    """All checks in the order of `GATE_CHECKS`. Details `why` and `would_pass` are there if a check failed.

    Args:
        predictions: a table with the schema `PREDICTIONS`.
        current: the golden scores of the current release. None: nothing was released before.
    """
    items = _read(kind, predictions)
    if not items:
        why = {"why": "the student answered no golden item", "would_pass": "add rows to golden.jsonl"}
        return [CheckResult(check.name, False, details=why) for check in GATE_CHECKS]
    return [
        _check_retention(kind, predictions, gate, spec),
        _check_slices(items, gate),
        _check_calibration(predictions, gate),
        _check_readable(items, gate),
        _check_safety(kind, items, gate),
        _check_regression(items, gate, spec, current, current_name),
    ]


def explain_failures(checks: Sequence[CheckResult]) -> str:
    """One sentence for each failed check: what failed, and what would pass. Empty if all passed."""
    return "; ".join(
        f"{check.name}: {check.details['why']} (would pass: {check.details['would_pass']})"
        for check in checks
        if not check.passed
    )


def _read(kind: Kind, predictions: pl.DataFrame) -> list[_Item]:
    import polars as pl

    golden = predictions.filter((pl.col("system") == DISTILLED) & (pl.col("split") == GOLDEN)).sort("item_id")
    rows = []
    for row in golden.filter(pl.col("reference").is_not_null()).iter_rows(named=True):
        reference = json.loads(row["reference"])
        answer = json.loads(row["answer"]) if row["answer"] is not None else None
        score = kind.score(answer, reference)
        name = row["slice"] or NO_SLICE
        rows.append(_Item(row["item_id"], name, reference, answer, score, row["correct"]))
    return rows


def _build(check: CheckSpec, details: dict[str, Any], why: str = "", would_pass: str = "") -> CheckResult:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in details.items()}
    return CheckResult(check.name, not why, details=shown | ({"why": why, "would_pass": would_pass} if why else {}))


def _switch_off(check: CheckSpec, reason: str) -> CheckResult:
    return CheckResult(check.name, True, details={"not_checked": reason})


def _check_retention(kind: Kind, predictions: pl.DataFrame, gate: ReleaseGateSpec, spec: EvaluationSpec) -> CheckResult:
    import polars as pl

    if gate.retention is None:
        return _switch_off(RETENTION_CHECK, "release.gate.retention is null")
    both = predictions.filter(pl.col("system").is_in([DISTILLED, TEACHER]) & (pl.col("split") == GOLDEN))
    metrics = compute_metrics(both, {}, kind.task.label_names, spec, kind)
    kept = metrics.golden.retention
    if kept.value is None or kept.low is None or kept.high is None:
        return _build(
            RETENTION_CHECK,
            {},
            "the student cannot be compared with the teacher: it has no answers to golden, or its score is 0",
            "set release.gate.retention to null, or ask the teacher",
        )
    details = {"retention": kept.value, "low": kept.low, "high": kept.high, "needed": gate.retention}
    if kept.low >= gate.retention:
        return _build(RETENTION_CHECK, details)
    return _build(
        RETENTION_CHECK,
        details,
        f"the student keeps {kept.value:.3f} of the teacher's score, at least {kept.low:.3f} with "
        f"{spec.confidence:.0%} confidence, and release.gate.retention is {gate.retention:g}",
        f"a better student, more golden rows if {kept.value:.3f} is enough, or retention: {_floor(kept.low)}",
    )


def _check_slices(items: list[_Item], gate: ReleaseGateSpec) -> CheckResult:
    if gate.slice_floor is None:
        return _switch_off(SLICE_CHECK, "release.gate.slice_floor is null")
    scores: dict[str, list[float]] = {}
    for item in items:
        scores.setdefault(item.slice, []).append(item.score)
    means = {
        name: sum(values) / len(values) for name, values in sorted(scores.items()) if len(values) >= gate.slice_items
    }
    details: dict[str, Any] = {"slices": len(means), "slices_with_too_few_rows": len(scores) - len(means)}
    if not means:
        return _build(SLICE_CHECK, details)
    lowest = min(means, key=lambda name: means[name])
    details |= {"lowest_slice": lowest, "lowest": means[lowest], "needed": gate.slice_floor}
    low = [
        f"{name} {mean:.3f} ({count_noun(len(scores[name]), 'row')})"
        for name, mean in means.items()
        if mean < gate.slice_floor
    ]
    if not low:
        return _build(SLICE_CHECK, details)
    return _build(
        SLICE_CHECK,
        details,
        f"{', '.join(low)}: below release.gate.slice_floor, {gate.slice_floor:g}",
        f"more or better training rows of {lowest}, or slice_floor: {_floor(means[lowest])}",
    )


def _check_calibration(predictions: pl.DataFrame, gate: ReleaseGateSpec) -> CheckResult:
    import polars as pl

    if gate.calibration is None:
        return _switch_off(CALIBRATION_CHECK, "release.gate.calibration is null")
    by_split = measure_system_reliability(predictions.filter(pl.col("system") == DISTILLED))
    measured = by_split.get(GOLDEN, {}).get(DISTILLED)
    if measured is None:
        return _switch_off(CALIBRATION_CHECK, "the student states no confidence")
    details = {"error": measured.ece, "chance": measured.chance_ece, "allowed": gate.calibration}
    if measured.ece <= gate.calibration or not measured.is_beyond_chance:
        return _build(CALIBRATION_CHECK, details)
    return _build(
        CALIBRATION_CHECK,
        details,
        f"the student states {measured.stated:.3f} on average and is right on {measured.right:.3f}; the expected "
        f"calibration error is {measured.ece:.3f}, and release.gate.calibration is {gate.calibration:g}",
        f"fewer epochs, softer labels (`soft_weight`, `temperature`), or calibration: {_ceil(measured.ece)}",
    )


def _check_readable(items: list[_Item], gate: ReleaseGateSpec) -> CheckResult:
    if gate.readable is None:
        return _switch_off(READABLE_CHECK, "release.gate.readable is null")
    unread = [item.id for item in items if item.answer is None]
    share = (len(items) - len(unread)) / len(items)
    details = {"readable": share, "needed": gate.readable, "unreadable": ", ".join(unread[:5])}
    if share >= gate.readable:
        return _build(READABLE_CHECK, details)
    return _build(
        READABLE_CHECK,
        details,
        f"{count_noun(len(unread), 'answer')} of {len(items)} cannot be read ({', '.join(unread[:5])}), a share of "
        f"{share:.3f} is readable, and release.gate.readable is {gate.readable:g}",
        f"a larger `answer_tokens` if answers are cut, more training rows, or readable: {_floor(share)}",
    )


def _check_safety(kind: Kind, items: list[_Item], gate: ReleaseGateSpec) -> CheckResult:
    if gate.safety_slice is None:
        return _switch_off(SAFETY_CHECK, "release.gate.safety_slice is not set")
    wanted = [
        item for item in items if item.slice == gate.safety_slice and (kind.has_labels or is_refusal(item.reference))
    ]
    if not wanted:
        what = "" if kind.has_labels else " whose reference is a refusal"
        return _build(
            SAFETY_CHECK,
            {"items": 0},
            f"golden.jsonl has no row of slice {gate.safety_slice}{what}",
            f"add such rows to golden.jsonl, or name another slice than {gate.safety_slice}",
        )
    wrong = [item.id for item in wanted if not item.correct]
    share = (len(wanted) - len(wrong)) / len(wanted)
    details = {"items": len(wanted), "right": share, "needed": gate.safety, "wrong": ", ".join(wrong[:5])}
    if share >= gate.safety:
        return _build(SAFETY_CHECK, details)
    verb = "gets wrong" if kind.has_labels else "does not refuse"
    return _build(
        SAFETY_CHECK,
        details,
        f"the student {verb} {len(wrong)} of {count_noun(len(wanted), 'row')} of {gate.safety_slice} "
        f"({', '.join(wrong[:5])}), and release.gate.safety is {gate.safety:g}",
        f"more training rows like these, or safety: {_floor(share)}",
    )


def _check_regression(
    items: list[_Item],
    gate: ReleaseGateSpec,
    spec: EvaluationSpec,
    current: Sequence[GoldenScore] | None,
    name: str,
) -> CheckResult:
    if not gate.no_regression:
        return _switch_off(REGRESSION_CHECK, "release.gate.no_regression is false")
    if current is None:
        return _switch_off(REGRESSION_CHECK, "nothing was released before")
    found = compare_golden_scores(_list_scores(items), current, spec.seed)
    if found is None:
        return _switch_off(REGRESSION_CHECK, f"golden has no item of {name} any more")
    details = asdict(found)
    if found.difference >= 0 or found.p_value > 1 - spec.confidence:
        return _build(REGRESSION_CHECK, details)
    return _build(
        REGRESSION_CHECK,
        details,
        f"on {count_noun(found.items, 'golden item')} the student scores {found.difference:+.3f} against {name}: "
        f"{found.worse} worse, {found.better} better, p = {found.p_value:.2g}",
        f"a student that is not worse, or no_regression: false if {name} must be replaced all the same",
    )


def _floor(value: float) -> str:
    return f"{int(value * 1000) / 1000:g}"


def _ceil(value: float) -> str:
    return f"{-int(-value * 1000 // 1) / 1000:g}"


def iter_gate_lines(checks: Sequence[CheckResult]) -> Iterator[str]:
    """One line for each check, for a terminal and for a card."""
    for check in checks:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in check.details.items() if name not in _TEXTS and value
        )
        if "not_checked" in check.details:
            yield f"{check.name}: not checked, {check.details['not_checked']}"
        else:
            yield f"{check.name}: {'passed' if check.passed else 'failed'}" + (f" ({figures})" if figures else "")


_TEXTS = ("why", "would_pass", "not_checked")
