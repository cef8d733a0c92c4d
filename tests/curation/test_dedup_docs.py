"""The examples of docs/dedup.md run as they stand, one after the other, and print what they say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "dedup.md"


def test_examples_run_and_print_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 5
    code = "\n".join(blocks)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(DOCS), "exec"), names)
    said = re.findall(r"^print.*# (\[.*\])$", code, re.MULTILINE)
    assert said == ["['a']", "['a', 'b']"]
    lines = printed.getvalue().splitlines()
    assert [line for line in lines if line.startswith("[")] == said
    assert names["close"] is not None
    assert names["state"].height == 3
    assert set(names["leaks"].hits.columns) == {"id", "golden_id", "kind", "overlap"}
