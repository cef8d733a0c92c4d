"""`routing.json` of a release: one confidence threshold for each export, and how it was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import write_atomically
from distill_dagster.evaluation.risk_coverage import RoutingPoint
from distill_dagster.intake.request_log import Route
from distill_dagster.release.routing.calibration import RouterCalibration

ROUTING_FILE = "routing.json"

ThresholdSource = Literal["dev", "traffic", "task.yaml"]


@dataclass(frozen=True)
class ExportRouting:
    """When an export's own answer is used. A threshold holds for one file: int8 weights shift confidences.

    Attributes:
        threshold: the lowest confidence at which the student answers; None: the teacher answers everything.
        source: what it was chosen on; `task.yaml`: somebody set it.
        calibration: how it was chosen; None if somebody set it.
        curve: the risk-coverage curve on the rows it was chosen on; empty if somebody set it.
        golden: the router at this threshold on golden; None if the teacher answers everything.
    """

    threshold: float | None
    source: ThresholdSource
    calibration: RouterCalibration | None = None
    curve: tuple[RoutingPoint, ...] = ()
    golden: RoutingPoint | None = None

    def choose_route(self, confidence: float | None) -> Route:
        """Who answers a request. An answer without confidence is used only if the student answers everything."""
        if self.threshold is None:
            return "teacher"
        return "student" if (confidence or 0.0) >= self.threshold else "teacher"

    def to_dict(self) -> dict[str, Any]:
        curve = [asdict(point) for point in self.curve if point.coverage > 0]  # the first one's threshold is infinite
        return asdict(self) | {"curve": curve}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ExportRouting:
        calibration, golden = value.get("calibration"), value.get("golden")
        return cls(
            threshold=value["threshold"],
            source=value["source"],
            calibration=RouterCalibration(**calibration) if calibration else None,
            curve=tuple(RoutingPoint(**point) for point in value.get("curve", [])),
            golden=RoutingPoint(**golden) if golden else None,
        )


@dataclass(frozen=True)
class RoutingTable:
    """The thresholds of a release by export, and the share of accepted requests that the teacher answers too."""

    shadow_share: float
    exports: Mapping[str, ExportRouting] = field(default_factory=dict)

    def get_routing(self, export: str) -> ExportRouting:
        """The routing of an export. One that is not in the file is not calibrated: the teacher answers everything."""
        return self.exports.get(export) or ExportRouting(threshold=None, source="dev")

    def write(self, release: Path) -> Path:
        """Write `routing.json` into the folder of a release."""
        exports = {name: routing.to_dict() for name, routing in self.exports.items()}
        path = release / ROUTING_FILE
        value = {"shadow_share": self.shadow_share, "exports": exports}
        write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, release: Path) -> RoutingTable:
        """Read `routing.json` of a release.

        Raises:
            DistillError: it is missing or malformed.
        """
        path = release / ROUTING_FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            exports = {name: ExportRouting.from_dict(routing) for name, routing in value["exports"].items()}
            return cls(value["shadow_share"], exports)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DistillError(f"{path} cannot be read ({error}). Release the student again.") from error
