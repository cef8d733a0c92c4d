"""The change of task.yaml: exactly the proposed fields, also in a file with anchors of YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.core.errors import DistillError
from distill_dagster.tasks import TaskFolder
from distill_dagster.tuning.proposal import Proposal, propose, read_student_block
from tests.support.task import reload_folder, write_small_task

SHARED = (
    "students:\n  a: &s\n    model: all-minilm-l6-v2\n    architecture: encoder\n"
    "    epochs: 3\n    lora: {last_layers: 2}\n"
)


def write_students(root: Path, students: str) -> TaskFolder:
    folder = write_small_task(root)
    file = folder.path / "task.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["students"]
    file.write_text(yaml.safe_dump(settings) + students)
    return reload_folder(folder)


def propose_for(folder: TaskFolder, student: str, settings: dict[str, Any]) -> Proposal:
    return propose(folder, student, read_student_block(folder, student), settings)


@pytest.mark.parametrize(
    ("students", "student", "settings", "field"),
    [
        (SHARED + "  c: *s\n", "c", {"epochs": 5}, "students.c.epochs"),  # would change a
        (SHARED + "  c: *s\n", "a", {"epochs": 5}, "students.a.epochs"),  # would change c
        (SHARED + "  c:\n    <<: *s\n", "c", {"lora.rank": 4}, "students.c.lora.rank"),  # would lose last_layers
        (
            "students:\n  a: {model: all-minilm-l6-v2, architecture: encoder, learning_rate: &lr 0.01}\n"
            "  c:\n    model: all-minilm-l6-v2\n    architecture: encoder\n    learning_rate: *lr\n",
            "c",
            {"learning_rate": 0.02},
            "students.c.learning_rate",
        ),
    ],
)
def test_a_field_that_cannot_be_set_alone_is_named(
    tmp_path: Path, students: str, student: str, settings: dict[str, Any], field: str
) -> None:
    folder = write_students(tmp_path, students)
    ((name, value),) = settings.items()
    with pytest.raises(DistillError, match=rf"{field} cannot be set .* by hand\. The settings are .*{name}: {value}"):
        propose_for(folder, student, settings)


def test_a_merged_field_is_set_in_its_own_block(tmp_path: Path) -> None:
    folder = write_students(tmp_path, SHARED + "  c:\n    <<: *s\n    seed: 3\n")
    proposal = propose_for(folder, "c", {"epochs": 5})
    before, after = yaml.safe_load(proposal.before), yaml.safe_load(proposal.after)
    assert after["students"]["c"] == before["students"]["c"] | {"epochs": 5}
    assert after["students"]["a"] == before["students"]["a"]
