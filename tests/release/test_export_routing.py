"""Each export gets a threshold of its own, chosen on dev or on shadowed requests, and never on golden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest

from distill_dagster.config import RoutingSpec, Task
from distill_dagster.core.errors import DistillError
from distill_dagster.intake.request_log import LoggedRequest
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.release.routing.exports import (
    RoutingItem,
    RoutingItems,
    build_labelled_items,
    build_routing_table,
    build_traffic_items,
)
from distill_dagster.release.runtimes.types import StudentAnswer
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tasks import LabelledRow

LABELS = ("refund", "password")
TASK = {
    "kind": "classification",
    "description": "Sort tickets.",
    "labels": [{"name": name, "description": name} for name in LABELS],
    "teacher": {"model": "embedded/smollm2-135m-instruct"},
    "students": {"s": {"model": "all-minilm-l6-v2", "architecture": "encoder"}},
}


@pytest.fixture(scope="module")
def kind() -> Kind:
    return get_kind(Task.model_validate(TASK))


class WordRuntime:
    """Says refund. Its confidence is the number at the end of the prompt, less what quantization took."""

    batch_size, concurrency = 7, 1

    def __init__(self, name: str, shift: float = 0.0) -> None:
        self.name, self._shift, self.opened = name, shift, 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.opened -= 1

    def is_alive(self) -> bool:
        return self.opened > 0

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        assert self.is_alive()
        found = [float(prompt.text.split()[-1]) - self._shift for prompt in prompts]
        return [StudentAnswer("refund", "refund", p, {"refund": p, "password": 1 - p}, 3, 1) for p in found]

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        yield from self.answer([prompt])


def make_items(sure: int, unsure: int) -> list[RoutingItem]:
    """Sure ones, which are refunds, and unsure ones, which are not. The teacher is always right."""
    one = [RoutingItem(StudentPrompt.from_text(f"money {n} 0.9"), "refund", True) for n in range(sure)]
    return one + [RoutingItem(StudentPrompt.from_text(f"sign in {n} 0.6"), "password", True) for n in range(unsure)]


def test_each_export_has_its_own_threshold_and_golden_is_only_shown(kind: Kind) -> None:
    made = {"onnx": WordRuntime("onnx"), "onnx-int8": WordRuntime("onnx-int8", shift=0.2)}
    items = RoutingItems(dev=make_items(200, 100), golden=make_items(10, 30))
    makers = {"onnx": lambda: made["onnx"], "onnx-int8": lambda: made["onnx-int8"]}
    table = build_routing_table(RoutingSpec(margin=0.02), kind, items, makers)
    full, int8 = table.exports["onnx"], table.exports["onnx-int8"]
    assert full.threshold is not None
    assert int8.threshold is not None
    assert 0.6 < full.threshold <= 0.9
    assert 0.4 < int8.threshold <= 0.7
    assert full.calibration is not None
    assert (full.source, full.calibration.rows) == ("dev", 300)
    assert full.calibration.coverage == pytest.approx(2 / 3)
    assert full.golden is not None
    assert (full.golden.coverage, full.golden.accuracy) == (0.25, 1.0)
    assert [point.threshold for point in full.curve] == [0.9, 0.6]
    assert not any(runtime.is_alive() for runtime in made.values())
    easier = build_routing_table(
        RoutingSpec(margin=0.02), kind, RoutingItems(items.dev, make_items(40, 0)), {"onnx": lambda: made["onnx"]}
    )
    assert easier.exports["onnx"].threshold == full.threshold


def test_too_few_rows_leave_everything_to_the_teacher(kind: Kind) -> None:
    items = RoutingItems(dev=make_items(96, 0), golden=make_items(10, 0))
    found = build_routing_table(RoutingSpec(), kind, items, {"onnx": lambda: WordRuntime("onnx")}).exports["onnx"]
    assert found.threshold is None
    assert found.golden is None
    assert found.calibration is not None
    assert "at least 299" in found.calibration.describe()
    assert found.choose_route(1.0) == "teacher"


def test_a_threshold_of_task_yaml_is_taken_and_promises_nothing(kind: Kind) -> None:
    items = RoutingItems(dev=[], golden=make_items(10, 10))
    spec = RoutingSpec(threshold=0.0)
    found = build_routing_table(spec, kind, items, {"onnx": lambda: WordRuntime("onnx")}).exports["onnx"]
    assert (found.threshold, found.source, found.calibration) == (0.0, "task.yaml", None)
    assert found.golden is not None
    assert (found.golden.coverage, found.golden.accuracy) == (1.0, 0.5)


def make_request(n: int, confidence: float, teacher: str | None) -> LoggedRequest:
    return LoggedRequest(
        id=str(n), at="2026-11-26T10:00:00+00:00", text=f"money {n} {confidence}", messages=None, slice=None,
        student="s", release=1, export="onnx", answer="refund", route="student", confidence=confidence,
        threshold=0.5, student_answer="refund", teacher_answer=teacher, shadowed=teacher is not None,
    )  # fmt: skip


def test_shadowed_requests_calibrate_without_human_labels(kind: Kind) -> None:
    requests = [make_request(n, 0.9, "refund") for n in range(300)]
    requests += [make_request(n, 0.6, "password") for n in range(300, 350)] + [make_request(400, 0.9, None)]
    items = RoutingItems(dev=[], golden=make_items(4, 0), traffic=build_traffic_items(requests))
    spec = RoutingSpec(calibrate_on="traffic")
    found = build_routing_table(spec, kind, items, {"onnx": lambda: WordRuntime("onnx")}).exports["onnx"]
    assert found.calibration is not None
    assert (found.source, found.calibration.rows, found.calibration.has_labels) == ("traffic", 350, False)
    assert found.threshold is not None
    assert 0.6 < found.threshold <= 0.9
    with pytest.raises(DistillError, match=r"calibrate_on is traffic, but the log has no requests"):
        build_routing_table(spec, kind, RoutingItems([], []), {"onnx": lambda: WordRuntime("onnx")})


def test_the_teacher_is_right_where_the_predictions_table_says_so(tmp_path: Path) -> None:
    rows = [LabelledRow(id=name, text=f"hello {name}", label="refund") for name in ("a", "b", "c")]
    predictions = pl.DataFrame(
        {
            "system": ["teacher", "teacher", "distilled", "teacher"],
            "split": ["dev", "dev", "dev", "golden"],
            "item_id": ["a", "b", "c", "c"],
            "correct": [True, False, True, True],
        }
    )
    items = build_labelled_items(rows, predictions, "dev")
    assert [(item.prompt.text, item.reference, item.teacher_right) for item in items] == [
        ("hello a", "refund", True),
        ("hello b", "refund", False),
    ]
