"""The examples of docs/dedup.md run one after the other and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "dedup.md"


def test_the_examples_run_and_print_the_documented_results() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 5
    code = "\n".join(blocks)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(DOCS), "exec"), names)
    documented = re.findall(r"^print.*# (\[.*\])$", code, re.MULTILINE)
    assert documented == ["['a']", "['a', 'b']"]
    lines = printed.getvalue().splitlines()
    assert [line for line in lines if line.startswith("[")] == documented
    assert names["close"] is not None
    assert names["state"].height == 3
    assert set(names["leaks"].hits.columns) == {"id", "golden_id", "kind", "overlap"}
