"""Review what users said about answers. An accepted row goes to human.jsonl; nothing does without a person.

Feedback is not a label: a user may be wrong, or lie. `reviewed.jsonl` next to the log has a line for every decision.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import append_durably, refuse_symlink
from distill_dagster.intake.import_files import import_file
from distill_dagster.intake.import_options import ImportOptions
from distill_dagster.intake.request_log import Feedback, LoggedRequest, read_feedback, read_request_log
from distill_dagster.tasks import TaskFolder

REVIEWED_FILE = "reviewed.jsonl"
SOURCE = "feedback"
Decision = Literal["accepted", "rejected"]


@dataclass(frozen=True)
class WaitingFeedback:
    """Feedback to one request that nobody has reviewed yet. Texts are masked.

    Attributes:
        served: the answer that the client got; None if the request was not logged.
        proposed: the right answer according to the user; None if they only said that the served one is wrong.
    """

    request_id: str
    at: str
    text: str
    messages: list[dict[str, Any]] | None
    slice: str | None
    served: Any
    proposed: Any
    is_right: bool | None
    note: str | None
    confidence: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_waiting_feedback(log: Path) -> list[WaitingFeedback]:
    """The feedback that waits for a person, the oldest first. Of several to one request, the newest counts.

    Feedback to a request whose text is unknown is left out: there is nothing to label.

    Args:
        log: the task's folder of logged requests.

    Raises:
        InputError: `reviewed.jsonl` has a broken line.
    """
    done = {(one["request_id"], one["feedback_at"]) for one in _read_decisions(log)}
    newest = {one.request_id: one for one in read_feedback(log)}
    open_ = {id_: one for id_, one in newest.items() if (id_, one.at) not in done}
    if not open_:
        return []
    requests = {one.id: one for one in read_request_log(log) if one.id in open_}
    found = [_build_waiting(one, requests.get(id_)) for id_, one in open_.items()]
    return sorted((one for one in found if one is not None), key=lambda one: one.at)


def _build_waiting(feedback: Feedback, request: LoggedRequest | None) -> WaitingFeedback | None:
    text = request.text if request is not None else feedback.text
    if not text or not text.strip():
        return None
    served = request.answer if request is not None else None
    return WaitingFeedback(
        request_id=feedback.request_id,
        at=feedback.at,
        text=text,
        messages=request.messages if request is not None else None,
        slice=request.slice if request is not None else None,
        served=served,
        proposed=served if feedback.answer is None and feedback.is_right else feedback.answer,
        is_right=feedback.is_right,
        note=feedback.note,
        confidence=request.confidence if request is not None else None,
    )


def accept_feedback(folder: TaskFolder, inbox: Path, log: Path, waiting: WaitingFeedback, answer: Any = None) -> None:
    """Append the request with its right answer to human.jsonl, checked as an import is.

    Args:
        inbox: the task's own inbox, whose lock is held while writing.
        answer: the right answer, if it is another one than the user's.

    Raises:
        InputError: the answer is not one of the task's labels, or not of the form of its kind.
        DistillError: there is no answer, or the text is known already, or is in golden or dev.
    """
    right = waiting.proposed if answer is None else answer
    if right is None:
        raise DistillError(f"{waiting.request_id}: the user gave no right answer. Give it with --answer.")
    row: dict[str, Any] = {"id": f"{SOURCE}-{waiting.request_id}", "source": SOURCE}
    if folder.task.kind == "conversation" and waiting.messages:
        row["messages"] = waiting.messages
    else:
        row["text"] = waiting.text
    row |= {"slice": waiting.slice} if waiting.slice else {}
    row["label" if folder.task.has_labels else "answer"] = right
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"{SOURCE}.jsonl"
        file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        done = import_file(folder, file, ImportOptions("human"), inbox)
    if not done.count:
        reasons = ", ".join(reason for reason, number in done.skipped.items() if number)
        raise DistillError(
            f"{waiting.request_id} cannot be added to human.jsonl: {reasons or 'nothing to add'}. Reject it instead."
        )
    _append_decision(log, waiting, "accepted", right)


def reject_feedback(log: Path, waiting: WaitingFeedback) -> None:
    """Decide that nothing follows from the feedback. It is not shown again."""
    _append_decision(log, waiting, "rejected", None)


def _append_decision(log: Path, waiting: WaitingFeedback, decision: Decision, answer: Any) -> None:
    value = {
        "request_id": waiting.request_id,
        "feedback_at": waiting.at,
        "decision": decision,
        "answer": answer,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = log / REVIEWED_FILE
    refuse_symlink(log, path)
    append_durably(path, json.dumps(value, ensure_ascii=False).encode() + b"\n")


def _read_decisions(log: Path) -> Iterator[dict[str, Any]]:
    path = log / REVIEWED_FILE
    refuse_symlink(log, path)
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            yield {"request_id": value["request_id"], "feedback_at": value["feedback_at"]}
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # a killed process may have left the last line unfinished
                raise InputError([Problem(path, "malformed line.", "Remove the line.", line=number)]) from None
