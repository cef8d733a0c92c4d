"""Read a task folder strictly: each problem names its file, line, field and remedy.

    folder = TaskFolder(Path("data/tasks/support_triage"))
    folder.task, folder.read_slice("billing"), folder.golden  # or an InputError with all problems

`yaml_files` reads texts and YAML, `rows` has the models, `reading` reads one file into them, `folder` is the whole.
The prompts that came in later are in `accepted` and `imagined`; nothing here writes a file or asks a teacher.
`pipeline.open_task` finds and opens the tasks of a project, and `pipeline.task_check` checks the whole of one.
"""

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
from distill_dagster.tasks.rows import LabelledRow, Seed, Slice
from distill_dagster.tasks.turns import Turn

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
    "read_rows",
]
