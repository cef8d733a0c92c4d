"""Declarations and results of checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CheckSpec:
    """The declaration of a check. If a blocking check fails, nothing downstream reads the artifact."""

    name: str
    description: str
    blocking: bool = False


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check. `details` names what failed, with some of the failing rows."""

    name: str
    passed: bool
    severity: Literal["error", "warning"] = "error"
    details: dict[str, Any] = field(default_factory=dict)
