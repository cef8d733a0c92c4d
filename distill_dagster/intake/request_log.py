"""The log of served requests: JSONL files in the format of the inbox, masked, one folder for each task.

`distill serve` writes `requests/<task>/requests-<time>-<process>.jsonl`, and what users say about answers to
`feedback.jsonl` beside them. `text` and `slice` are the fields that the inbox reads. A process that is killed leaves an
unfinished last line, which readers ignore.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

LOG_PATTERN, FEEDBACK_FILE = "requests-*.jsonl", "feedback.jsonl"
Route = Literal["student", "teacher"]
Row = TypeVar("Row")
UNREADABLE = (ValueError, TypeError)
"""Errors of a line that is no row: what a killed process left of one, or what somebody else wrote."""


@dataclass(frozen=True)
class LoggedRequest:
    """One served request. Texts are masked. Answers are canonical JSON values, None if there is no valid answer.

    `sampled` says whether it belongs to the random sample of all requests (`serving.log_share`). Requests that the
    teacher answered too, as a shadow, are logged even if not. `confidence` is the student's. `teacher_answer` is None
    if the teacher was not asked. `threshold` is the one that decided: 0 if the student answers everything, None if no
    threshold was certified, and then the teacher was asked.
    """

    id: str
    at: str
    """When it came: ISO 8601 in UTC."""

    text: str
    """The user's text; of a conversation all user turns."""

    messages: list[dict[str, Any]] | None
    """The turns of a conversation with `role` and `content`. None if the prompt is one text."""

    slice: str | None
    student: str
    release: int
    export: str
    answer: Any
    """What the client got."""

    route: Route
    """Who gave the answer that the client got."""

    confidence: float | None
    threshold: float | None
    student_answer: Any
    teacher_answer: Any = None
    shadowed: bool = False
    sampled: bool = True
    label_probs: dict[str, float] | None = None


@dataclass(frozen=True)
class Feedback:
    """What a user says about an answer. `answer` is the right one, in the form of the API; None: the given one was
    right, or it was wrong and the right one is unknown, as `is_right` says.
    """

    request_id: str
    at: str
    is_right: bool | None
    answer: Any
    note: str | None = None
    text: str | None = None
    """The masked text of the request, so that feedback to a request that was not logged is of use. None: unknown."""


def format_log_line(row: LoggedRequest | Feedback) -> bytes:
    """One line of a log file."""
    return json.dumps(asdict(row), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_request_log(folder: Path) -> Iterator[LoggedRequest]:
    """The logged requests of a task, file by file in the order of their names: the oldest first."""
    for path in sorted(folder.glob(LOG_PATTERN)):
        yield from _read_lines(path, LoggedRequest)


def read_requests_from(path: Path, start: int) -> tuple[list[LoggedRequest], int]:
    """The requests of one log file from a byte on, and the byte after the last complete line."""
    rows, end = [], start
    with path.open("rb") as handle:
        handle.seek(start)
        for line in handle:
            if not line.endswith(b"\n"):  # it is still being written
                break
            end += len(line)
            with suppress(*UNREADABLE):
                rows.append(LoggedRequest(**json.loads(line)))
    return rows, end


def read_feedback(folder: Path) -> Iterator[Feedback]:
    """The feedback of a task, the oldest first."""
    yield from _read_lines(folder / FEEDBACK_FILE, Feedback)


def _read_lines(path: Path, row: Callable[..., Row]) -> Iterator[Row]:
    if path.is_symlink() or not path.is_file():
        return
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):  # it is still being written
                return
            with suppress(*UNREADABLE):
                yield row(**json.loads(line))
