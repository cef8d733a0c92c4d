"""A task folder, and finding it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distill_dagster.config import SLICE_KEY, TASK_NAME, Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.tasks.accepted import DESCRIPTION, accepted_file, accepted_keys, read_accepted
from distill_dagster.tasks.imagined import Imagination, imagined_file, read_imagined
from distill_dagster.tasks.reading import (
    DEV,
    EXAMPLES,
    GOLDEN,
    HUMAN,
    TASK_FILE,
    example_problems,
    read_rows,
    read_slice,
    read_task,
)
from distill_dagster.tasks.rows import Row, Slice
from distill_dagster.tasks.yaml_files import link_problem, read_text, value_of


@dataclass(frozen=True, eq=False)
class TaskFolder:
    """A task folder and, read once when first needed, what is in it. Properties raise `InputError`.

    `accepted` is the folder of what came through the inbox; without it a task has what is in its own folder.
    """

    path: Path
    accepted: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def task(self) -> Task:
        return value_of(read_task(self.path))

    def slice_keys(self) -> list[str]:
        """All slices, sorted: those of the user's files, and those that only have prompts from the inbox."""
        return sorted({*self.written_slices(), *accepted_keys(self.accepted)})

    def written_slices(self) -> list[str]:
        """Slice files by name, sorted. A name that cannot be a partition is left out here and named by `check`."""
        files = slice_files(self.path)
        return sorted(f.stem for f in files if not slice_file_problem(self.path, f))

    def slice(self, key: str) -> Slice:
        rows = read_accepted(accepted_file(self.accepted, key)) if self.accepted else []
        path = self.path / "slices" / f"{key}.yaml"
        if rows and not (path.is_symlink() or path.exists()):
            bare = Slice.model_construct(description=DESCRIPTION.format(key=key), seeds=[])
            return bare.with_accepted(rows)
        imagination = read_imagined(imagined_file(self.accepted, key)) if self.accepted else Imagination()
        return value_of(read_slice(path, self.task)).with_accepted(rows).with_imagined(imagination)

    def rows(self, file: str, labelled: bool = True) -> list[Row]:
        path = self.path / file
        if file == HUMAN and not path.exists():
            return []
        return value_of(read_rows(path, self.task, labelled))

    @cached_property
    def examples(self) -> list[Row]:
        rows = self.rows(EXAMPLES)
        if problems := example_problems(self.path, self.task, rows):
            raise InputError(problems)
        return rows

    @cached_property
    def dev(self) -> list[Row]:
        return self.rows(DEV)

    @cached_property
    def golden(self) -> list[Row]:
        return self.rows(GOLDEN)

    @cached_property
    def human(self) -> list[Row]:
        return self.rows(HUMAN)

    def templates(self) -> dict[str, str]:
        """The user's own templates by name.

        Raises:
            InputError: one of them cannot be read, or is a symbolic link.
        """
        folder = self.path / "templates"
        problems: list[Problem] = []
        if folder.is_symlink():
            problems.append(link_problem(folder))
        files = sorted(folder.glob("*.j2")) if not problems and folder.is_dir() else []
        texts = {f.stem: read_text(f, problems) for f in files}
        if problems:  # falling back to the built-in template would ask the teacher something else than the user wrote
            raise InputError(problems)
        return texts


def find_tasks(tasks: Path, accepted: Path) -> list[TaskFolder]:
    """All folders below `tasks` that hold a task.yaml, sorted by name; `accepted` is where the inbox puts prompts."""
    if not tasks.is_dir():
        return []
    found = [p for p in sorted(tasks.iterdir()) if (p / TASK_FILE).is_file() and not p.is_symlink()]
    return [TaskFolder(p, accepted / p.name) for p in found]


def open_task(tasks: Path, name: str, accepted: Path) -> TaskFolder:
    """The folder of one task; `accepted` is where the inbox puts prompts of all tasks.

    Raises:
        InputError: there is no such task, or its name cannot be a task name.
    """
    known = [t.name for t in find_tasks(tasks, accepted)]
    if not TASK_NAME.fullmatch(name) or name not in known:
        problem = Problem(
            tasks,
            f"there is no task {name!r}.",
            f"Known tasks: {', '.join(known) or 'none'}. A task is a folder "
            f"with a {TASK_FILE}; its name matches {TASK_NAME.pattern}.",
        )
        raise InputError([problem])
    return TaskFolder(tasks / name, accepted / name)


def slice_files(folder: Path) -> list[Path]:
    """All files below slices/ that may be meant as one, sorted."""
    slices = folder / "slices"
    if slices.is_symlink() or not slices.is_dir():
        return []
    return sorted(p for p in slices.rglob("*") if p.suffix in (".yaml", ".yml") and not p.name.startswith("."))


def slice_file_problem(folder: Path, file: Path) -> Problem | None:
    """Why a file cannot be a slice by its name."""
    name = file.relative_to(folder / "slices").with_suffix("").as_posix()
    if file.suffix != ".yaml":
        return Problem(file, "slice files end with .yaml.", "Rename the file.")
    if not SLICE_KEY.fullmatch(name):
        message = f"the slice name {name!r} cannot be a partition."
        return Problem(file, message, f"Use a name that matches {SLICE_KEY.pattern}: no slash, no capital, no space.")
    return None
