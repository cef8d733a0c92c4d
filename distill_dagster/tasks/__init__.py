"""Reading a task folder: strict, with file, line, field and remedy for everything that is wrong.

    folder = open_task(home.tasks, "support_triage", home.accepted)
    folder.task, folder.slice("billing"), folder.golden  # or an InputError that says what is wrong

`yaml_files` reads texts and YAML, `rows` has the models, `reading` reads one file into them, `folder` has the whole.
`pipeline.task_check` looks at all of it for `distill check`.
"""

from distill_dagster.core.text import normalize_text
from distill_dagster.tasks.folder import TaskFolder, find_tasks, open_task
from distill_dagster.tasks.reading import DEV_FILE, EXAMPLES_FILE, GOLDEN_FILE, HUMAN_FILE, ImportTarget, read_rows
from distill_dagster.tasks.rows import LabelledRow, Seed, Slice, Turn

__all__ = [
    "DEV_FILE",
    "EXAMPLES_FILE",
    "GOLDEN_FILE",
    "HUMAN_FILE",
    "ImportTarget",
    "LabelledRow",
    "Seed",
    "Slice",
    "TaskFolder",
    "Turn",
    "find_tasks",
    "normalize_text",
    "open_task",
    "read_rows",
]
