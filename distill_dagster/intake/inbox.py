"""New prompts of a task: JSONL files that somebody drops into its inbox, taken file by file.

A file is taken whole or not at all. Its prompts are masked, sorted into slices and appended to the accepted files;
what is held out or known already is counted and not stored. A file is gone from the inbox only after its prompts are
durable, so one that was interrupted is taken again, and what is stored already is recognised.

No message here quotes a line: it may hold what masking is there for.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout

from distill_dagster.config import SLICE_KEY_PATTERN, InboxSpec
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import sync_folder
from distill_dagster.core.hashing import hash_content
from distill_dagster.intake.accepted import append_accepted
from distill_dagster.intake.masking import MAX_TEXT_CHARS, MaskedText, mask_text
from distill_dagster.tasks import TaskFolder, normalize_text
from distill_dagster.tasks.accepted import AcceptedPrompt, get_accepted_path, list_accepted_slices, read_accepted
from distill_dagster.tasks.rows import collect_held_out_keys

UNSORTED_SLICE = "unsorted"
"""The slice of prompts that name none and match no rule."""
QUIET_S = 10
"""A file that changed within so many seconds may still be written to; it is looked at later."""
MAX_FILE_BYTES = 64 * 1024 * 1024
DONE_FOLDER, REJECTED_FOLDER, LOCK_FILE = "done", "rejected", ".lock"
_UNFINISHED_SUFFIXES = (".part", ".tmp")
_JSON_TYPES = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class InboxSummary:
    """What became of one file. `rejected` ones were malformed; `skipped` and `waiting` ones lie where they lay."""

    file: str
    state: Literal["accepted", "rejected", "skipped", "waiting"]
    why: str = ""
    accepted: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    held_out: int = 0
    duplicates: int = 0
    too_long: int = 0

    def counts(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "masked": self.masked,
            "refused_golden_or_dev": self.held_out,
            "duplicates": self.duplicates,
            "too_long": self.too_long,
        }

    def __str__(self) -> str:
        if self.state != "accepted":
            return f"{self.file}: {self.state}: {self.why}"
        slices = ", ".join(f"{n} to {key}" for key, n in self.accepted.items())
        masked = ", ".join(f"{n} {kind}" for kind, n in self.masked.items())
        left_out = [(self.held_out, "golden or dev"), (self.duplicates, "duplicates"), (self.too_long, "too long")]
        refused = ", ".join(f"{n} {what}" for n, what in left_out if n)
        parts = [f"accepted {slices or 'none'}", f"masked {masked}" if masked else ""]
        parts.append(f"not stored: {refused}" if refused else "")
        return f"{self.file}: " + "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class IncomingPrompt:
    """One record of a file, with all its fields: rules may look at any. An import may have named its slice."""

    text: str
    fields: dict[str, Any]
    id: str | None = None
    slice: str | None = None


@dataclass(frozen=True)
class _FileContent:
    """A file as it was read. `batch` tells it from a later file with its name."""

    raw: bytes
    batch: str
    stamp: tuple[int, int, int]


class _SkippedFileError(Exception):
    """Why a file is left where it lies; `waits`: it will be read later."""

    def __init__(self, why: str, waits: bool = False) -> None:
        self.waits = waits
        super().__init__(why)


def compute_wait_s(inbox: Path) -> float | None:
    """Seconds until the youngest file in a task's inbox is old enough to be read; None where none has to wait."""
    files = [p for p in _list_files(inbox) if p.suffix == ".jsonl" and p.is_file() and not p.is_symlink()]
    young = [QUIET_S - age for age in map(_get_age_s, files) if age < QUIET_S]
    return max(young) if young else None


