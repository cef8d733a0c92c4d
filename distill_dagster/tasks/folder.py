"""A task folder as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from distill_dagster.config import SLICE_KEY_PATTERN, Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import make_symlink_problem
from distill_dagster.tasks.accepted import (
    INBOX_SLICE_DESCRIPTION,
    get_accepted_path,
    list_accepted_slices,
    read_accepted,
)
from distill_dagster.tasks.imagined import ImagineHistory, get_imagined_path, read_imagined
from distill_dagster.tasks.reading import (
    DEV_FILE,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    HUMAN_FILE,
    TASK_FILE,
    find_example_problems,
    read_rows,
    read_shipped_prompts,
    read_slice,
    read_task,
)
from distill_dagster.tasks.rows import LabelledRow, Slice
from distill_dagster.tasks.yaml_files import read_text, require_value


@dataclass(frozen=True, eq=False)
class TaskFolder:
    """A task folder. Its properties are read once, when they are first needed.

    Every property and method raises `InputError` if a file has problems.

    Attributes:
        accepted: the folder of prompts that came through the inbox; without it only the files of the task folder count.
        find_problems: validates blocks of task.yaml that are plain data for this package, such as
            `curation.filters`. `pipeline.open_task` sets it.
    """

    path: Path
    accepted: Path | None = None
    find_problems: Callable[[Path, Task], list[Problem]] = lambda _path, _task: []
    _slice_versions: dict[str, tuple[list[tuple[int, int, int]], str]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def task(self) -> Task:
        task = require_value(read_task(self.path))
        if problems := self.find_problems(self.path / TASK_FILE, task):
            raise InputError(problems)
        return task

    def list_slice_keys(self) -> list[str]:
        """The keys of all slices, sorted: those with a file, and those that only have prompts from the inbox."""
        return sorted({*self.list_written_slice_keys(), *list_accepted_slices(self.accepted)})

    def list_written_slice_keys(self) -> list[str]:
        """The keys of all slices with a file, sorted. `distill check` names the files that cannot be a partition."""
        files = list_slice_files(self.path)
        return sorted(file.stem for file in files if not find_slice_file_problem(self.path, file))

    def read_slice(self, key: str) -> Slice:
        """The slice `key` with its accepted and imagined prompts, those shipped with the task among them."""
        accepted = read_accepted(get_accepted_path(self.accepted, key)) if self.accepted else []
        prompts = require_value(read_shipped_prompts(get_imagined_path(self.path, key), self.task))
        shipped = tuple(prompts)
        path = self.path / "slices" / f"{key}.yaml"
        if accepted and not (path.is_symlink() or path.exists()):
            description = INBOX_SLICE_DESCRIPTION.format(key=key)
            return Slice.model_construct(description=description, seeds=[], accepted=tuple(accepted), shipped=shipped)
        imagination = read_imagined(get_imagined_path(self.accepted, key)) if self.accepted else ImagineHistory()
        content = require_value(read_slice(path, self.task, has_more=bool(accepted or shipped)))
        more = {"accepted": tuple(accepted), "shipped": shipped, "imagination": imagination}
        return content.model_copy(update=more)

    def compute_slice_version(self, key: str) -> str:
        """The data version of a slice. A slice whose files did not change since the last call is not read again."""
        paths = [self.path / "slices" / f"{key}.yaml", get_imagined_path(self.path, key)]
        if self.accepted:
            paths += [get_accepted_path(self.accepted, key), get_imagined_path(self.accepted, key)]
        stamps = [_get_stamp(path) for path in paths]
        known = self._slice_versions.get(key)
        if known is None or known[0] != stamps:
            known = self._slice_versions[key] = stamps, self.read_slice(key).compute_content_version()
        return known[1]

    def read_rows(self, file: str, labelled: bool = True) -> list[LabelledRow]:
        """The rows of a JSONL file of this folder; `human.jsonl` may be missing.

        Args:
            labelled: whether each row needs a label or answer.
        """
        path = self.path / file
        if file == HUMAN_FILE and not path.exists():
            return []
        return require_value(read_rows(path, self.task, labelled))

    @cached_property
    def examples(self) -> list[LabelledRow]:
        rows = self.read_rows(EXAMPLES_FILE)
        if problems := find_example_problems(self.path, self.task, rows):
            raise InputError(problems)
        return rows

    @cached_property
    def dev(self) -> list[LabelledRow]:
        return self.read_rows(DEV_FILE)

    @cached_property
    def golden(self) -> list[LabelledRow]:
        return self.read_rows(GOLDEN_FILE)

    @cached_property
    def human(self) -> list[LabelledRow]:
        return self.read_rows(HUMAN_FILE)

    def read_templates(self) -> dict[str, str]:
        """The user's own templates by name.

        Raises:
            InputError: one of them cannot be read, or is a symbolic link.
        """
        folder = self.path / "templates"
        problems: list[Problem] = []
        if folder.is_symlink():
            problems.append(make_symlink_problem(folder))
        files = sorted(folder.glob("*.j2")) if not problems and folder.is_dir() else []
        files = [file for file in files if not file.name.startswith(".")]  # what macOS and editors leave behind
        texts = {file.stem: read_text(file, problems) for file in files}
        if problems:  # with the built-in template the teacher would be asked something that the user did not write
            raise InputError(problems)
        return texts


def list_slice_files(folder: Path) -> list[Path]:
    """All YAML files below slices/, sorted. `find_slice_file_problem` says which of them are not slices."""
    slices = folder / "slices"
    if slices.is_symlink() or not slices.is_dir():
        return []
    files = [path for path in slices.rglob("*") if path.suffix in (".yaml", ".yml")]
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(slices).parts))


def find_slice_file_problem(folder: Path, file: Path) -> Problem | None:
    """The problem with the name of a slice file, if there is one."""
    name = file.relative_to(folder / "slices").with_suffix("").as_posix()
    if file.suffix != ".yaml":
        return Problem(file, "slice files end with .yaml.", "Rename the file.")
    if not SLICE_KEY_PATTERN.fullmatch(name):
        message = f"the slice name {name!r} cannot be a partition."
        return Problem(
            file, message, f"Use a name that matches {SLICE_KEY_PATTERN.pattern}: no slash, no capital, no space."
        )
    return None


def _get_stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced; zeros if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
