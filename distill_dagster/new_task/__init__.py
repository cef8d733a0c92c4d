"""Make a task folder from a table of rows or another task, and take labels written later.

    folder = plan_task(...)  # decide everything, write nothing
    write_task(folder, ...)  # write it whole, or not at all

`columns` finds which column is what, `rows` reads and cleans the rows, `answers` reads answers that are not labels.
`units` keeps together rows that must not be divided, and `split` decides which row goes where. `task_yaml` and
`folder_files` render the files, and `plan` puts all of this together. `labelling` takes labels that a person wrote into
to_label.csv. `copy_task` copies a folder, and `yaml_edit` edits its task.yaml. What a table may look like is up to
`intake.row_files`.
"""