def process_inbox(
    folder: TaskFolder, inbox: Path, *, lock_s: float = -1, limit_s: float | None = None
) -> list[InboxSummary]:
    """Take every file that lies in a task's inbox.

    Args:
        folder: the task, with its folder of accepted prompts.
        inbox: the task's own inbox, `inbox/<task>`.
        lock_s: how long to wait where another process is taking files; -1 for as long as it takes.
        limit_s: begin no further file after so many seconds.

    Raises:
        InputError: the task's own files are malformed, so that nothing can be compared with them. Nothing was taken.
        DistillError: another process holds the lock.
    """
    if not inbox.is_dir() or not _list_files(inbox):
        return []
    for place in (inbox, inbox / DONE_FOLDER, inbox / REJECTED_FOLDER):
        if place.is_symlink():
            problem = Problem(place, "symbolic links are not followed.", "Put the folder itself there.")
            raise InputError([problem])
    with lock_inbox(inbox, lock_s):
        taker = _InboxProcessor(folder, inbox)
        started, out = time.monotonic(), []
        for path in _list_files(inbox):
            if limit_s is not None and time.monotonic() - started > limit_s:
                break
            try:
                out.append(taker.one(path))
            except OSError as error:  # a full disk, a folder that may not be written to
                raise DistillError(f"{path.name!r} could not be taken: {error.strerror}.") from error
        return out


def accept_prompts(
    folder: TaskFolder, inbox: Path, lines: list[IncomingPrompt], keys: list[str], source: str, dry_run: bool = False
) -> InboxSummary:
    """Take prompts that an import read, one key of a slice for each: masked, compared and stored like a file's.

    Raises:
        InputError: the task's own files are malformed, so that nothing can be compared with them.
    """
    with lock_inbox(inbox):
        batch = hash_content([source, os.getpid(), time.time_ns()])[:16]
        return _InboxProcessor(folder, inbox).store(lines, keys, source, batch, dry_run)


@contextmanager
def lock_inbox(inbox: Path, lock_s: float = -1) -> Iterator[None]:
    """Keep all others from writing what the inbox writes to, for as long as the block lasts."""
    try:
        with FileLock(inbox / LOCK_FILE, timeout=lock_s):
            yield
    except Timeout:
        raise DistillError(f"Another process is taking the files in {inbox}.") from None


def _list_files(inbox: Path) -> list[Path]:
    """What lies in the inbox, by name; names that say that a file is not finished are left out."""
    found = [p for p in inbox.iterdir() if not p.name.startswith(".") and p.suffix not in _UNFINISHED_SUFFIXES]
    return sorted(p for p in found if p.name not in (DONE_FOLDER, REJECTED_FOLDER))


def _get_age_s(path: Path) -> float:
    """Seconds since a file changed. A clock that runs ahead must not keep a file waiting for ever."""
    try:
        return abs(time.time() - path.lstat().st_mtime)
    except FileNotFoundError:
        return 0.0


