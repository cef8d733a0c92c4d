"""What the pages in docs/ show as YAML is valid as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.paths import PROJECT
from distill_dagster.taskfiles import Slice, check_folder
from tests.support.task import again, merged, small_task

PARTS = {"imagine.md": {"slice", "imagine", "curation"}, "judge.md": {"judge", "curation"}}


def blocks(page: str) -> list[dict[str, Any]]:
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]


@pytest.mark.parametrize("page", PARTS)
def test_the_yaml_of_a_page_is_valid(page: str, tmp_path: Path) -> None:
    found: set[str] = set()
    changes: dict[str, Any] = {}
    for block in blocks(page):
        if "seeds" in block:
            assert Slice.model_validate(block).target == 60
            found.add("slice")
            continue
        found |= set(block)
        changes = merged(changes, block)
    assert found == PARTS[page]
    folder = small_task(tmp_path, **changes)
    assert [problem for problem in check_folder(again(folder)) if problem.severity == "error"] == []
