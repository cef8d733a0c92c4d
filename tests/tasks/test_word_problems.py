"""The bundled task with reasoning: no leak between its files, and arithmetic that is right in every solution."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.recordings import Recording
from distill_dagster.kinds.arithmetic import evaluate_expression
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.providers.replay import load_replay_teacher

FOLDER = TaskFolder(PROJECT_FOLDER / "data" / "tasks" / "word_problems")
SLICES = {key: FOLDER.read_slice(key) for key in FOLDER.list_slice_keys()}
PROMPTS = {
    key: [seed.text for seed in content.seeds] + [prompt.text for prompt in content.shipped]
    for key, content in SLICES.items()
}
OPERATIONS = {"addition": "+", "subtraction": "-", "groups": "*", "sharing": "/", "money": "+-*/"}
RECORDED = load_replay_teacher(FOLDER, FOLDER.task.teacher)
ROWS = [*FOLDER.examples, *FOLDER.dev, *FOLDER.golden]
STEP = re.compile(r"(\d+ ([-+*/]) \d+) = (\d+)")


def find_recording(text: str) -> Recording:
    [recording] = RECORDED.find(text)
    return recording


def shingles(text: str) -> set[str]:
    words = re.findall(r"[^\W\d]+", normalize_text(text))  # other numbers do not make another problem
    return {" ".join(words[i : i + 2]) for i in range(len(words) - 1)}


def test_no_problem_and_no_warning() -> None:
    assert [str(p) for p in check_task_folder(FOLDER)] == []


def test_sizes() -> None:
    assert set(SLICES) == set(OPERATIONS)
    assert {key: len(content.shipped) for key, content in SLICES.items()} == dict.fromkeys(OPERATIONS, 60)
    for rows, least in ((FOLDER.examples, 2), (FOLDER.dev, 4), (FOLDER.golden, 8)):
        counts = Counter(row.slice for row in rows)
        assert set(counts) == set(OPERATIONS)
        assert min(counts.values()) >= least


def test_reasoning_comes_to_the_answer() -> None:
    """Every solution, of people and of the recorded teacher, is one step whose result is right and is the answer."""
    texts = [*(text for prompts in PROMPTS.values() for text in prompts), *(row.text for row in ROWS[15:])]
    solutions = [(find_recording(text).reasoning, find_recording(text).completion) for text in texts]
    solutions += [(row.reasoning, str(row.answer)) for row in FOLDER.examples]
    assert len(solutions) == 370 + 60 + 15
    for reasoning, answer in solutions:
        [(step, _, result)] = STEP.findall(reasoning or "")
        assert evaluate_expression(step) == int(result), reasoning
        assert result == answer, reasoning


@pytest.mark.parametrize("key", OPERATIONS)
def test_solutions_take_the_step_of_their_slice(key: str) -> None:
    signs = Counter(STEP.findall(find_recording(text).reasoning or "")[0][1] for text in PROMPTS[key])
    assert set(signs) == set(OPERATIONS[key])
    assert min(signs.values()) >= sum(signs.values()) / len(signs) * 0.9


def test_the_recorded_teacher_answers_held_out_problems_as_people_do() -> None:
    assert all(find_recording(row.text).completion == str(row.answer) for row in [*FOLDER.dev, *FOLDER.golden])


def test_one_step_of_the_slice_gives_the_answer() -> None:
    """With the numbers of the text, also those in words, one operation comes to the gold answer."""
    words = {"two": 2, "three": 3, "five": 5, "eight": 8, "ten": 10, "week": 7, "pairs": 2, "both": 0}
    for row in ROWS:
        text = row.text.lower()
        numbers = [int(n) for n in re.findall(r"\d+", text)] + [
            n for w, n in words.items() if re.search(rf"\b{w}\b", text)
        ]
        found = {x for a in numbers for b in numbers for x in (a + b, a - b, a * b, a / b if b else None)}
        assert row.answer in found, row.id


def test_no_problem_stands_twice() -> None:
    texts = [normalize_text(text) for prompts in PROMPTS.values() for text in prompts]
    texts += [normalize_text(row.text) for row in ROWS]
    assert len(texts) == len(set(texts)) == 445


def test_imagined_problems_are_no_near_duplicates_of_golden_and_dev() -> None:
    known = [(prompt.text, shingles(prompt.text)) for content in SLICES.values() for prompt in content.shipped]
    for row in [*FOLDER.golden, *FOLDER.dev]:
        mine = shingles(row.text)
        for text, theirs in known:
            assert len(mine & theirs) / len(mine | theirs) < 0.4, (row.id, text)