class _InboxProcessor:
    """Takes files into one task; what is held out and what is known is read once."""

    def __init__(self, folder: TaskFolder, inbox: Path) -> None:
        assert folder.accepted is not None, "the task was opened without its folder of accepted prompts"
        self.inbox, self.accepted = inbox, folder.accepted
        self.spec: InboxSpec = folder.task.inbox
        rows = [*folder.golden, *folder.dev]
        self.held_out = collect_held_out_keys(folder.golden, folder.dev) | {
            normalize_text(self._mask(r.text).text) for r in rows
        }
        self.known: dict[str, tuple[str, str]] = {}  # by normalized text: the batch it came with, and its slice
        for key in folder.written_slices():
            for seed in folder.slice(key).seeds:
                self.known[normalize_text(seed.text)] = ("", key)
        for key in list_accepted_slices(self.accepted):
            for row in read_accepted(get_accepted_path(self.accepted, key)):
                self.known.setdefault(normalize_text(row.text), (row.batch, key))

    def _mask(self, text: str) -> MaskedText:
        return mask_text(text[:MAX_TEXT_CHARS], self.spec.phone_regions)

    def one(self, path: Path) -> InboxSummary:
        shown = sanitize_file_name(path)
        try:
            content = self._read(path)
        except _SkippedFileError as why:
            return InboxSummary(shown, "waiting" if why.waits else "skipped", str(why))
        except OSError as error:
            return InboxSummary(shown, "skipped", f"cannot be read: {error.strerror}")
        lines, problems = _parse_file(content.raw, self.spec)
        if problems:
            return self._reject(path, shown, problems, content.raw.count(b"\n") + 1)
        taken = self.store(lines, assign_slices(lines, self.spec), shown, content.batch)
        return self._finish(path, content, taken)

    def _read(self, path: Path) -> _FileContent:
        if path.is_symlink():
            raise _SkippedFileError("symbolic links are not followed")
        if not path.is_file():
            raise _SkippedFileError("not a file")
        if path.suffix != ".jsonl":
            raise _SkippedFileError("only files that end with .jsonl are read")
        if (age := _get_age_s(path)) < QUIET_S:
            raise _SkippedFileError(f"changed {age:.0f} s ago; looked at after {QUIET_S} quiet seconds", waits=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            found = os.fstat(descriptor)
            if found.st_size > MAX_FILE_BYTES:
                raise _SkippedFileError(f"larger than {MAX_FILE_BYTES // 1024**2} MB; split it")
            stamp = _get_stamp(found)
            return _FileContent(handle.read(), hash_content([os.fsencode(path.name).hex(), *stamp])[:16], stamp)

    def store(
        self, lines: list[IncomingPrompt], keys: list[str], source: str, batch: str, dry_run: bool = False
    ) -> InboxSummary:
        """Append what is new; what an interrupted attempt at this very file has stored counts as if it were."""
        accepted: dict[str, list[AcceptedPrompt]] = {}
        counts: Counter[str] = Counter()
        masked_counts: Counter[str] = Counter()
        out: Counter[str] = Counter()
        seen: set[str] = set()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for line, key in zip(lines, keys, strict=True):
            if len(line.text) > MAX_TEXT_CHARS:
                out["too_long"] += 1
                continue
            masked = self._mask(line.text)
            raw_key, masked_key = normalize_text(line.text), normalize_text(masked.text)
            batch_known, slice_known = self.known.get(masked_key, self.known.get(raw_key, (None, key)))
            if {raw_key, masked_key} & self.held_out:
                out["held_out"] += 1
                continue
            if masked_key in seen or batch_known not in (None, batch):
                out["duplicates"] += 1
                continue
            seen.add(masked_key)
            masked_counts.update(masked.counts)
            counts[slice_known] += 1
            if batch_known is None:
                row = AcceptedPrompt(text=masked.text.strip(), source=source, batch=batch, accepted_at=now, id=line.id)
                accepted.setdefault(key, []).append(row)
        for key, rows in sorted(accepted.items()) if not dry_run else ():
            append_accepted(get_accepted_path(self.accepted, key), rows)
            self.known |= {normalize_text(row.text): (batch, key) for row in rows}
        by_slice, by_kind = dict(sorted(counts.items())), dict(sorted(masked_counts.items()))
        return InboxSummary(
            source, "accepted", "", by_slice, by_kind, out["held_out"], out["duplicates"], out["too_long"]
        )

    def _finish(self, path: Path, content: _FileContent, taken: InboxSummary) -> InboxSummary:
        """Write the summary, then take the file away."""
        if _get_stamp(path.lstat()) != content.stamp:
            return InboxSummary(taken.file, "waiting", "written to while it was read; what was there is stored")
        folder = self.inbox / DONE_FOLDER
        folder.mkdir(exist_ok=True)
        target = next(t for t in _generate_names(folder, path) if _is_free(t, content.batch))
        summary = {"file": taken.file, "batch": content.batch, **taken.counts()}
        _write_file(target.with_name(f"{target.name}.json"), json.dumps(summary, indent=2) + "\n")
        if self.spec.keep_files:
            path.rename(target)
        else:
            path.unlink()
        sync_folder(folder)
        sync_folder(self.inbox)
        return taken

    def _reject(self, path: Path, shown: str, problems: list[str], lines: int) -> InboxSummary:
        """Write down what is wrong, then move the file."""
        folder = self.inbox / REJECTED_FOLDER
        folder.mkdir(exist_ok=True)
        target = next(t for t in _generate_names(folder, path) if not t.exists())
        count = f"{len(problems)} of {lines} lines" if lines > 1 else "its line"
        reason = [
            f"{shown} was rejected for {count}. Nothing of it was stored.",
            *problems,
            "Mend or remove these lines, and put the file back into the inbox. Whoever writes files there should write",
            "to a name that ends with .part and rename it when it is complete.",
            "The file beside this one is as it came: it is not masked.",
        ]
        _write_file(target.with_name(f"{target.name}.reason.txt"), "\n".join(reason) + "\n")
        path.rename(target)
        sync_folder(folder)
        sync_folder(self.inbox)
        return InboxSummary(
            shown, "rejected", f"{problems[0]} See {REJECTED_FOLDER}/{sanitize_file_name(target)}.reason.txt"
        )


def sanitize_file_name(path: Path) -> str:
    """A file's name as it may be printed and stored: whoever drops files chooses it."""
    name = os.fsencode(path.name).decode("utf-8", "replace")
    return mask_text("".join(c if c.isprintable() else "?" for c in name)[:200]).text


def _get_stamp(found: os.stat_result) -> tuple[int, int, int]:
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _generate_names(folder: Path, path: Path) -> Iterator[Path]:
    """The file's name in another folder, then the same with a number."""
    yield folder / path.name
    number = 1
    while True:
        number += 1
        yield folder / f"{path.stem}-{number}{path.suffix}"


def _is_free(target: Path, batch: str) -> bool:
    """Whether nothing would be overwritten but the summary of an interrupted attempt at the same file."""
    summary = target.with_name(f"{target.name}.json")
    if target.exists():
        return False
    if not summary.exists():
        return True
    try:
        return bool(json.loads(summary.read_text())["batch"] == batch)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_file(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def _parse_file(raw: bytes, spec: InboxSpec) -> tuple[list[IncomingPrompt], list[str]]:
    """The records of a file, and one message for every malformed line."""
    lines: list[IncomingPrompt] = []
    problems: list[str] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(_parse_line(line, spec))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if not lines and not problems:
        problems.append("line 1: the file is empty. Expected: one JSON object on each line. Add them.")
    return lines, problems


def _parse_line(line: bytes, spec: InboxSpec) -> IncomingPrompt:
    name = spec.text_field
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}. Expected: UTF-8. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"malformed JSON at column {error.colno}. Expected: one JSON object on each line. Mend the line."
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, endless nesting
        raise ValueError("unreadable JSON. Expected: one plain JSON object. Simplify the line.") from None
    if not isinstance(value, dict):
        raise ValueError("not an object. Expected: a JSON object with a text. Write {" + f'"{name}": "…"' + "}.")
    if name not in value:
        raise ValueError(
            f"the field {name!r} is missing. Expected: the prompt's text. Add it, or name its field in task.yaml."
        )
    text = value[name]
    if not isinstance(text, str):
        kind = _JSON_TYPES.get(type(text), "null")
        raise ValueError(f"the field {name!r} is {kind}. Expected: a text. Put it into quotation marks.")
    if not text.strip():
        raise ValueError(f"the field {name!r} is empty. Expected: the prompt's text. Write it, or remove the line.")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, written as an escape
        raise ValueError(f"the field {name!r} has half a character. Expected: Unicode. Mend the escape.") from None
    return IncomingPrompt(text, value)


def assign_slices(lines: list[IncomingPrompt], spec: InboxSpec) -> list[str]:
    """The slice of each record: the one it names, else that of the first rule that matches, else `unsorted`."""
    out: list[str | None] = []
    for line in lines:
        named = line.slice or line.fields.get(spec.slice_field)
        out.append(named if isinstance(named, str) and SLICE_KEY_PATTERN.fullmatch(named) else None)
    for rule in spec.rules:
        values = [_format_field(line.fields.get(rule.field or spec.text_field)) for line in lines]
        found = pl.Series(values, dtype=pl.String).str.contains(rule.matches).fill_null(False)
        out = [rule.slice if key is None and matches else key for key, matches in zip(out, found, strict=True)]
    return [key or UNSORTED_SLICE for key in out]


def _format_field(value: Any) -> str | None:
    """What a rule looks at: texts, and numbers and truth values as JSON writes them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return json.dumps(value) if isinstance(value, bool | int | float) else None
