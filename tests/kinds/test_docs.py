"""The YAML examples of docs/kinds.md are valid."""

from __future__ import annotations

import re
from typing import get_args

import yaml

from distill_dagster.config import Task, TaskKind
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tasks import Slice

TEXT = (PROJECT_FOLDER / "docs" / "kinds.md").read_text("utf-8")


def test_every_yaml_example_is_valid() -> None:
    found = [yaml.safe_load(part) for part in re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.S | re.M)]
    tasks = [Task.model_validate(value) for value in found if "kind" in value]
    slices = [Slice.model_validate(value) for value in found if "seeds" in value]
    assert (len(tasks), len(slices)) == (6, 2)
    assert len(tasks) + len(slices) == len(found)


def test_every_kind_is_described() -> None:
    for kind in get_args(TaskKind):
        assert f"| `{kind}` |" in TEXT
