"""Choose the threshold of each export of a release: its own answers to dev or to shadowed requests decide."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from distill_dagster.config import RoutingSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.risk_coverage import RoutingPoint, RoutingRows, compute_curve, measure_router
from distill_dagster.intake.request_log import LoggedRequest
from distill_dagster.kinds import Kind, Question, is_refusal, read_answer
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.release.routing.calibration import calibrate_router
from distill_dagster.release.routing.table import ExportRouting, RoutingTable
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.messages import make_message

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.release.runtimes.types import Runtime, StudentAnswer
    from distill_dagster.tasks import LabelledRow

CURVE_POINTS = 101


@dataclass(frozen=True)
class RoutingItem:
    """A prompt that the teacher has answered. `reference` is the right answer; without people, the teacher's."""

    prompt: StudentPrompt
    reference: Any
    teacher_right: bool


@dataclass(frozen=True)
class RoutingItems:
    """What exports are calibrated on, and what the chosen point is shown on.

    Attributes:
        dev: dev.jsonl with the teacher's answers.
        golden: golden.jsonl likewise. Nothing is chosen on it.
        traffic: shadowed requests; the reference is the teacher's answer.
    """

    dev: Sequence[RoutingItem]
    golden: Sequence[RoutingItem]
    traffic: Sequence[RoutingItem] = ()


def build_labelled_items(rows: Sequence[LabelledRow], predictions: pl.DataFrame, split: str) -> list[RoutingItem]:
    """Rows of golden.jsonl or dev.jsonl, with whether the teacher is right according to the predictions table."""
    import polars as pl

    teacher = predictions.filter((pl.col("split") == split) & (pl.col("system") == "teacher"))
    right: dict[str, bool] = dict(teacher.select("item_id", "correct").iter_rows())
    return [
        RoutingItem(StudentPrompt.from_messages(build_messages(row)), json.loads(row.answer_json), right[row.id])
        for row in rows
        if row.id in right
    ]


def build_traffic_items(requests: Sequence[LoggedRequest]) -> list[RoutingItem]:
    """Logged requests that the teacher answered, as `request_sample.select_teacher_sample` chooses them."""
    return [
        RoutingItem(build_request_prompt(one), one.teacher_answer, teacher_right=True)
        for one in requests
        if one.teacher_answer is not None
    ]


def build_request_prompt(request: LoggedRequest) -> StudentPrompt:
    """The prompt of a logged request, with what is masked in the log."""
    if request.messages is None:
        return StudentPrompt.from_text(request.text)
    return StudentPrompt.from_messages(make_message(turn["role"], turn["content"]) for turn in request.messages)


def build_routing_table(
    spec: RoutingSpec,
    kind: Kind,
    items: RoutingItems,
    exports: Mapping[str, Callable[[], Runtime]],
) -> RoutingTable:
    """Ask each export in turn and choose its threshold.

    Args:
        exports: by name of the export, what makes its runtime. It is opened and closed here.

    Raises:
        DistillError: the extra `release` is not installed, or there is nothing to calibrate on.
        ModelError: an export cannot be opened.
    """
    if spec.threshold is None and spec.calibrate_on == "traffic" and not items.traffic:
        raise DistillError(
            "routing.calibrate_on is traffic, but the log has no requests that student and teacher both answered. "
            "Serve a release with `shadow_share` first, or use `calibrate_on: dev`."
        )
    table = {}
    for name, make in exports.items():
        runtime = make()
        runtime.open()
        try:
            answer = partial(answer_items, runtime, kind, what=f"calibrating {name}")
            table[name] = choose_export_routing(spec, items, answer)
        finally:
            runtime.close()
    return RoutingTable(spec.shadow_share, table)


def choose_export_routing(
    spec: RoutingSpec, items: RoutingItems, answer: Callable[[Sequence[RoutingItem]], RoutingRows]
) -> ExportRouting:
    """The threshold of one export, and golden at it.

    Args:
        answer: lets the export answer items, and compares its answers with the references.
    """
    if spec.threshold is not None:
        rows = answer(items.golden)
        return ExportRouting(spec.threshold, "task.yaml", golden=_measure(rows, spec.threshold))
    rows = answer(items.traffic if spec.calibrate_on == "traffic" else items.dev)
    if spec.calibrate_on == "traffic":
        rows = RoutingRows(rows.confidence, rows.student_right, rows.teacher_right, has_labels=False)
    calibration = calibrate_router(rows, spec.margin, spec.confidence)
    curve = compute_curve(rows, CURVE_POINTS)[1:] if len(rows) else []  # the first point keeps nothing
    golden = None if calibration.threshold is None else _measure(answer(items.golden), calibration.threshold)
    return ExportRouting(calibration.threshold, spec.calibrate_on, calibration, tuple(curve), golden)


def _measure(rows: RoutingRows, threshold: float) -> RoutingPoint | None:
    return measure_router(rows, threshold) if len(rows) else None


def answer_items(runtime: Runtime, kind: Kind, items: Sequence[RoutingItem], *, what: str) -> RoutingRows:
    """Let an export answer items. An answer without confidence has confidence 0, and a malformed one is wrong.

    Args:
        what: the name of the work in progress reports.
    """
    confidence: list[float] = []
    right: list[bool] = []
    order = sorted(range(len(items)), key=lambda n: len(items[n].prompt.text))  # similar lengths share a batch
    for start in range(0, len(order), runtime.batch_size):
        progress.report_progress(what, start, len(order))
        part = [items[n] for n in order[start : start + runtime.batch_size]]
        for item, answer in zip(part, runtime.answer([item.prompt for item in part]), strict=True):
            confidence.append(min(1.0, answer.confidence or 0.0))
            right.append(is_right_answer(kind, item, answer))
    return RoutingRows.from_answers(confidence, right, [items[n].teacher_right for n in order])


def is_right_answer(kind: Kind, item: RoutingItem, answer: StudentAnswer) -> bool:
    """Whether an export's answer equals the reference, by the rules of the kind."""
    if answer.label_probs is not None:
        return kind.are_equal(answer.answer, item.reference)
    question = Question(item.prompt.text, is_refusal(item.reference))
    stop = f"\n\n{kind.task.item}:"
    read = read_answer(kind, answer.raw_text, question, finish_reason=answer.finish_reason, stop=stop)
    return read.answer is not None and kind.are_equal(json.loads(read.answer), item.reference)
