"""The bundled task with reasoning: no leak between its files, and sums that are right."""

from __future__ import annotations

import re
from collections import Counter

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.text import normalize_text
from distill_dagster.kinds.arithmetic import evaluate_expression
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder

FOLDER = TaskFolder(PROJECT_FOLDER / "data" / "tasks" / "word_problems")
SLICES = {"addition", "subtraction", "groups", "sharing", "money"}


def test_no_problem_and_no_warning() -> None:
    assert [str(p) for p in check_task_folder(FOLDER)] == []


def test_sizes() -> None:
    assert set(FOLDER.list_slice_keys()) == SLICES
    for rows, least in ((FOLDER.examples, 2), (FOLDER.dev, 4), (FOLDER.golden, 8)):
        counts = Counter(row.slice for row in rows)
        assert set(counts) == SLICES
        assert min(counts.values()) >= least


def test_reasoning_comes_to_the_answer() -> None:
    for row in FOLDER.examples:
        sums = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", row.reasoning or "")
        assert sums, row.id
        for sum_, result in sums:
            assert evaluate_expression(sum_) == int(result), row.id
        assert int(sums[-1][1]) == row.answer, row.id


def test_one_step_of_the_slice_gives_the_answer() -> None:
    """With the numbers of the text, also those in words, one operation comes to the gold answer."""
    words = {"two": 2, "three": 3, "five": 5, "eight": 8, "ten": 10, "week": 7, "pairs": 2, "both": 0}
    for row in [*FOLDER.examples, *FOLDER.dev, *FOLDER.golden]:
        text = row.text.lower()
        numbers = [int(n) for n in re.findall(r"\d+", text)] + [
            n for w, n in words.items() if re.search(rf"\b{w}\b", text)
        ]
        found = {x for a in numbers for b in numbers for x in (a + b, a - b, a * b, a / b if b else None)}
        assert row.answer in found, row.id


def test_no_number_problem_stands_twice() -> None:
    texts = [normalize_text(s.text) for key in FOLDER.list_slice_keys() for s in FOLDER.read_slice(key).seeds]
    texts += [normalize_text(row.text) for row in [*FOLDER.examples, *FOLDER.dev, *FOLDER.golden]]
    assert len(texts) == len(set(texts)) == 145
