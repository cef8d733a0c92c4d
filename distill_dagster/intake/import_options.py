"""What `distill import` is told, and what it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill_dagster.config import REPLAY_NAME_PATTERN, REPLAY_PREFIX, SLICE_KEY_PATTERN
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.intake.inbox import sanitize_file_name
from distill_dagster.intake.row_files import FileFormat, SourceRecord
from distill_dagster.tasks import DEV_FILE, EXAMPLES_FILE, GOLDEN_FILE, HUMAN_FILE, ImportTarget

TARGET_FILES = {"examples": EXAMPLES_FILE, "golden": GOLDEN_FILE, "dev": DEV_FILE, "human": HUMAN_FILE}
HELD_OUT, DUPLICATE, OTHER_ANSWER, INVALID = "golden or dev", "duplicate", "known with another answer", "cannot be used"
"""Why a record is left out."""


@dataclass(frozen=True)
class ImportOptions:
    """What records become, and where their parts are. Fields are names of columns, dotted paths or JSON pointers.

    Attributes:
        text_field: several fields are joined with an empty line.
        label_map: by a label of the file, the label of the task; an empty one leaves out its records.
        skip_invalid: leave out records that cannot be used, instead of refusing the file.
        slugify: make a slice key of any value in `slice_field`: `Phone note` is `phone-note`.
    """

    target: ImportTarget
    slice: str | None = None
    slice_field: str | None = None
    text_field: str | Sequence[str] | None = None
    label_field: str | None = None
    id_field: str | None = None
    completion_field: str | None = None
    reasoning_field: str | None = None
    soft_labels_field: str | None = None
    name: str | None = None
    dry_run: bool = False
    label_map: Mapping[str, str] = field(default_factory=dict)
    skip_invalid: bool = False
    slugify: bool = False
    file_format: FileFormat | None = None

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The fields of the text."""
        if self.text_field is None:
            return ()
        return (self.text_field,) if isinstance(self.text_field, str) else tuple(self.text_field)

    def check(self) -> None:
        """Check that the options go together.

        Raises:
            DistillError: they do not.
        """
        labelled = tuple(TARGET_FILES)
        allowed = {
            "--slice": (self.slice, ("seeds", *labelled)),
            "--slice-field": (self.slice_field, ("seeds", *labelled)),
            "--label-field": (self.label_field, labelled),
            "--map": (self.label_map or None, labelled),
            "--completion-field": (self.completion_field, ("recorded",)),
            "--soft-labels-field": (self.soft_labels_field, ("recorded",)),
            "--reasoning-field": (self.reasoning_field, ("recorded", *labelled)),
            "--name": (self.name, ("recorded",)),
        }
        for name, (value, targets) in allowed.items():
            if value is not None and self.target not in targets:
                raise DistillError(f"{name} has no meaning with --as {self.target}; it is for {', '.join(targets)}.")
        if self.slice is not None and self.slice_field is not None:
            raise DistillError("Give --slice or --slice-field, not both.")
        if self.slugify and self.slice_field is None:
            raise DistillError("--slugify is for the values of --slice-field. Give both.")
        if self.slice is not None and not SLICE_KEY_PATTERN.fullmatch(self.slice):
            raise DistillError(
                f"{self.slice!r} cannot be a slice. Use a name that matches {SLICE_KEY_PATTERN.pattern}."
            )
        if self.name is not None and not REPLAY_NAME_PATTERN.fullmatch(REPLAY_PREFIX + self.name):
            raise DistillError(
                f"{self.name!r} cannot be the name of recorded completions. "
                "Use small letters, digits, '.', '_' and '-'."
            )


@dataclass(frozen=True)
class ImportSummary:
    """What happened to the records of a file.

    Attributes:
        added: the number of new records by place, such as `slice billing` or `golden.jsonl`.
        skipped: the number of records left out, by reason.
        masked: the number of masked values by kind.
        hint: how to use what was imported.
        remarks: what was detected or changed, such as an encoding or the spelling of a label.
        problems: why records were left out as `cannot be used`.
    """

    file: str
    target: ImportTarget
    records: int
    added: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    hint: str = ""
    remarks: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def count(self) -> int:
        """The number of new records."""
        return sum(self.added.values())


class ImportLog:
    """Collects what happens to the records of one file."""

    def __init__(self, path: Path, options: ImportOptions, remarks: Sequence[str], problems: Sequence[Problem]) -> None:
        self.path, self.options = path, options
        self.remarks, self.problems = list(remarks), list(problems)
        self.skipped: Counter[str] = Counter()
        self._invalid: set[int] = set()
        self._unread = len(problems)

    def refuse(self, record: SourceRecord, problem: Problem) -> None:
        """A record cannot be used."""
        self.problems.append(problem)
        self._invalid.add(id(record))

    def stop_if_invalid(self) -> None:
        """Stop at the records that cannot be used, unless the user has them left out.

        Raises:
            InputError: there is one.
        """
        if not self.problems:
            return
        self.problems.sort(key=lambda problem: (str(problem.file), problem.line or 0))
        if not self.options.skip_invalid:
            raise InputError(self.problems)
        self.skipped[INVALID] = len(self._invalid) + self._unread

    def is_invalid(self, record: SourceRecord) -> bool:
        """Whether a record was refused."""
        return id(record) in self._invalid

    def summarize(
        self,
        records: int,
        added: Mapping[str, int],
        masked: Mapping[str, int] | None = None,
        hint: str = "",
    ) -> ImportSummary:
        """The summary of the import."""
        return ImportSummary(
            sanitize_file_name(self.path),
            self.options.target,
            records + self._unread,
            added={place: number for place, number in added.items() if number},
            skipped={reason: number for reason, number in sorted(self.skipped.items()) if number},
            masked=dict(sorted((masked or {}).items())),
            hint=hint,
            remarks=tuple(self.remarks),
            problems=tuple(self.problems),
        )
