"""Problems in the user's files: one message each, with file, line, field and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from distill_dagster.core.checks import CheckResult


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file of a task folder.

    `line` is 1-based, or None where the whole file is meant.
    """

    file: Path
    message: str
    remedy: str
    line: int | None = None
    field: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}" + (f":{self.line}" if self.line else "")
        field = f" [{self.field}]" if self.field else ""
        return f"{place}{field}: {self.message} {self.remedy}"


class DistillError(Exception):
    """Anything that a user can mend; shown without a traceback. `checks` failed before the stage made anything."""

    checks: tuple[CheckResult, ...] = ()


class InputError(DistillError):
    """One or more problems in the user's files. Nothing was written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in problems))


class TeacherError(DistillError):
    """The teacher could not be asked, or too few of its answers were usable."""


class TermsError(TeacherError):
    """The terms of a teacher restrict training with its answers, and the task does not acknowledge that."""

    def __init__(self, message: str, checks: Sequence[CheckResult]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


class ModelError(DistillError):
    """A model could not be resolved or loaded."""
