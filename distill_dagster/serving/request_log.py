"""Write the log of requests and the users' feedback: masked, in a thread of its own, in files of limited size."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from queue import Full, Queue
from typing import BinaryIO

from distill_dagster.config import InboxSpec, ServingSpec
from distill_dagster.core.files import append_durably, lock_file, refuse_symlink
from distill_dagster.intake.masking import mask_json, mask_text
from distill_dagster.intake.request_log import FEEDBACK_FILE, LOG_PATTERN, Feedback, LoggedRequest, format_log_line
from distill_dagster.serving.metrics import ServerMetrics

MAX_QUEUED = 10_000
"""Lines that wait to be written. More are dropped and counted, so a slow disk never delays an answer."""
MAX_QUEUED_CHARS = 64_000_000
REMEMBERED, REMEMBERED_CHARS = 10_000, 16_000_000
"""Requests whose text is remembered, so that feedback to one that was not logged has it."""
MAX_FEEDBACK = 10
"""Feedback that is taken to one answer, so that nobody fills the disk with it."""
logger = logging.getLogger("distill.serving")


class RequestLog:
    """The log of one server. Every public method returns at once, except `close` and `write_feedback`."""

    def __init__(
        self,
        folder: Path,
        spec: ServingSpec,
        inbox: InboxSpec,
        metrics: ServerMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` returns a random number from 0 to 1.

        Raises:
            InputError: the folder is a symbolic link.
        """
        refuse_symlink(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._spec, self._regions = folder, spec, inbox.phone_regions
        self._metrics, self._chance = metrics, chance
        self._queue: Queue[LoggedRequest | None] = Queue(MAX_QUEUED)
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._feedback: Counter[str] = Counter()
        self._remembered_chars = self._queued_chars = 0
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._buffered = 0  # lines in the buffer of the file
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def add(self, row: LoggedRequest) -> None:
        """Log a request if chance says so, or if it was shadowed. Its texts are masked before they are written."""
        self._remember(row)
        share = self._spec.log_share
        sampled = share > 0 and self._chance() < share
        if not share or not (sampled or row.shadowed):
            return
        try:
            if self._queued_chars > MAX_QUEUED_CHARS:
                raise Full
            self._queue.put_nowait(replace(row, sampled=sampled))
        except Full:
            self._metrics.log_failures.inc()
            return
        with self._lock:
            self._queued_chars += len(row.text)

    def _remember(self, row: LoggedRequest) -> None:
        with self._lock:
            self._remembered_chars += len(row.text) - len(self._texts.pop(row.id, ""))
            self._texts[row.id] = row.text
            while len(self._texts) > REMEMBERED or self._remembered_chars > REMEMBERED_CHARS:
                id_, text = self._texts.popitem(last=False)
                self._remembered_chars -= len(text)
                self._feedback.pop(id_, None)

    def is_known(self, request_id: str) -> bool:
        """Whether this server answered this request, not too long ago."""
        with self._lock:
            return request_id in self._texts

    def count_feedback(self, request_id: str) -> bool:
        """Count feedback to a known request, and say whether it is one of the first `MAX_FEEDBACK`."""
        with self._lock:
            self._feedback[request_id] += 1
            return self._feedback[request_id] <= MAX_FEEDBACK

    def write_feedback(self, feedback: Feedback) -> None:
        """Append what a user says about an answer, masked, and make it durable.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            text = self._texts.get(feedback.request_id)
        masked = replace(
            feedback,
            answer=mask_json(feedback.answer, self._mask),
            note=self._mask(feedback.note) if feedback.note else None,
            text=self._mask(text) if text is not None else None,
        )
        with lock_file(self._folder / ".feedback.lock"):  # several servers may write
            append_durably(self._folder / FEEDBACK_FILE, format_log_line(masked))

    def close(self) -> None:
        """Write what waits, then end."""
        self._queue.put(None)
        self._thread.join()
        self._close_file()

    def _mask(self, text: str) -> str:
        return mask_text(text, self._regions).text

    def _write_all(self) -> None:
        has_failed = False
        while (row := self._queue.get()) is not None:
            with self._lock:
                self._queued_chars -= len(row.text)
            try:
                self._write(row)
            except Exception as error:  # a full disk, a read-only folder: the answers go on
                self._metrics.log_failures.inc()
                if isinstance(error, OSError):
                    self._lose_buffered()
                if not has_failed:
                    logger.error("requests are not logged: %s", getattr(error, "strerror", type(error).__name__))
                has_failed = True
            else:
                has_failed = False

    def _write(self, row: LoggedRequest) -> None:
        answers = {
            name: mask_json(getattr(row, name), self._mask) for name in ("answer", "student_answer", "teacher_answer")
        }
        messages = None
        if row.messages is not None:
            messages = [turn | {"content": self._mask(turn["content"] or "")} for turn in row.messages]
        line = format_log_line(replace(row, text=self._mask(row.text), messages=messages, **answers))
        if self._file is not None and self._file.tell() + len(line) > self._spec.log_file_mb * 2**20:
            self._close_file()
        if self._file is None:
            self._file = self._open_file()
        self._file.write(line)
        if self._queue.empty():  # a reader sees it at once, and under load lines are written together
            self._file.flush()
            self._buffered = 0
        else:
            self._buffered += 1

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # what a full disk does not take is lost
                self._lose_buffered()
        self._buffered = 0

    def _lose_buffered(self) -> None:
        self._metrics.log_failures.inc(self._buffered)
        self._buffered = 0

    def _open_file(self) -> BinaryIO:
        """Begin a new file, and delete the oldest ones."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        path = self._folder / f"requests-{stamp}-{os.getpid()}.jsonl"
        file = _create_file(path)
        for old in sorted(self._folder.glob(LOG_PATTERN))[: -self._spec.log_files]:
            old.unlink(missing_ok=True)
        return file


def _create_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), "ab")
