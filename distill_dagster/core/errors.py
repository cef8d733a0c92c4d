"""Errors that a user can fix. A problem in a file has a message, file, line, field and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from distill_dagster.core.checks import CheckResult


@dataclass(frozen=True)
class Problem:
    """One mistake in a file of the user. `line` is 1-based, or None for the whole file.

    `message` says what is wrong, `remedy` what to do.
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

    def to_json(self) -> dict[str, str | int | None]:
        """The problem for `--json`."""
        return asdict(self) | {"file": str(self.file)}


class DistillError(Exception):
    """An error that a user can fix, shown without a traceback.

    `checks` are the results of checks that failed before a stage wrote anything.
    """

    checks: tuple[CheckResult, ...] = ()


class InputError(DistillError):
    """One or more problems in the user's files. Nothing was written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in problems))


class TeacherError(DistillError):
    """The teacher could not be asked, or too few of its answers are usable."""


class TermsError(TeacherError):
    """A provider's terms restrict training with its answers, and the task does not acknowledge them."""

    def __init__(self, message: str, checks: Sequence[CheckResult]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


class ModelError(DistillError):
    """A model could not be resolved or loaded."""
