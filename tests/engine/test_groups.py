"""Marked tests lie where `make` looks for their group: anywhere else nothing would run them."""

from __future__ import annotations

import re

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER


@pytest.mark.parametrize("group", ["ui", "services", "scale"])
def test_make_finds_every_test_of_a_group(group: str) -> None:
    makefile = (PROJECT_FOLDER / "Makefile").read_text(encoding="utf-8")
    target = makefile.split(f"\ntest-{group}:", 1)[1].split("\n\n", 1)[0]
    folders = [PROJECT_FOLDER / folder for folder in re.findall(r"\btests/\w+", target)]
    assert folders
    marked = [
        path
        for path in (PROJECT_FOLDER / "tests").rglob("test_*.py")
        if re.search(rf"pytest\.mark\.{group}\b", path.read_text(encoding="utf-8"))
    ]
    assert marked
    assert [path for path in marked if not any(path.is_relative_to(folder) for folder in folders)] == []
