"""routing.json: what is written reads back, and a route follows from a confidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.risk_coverage import RoutingRows, compute_curve, measure_router
from distill_dagster.release.routing.calibration import calibrate_router
from distill_dagster.release.routing.table import ROUTING_FILE, ExportRouting, RoutingTable


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = RoutingRows.from_answers([0.9] * 200 + [0.4] * 100, [True] * 200 + [False] * 100, [True] * 300)
    calibration = calibrate_router(rows, 0.02)
    assert calibration.threshold is not None
    golden = measure_router(rows, calibration.threshold)
    curve = tuple(point for point in compute_curve(rows) if point.coverage)
    table = RoutingTable(
        0.01,
        {
            "onnx": ExportRouting(calibration.threshold, "dev", calibration, curve, golden),
            "onnx-int8": ExportRouting(None, "dev", calibrate_router(rows, 0.001)),
            "adapter": ExportRouting(0.0, "task.yaml"),
        },
    )
    table.write(tmp_path)
    assert RoutingTable.read(tmp_path) == table


def test_routes() -> None:
    certified, nothing, all_ = (ExportRouting(threshold, "dev") for threshold in (0.8, None, 0.0))
    assert [certified.choose_route(c) for c in (0.8, 0.79, None)] == ["student", "teacher", "teacher"]
    assert [nothing.choose_route(c) for c in (1.0, None)] == ["teacher", "teacher"]
    assert [all_.choose_route(c) for c in (0.0, None)] == ["student", "student"]
    assert RoutingTable(0.01, {"onnx": certified}).get_routing("onnx-int8").choose_route(1.0) == "teacher"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"shadow_share": 0, "exports": {"onnx": {}}}'])
def test_a_malformed_file_names_itself_and_the_remedy(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / ROUTING_FILE).write_text(text)
    with pytest.raises(DistillError, match=r"routing\.json cannot be read .* Release the student again"):
        RoutingTable.read(tmp_path)
