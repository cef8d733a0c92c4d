"""Reading a task folder: strict, with file, line, field and remedy for everything that is wrong.

    folder = TaskFolder(Path("data/tasks/support_triage"))
    folder.task, folder.slice("billing"), folder.golden  # or an InputError that says what is wrong

`yaml_files` reads texts and YAML, `rows` has the models, `reading` reads one file into them, `folder` has the whole.
`pipeline.open_task` finds and opens the tasks of a project, and `pipeline.task_check` checks the whole of one.
"""

from distill_dagster.core.text import normalize_text
from distill_dagster.tasks.folder import TaskFolder
from distill_dagster.tasks.reading import (
    DEV_FILE,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    HUMAN_FILE,
    TASK_FILE,
    ImportTarget,
    read_rows,
)
from distill_dagster.tasks.rows import LabelledRow, Seed, Slice, Turn

__all__ = [
    "DEV_FILE",
    "EXAMPLES_FILE",
    "GOLDEN_FILE",
    "HUMAN_FILE",
    "TASK_FILE",
    "ImportTarget",
    "LabelledRow",
    "Seed",
    "Slice",
    "TaskFolder",
    "Turn",
    "normalize_text",
    "read_rows",
]
