"""Numbers in sentences."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from distill_dagster.core.formatting import count_noun, format_clock, format_seconds, format_time, format_usd
from distill_dagster.core.paths import PROJECT_FOLDER

COUNTED = re.compile(
    r" (rows|slices|errors|problems|warnings|requests|records|prompts|files|answers|batches|tables|students|"
    r"examples|lines|duplicates|artifacts|seeds|calls|samples)\b(?! HTTP)"
)


@pytest.mark.parametrize(
    ("count", "text"), [((0, "row"), "0 rows"), ((1, "batch", "batches"), "1 batch"), ((2000, "row"), "2,000 rows")]
)
def test_a_count_has_the_right_number(count: tuple[int, str], text: str) -> None:
    assert count_noun(*count) == text


@pytest.mark.parametrize(
    ("seconds", "clock", "words"),
    [
        (0.42, "0:00", "0.4 s"),
        (59.7, "1:00", "1 min 0 s"),
        (725, "12:05", "12 min 5 s"),
        (3750, "1:02:30", "1 h 2 min"),
    ],
)
def test_durations(seconds: float, clock: str, words: str) -> None:
    assert format_clock(seconds) == clock
    assert format_seconds(seconds) == words


def test_a_time_is_rounded_up_to_the_minute() -> None:
    assert format_time(datetime(2026, 1, 31, 14, 4, 1, tzinfo=UTC).timestamp()) == "2026-01-31 14:05 UTC"


@pytest.mark.parametrize(("usd", "text"), [(0, "$0.00"), (0.0012, "$0.0012"), (0.05, "$0.05"), (1234.5, "$1,234.50")])
def test_money(usd: float, text: str) -> None:
    assert format_usd(usd) == text


def test_no_sentence_says_1_rows() -> None:
    """A number that varies stands before its noun through `count_noun`. A sum `of n` and a constant are left alone."""
    found = []
    paths = [path for folder in ("distill_dagster", "assets") for path in (PROJECT_FOLDER / folder).rglob("*.py")]
    for path in sorted(paths):
        for node in ast.walk(ast.parse(path.read_text())):
            for number, noun in pairwise(node.values if isinstance(node, ast.JoinedStr) else []):
                if not isinstance(number, ast.FormattedValue) or not isinstance(noun, ast.Constant):
                    continue
                expression = ast.unparse(number.value)
                varies, words = expression.startswith("len(") or re.fullmatch(r"[a-z_]+", expression), str(noun.value)
                if varies and COUNTED.match(words):
                    found.append(f"{path.relative_to(PROJECT_FOLDER)}:{number.lineno}: {expression}{words}")
    assert found == []
