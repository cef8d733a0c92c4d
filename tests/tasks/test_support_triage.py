"""The bundled task is what the README says: large enough, varied, no leak between its files, and not a toy."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.text import normalize_text
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder

FOLDER = TaskFolder(PROJECT_FOLDER / "data" / "tasks" / "support_triage")


def _seeds() -> list[str]:
    return [seed.text for key in FOLDER.list_slice_keys() for seed in FOLDER.read_slice(key).seeds]


def _shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", normalize_text(text))
    return {" ".join(words[i : i + 2]) for i in range(len(words) - 1)} or set(words)


def test_no_problem_and_no_warning() -> None:
    assert [str(p) for p in check_task_folder(FOLDER)] == []


def test_sizes() -> None:
    task = FOLDER.task
    assert len(task.labels) == 12
    assert len(FOLDER.list_slice_keys()) >= 8
    assert len(_seeds()) >= 360
    for rows, least in ((FOLDER.examples, 9), (FOLDER.dev, 8), (FOLDER.golden, 20)):
        counts = Counter(row.label for row in rows)
        assert set(counts) == set(task.label_names)
        assert min(counts.values()) >= least


def test_slices_say_nothing_about_the_label() -> None:
    """Every slice has golden tickets of many labels, none of them with more than a quarter."""
    by_slice: dict[str, Counter[str]] = {}
    for row in FOLDER.golden:
        by_slice.setdefault(row.slice or "", Counter())[row.label or ""] += 1
    assert set(by_slice) == set(FOLDER.list_slice_keys())
    for counts in by_slice.values():
        assert len(counts) >= 10
        assert max(counts.values()) <= 0.25 * sum(counts.values())


def test_a_share_of_golden_is_hard() -> None:
    hard = sum(row.axes.get("difficulty") == "hard" for row in FOLDER.golden)
    assert 0.1 <= hard / len(FOLDER.golden) <= 0.4


@pytest.mark.parametrize("other", ["seeds", "examples"])
def test_golden_and_dev_are_no_near_duplicates(other: str) -> None:
    texts = _seeds() if other == "seeds" else [row.text for row in FOLDER.examples]
    shingles = [(t, _shingles(t)) for t in texts]
    for row in [*FOLDER.golden, *FOLDER.dev]:
        mine = _shingles(row.text)
        for text, theirs in shingles:
            assert len(mine & theirs) / len(mine | theirs) < 0.5, (row.id, text)


def test_few_golden_tickets_name_their_category() -> None:
    stems = {"cancellation": "cancel", "crash": "crash", "slowness": "slow", "translation": "translat"}
    named = sum(
        stems.get(row.label or "", (row.label or "").rstrip("s")) in row.text.casefold() for row in FOLDER.golden
    )
    assert named / len(FOLDER.golden) <= 0.2


def test_bag_of_words_does_not_solve_it() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    examples, golden = FOLDER.examples, FOLDER.golden
    for strength in (1, 10, 100):
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=strength, max_iter=2000))
        model.fit([r.text for r in examples], [r.label for r in examples])
        assert model.score([r.text for r in golden], [r.label for r in golden]) < 0.75


def test_labels_differ_in_their_first_token(models_folder: Path) -> None:
    """So that one distribution over the next token is a soft label."""
    from transformers import AutoTokenizer

    from distill_dagster.core.models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct", models_folder).location)
    first = {tokenizer(f" {label}", add_special_tokens=False).input_ids[0] for label in FOLDER.task.label_names}
    assert len(first) == len(FOLDER.task.labels)
