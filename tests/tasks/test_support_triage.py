"""The bundled task is what the README says: large enough, varied, no leak between its files, and not a toy."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from distill_dagster.config.presets import PRESETS
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.text import normalize_text
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.providers.replay import load_replay_teacher

FOLDER = TaskFolder(PROJECT_FOLDER / "data" / "tasks" / "support_triage")
SLICES = [FOLDER.read_slice(key) for key in FOLDER.list_slice_keys()]
SEEDS = [seed.text for slice_ in SLICES for seed in slice_.seeds]
IMAGINED = [prompt.text for slice_ in SLICES for prompt in slice_.shipped]
RECORDED = load_replay_teacher(FOLDER, FOLDER.task.teacher)


def _shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", normalize_text(text))
    return {" ".join(words[i : i + 2]) for i in range(len(words) - 1)} or set(words)


def test_no_problem_and_no_warning() -> None:
    assert [str(p) for p in check_task_folder(FOLDER)] == []


def test_one_line_moves_its_student_to_a_larger_model(tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDER.path, tmp_path / "support_triage")
    text = (copy / "task.yaml").read_text()
    assert text.count("preset: smollm2\n") == 1
    (copy / "task.yaml").write_text(text.replace("preset: smollm2\n", "preset: phi-4-mini\n"))
    small, large = (folder.task.students["smollm2"] for folder in (FOLDER, TaskFolder(copy)))
    assert (small.model, large.model) == ("smollm2-135m-instruct", "microsoft/Phi-4-mini-instruct")
    assert large.lora.target_modules == PRESETS["phi-4-mini"]["lora"]["target_modules"] != small.lora.target_modules
    assert [str(problem) for problem in check_task_folder(TaskFolder(copy))] == []


def test_sizes() -> None:
    task = FOLDER.task
    assert len(task.labels) == 12
    assert len(FOLDER.list_slice_keys()) >= 8
    assert len(SEEDS) == 480
    assert len(set(SEEDS) | set(IMAGINED)) == 1400
    assert FOLDER.task.curation.mix_human is False, "distilling pays where there are few human labels"
    for rows, least, most in (
        (FOLDER.examples, 3, 3),
        (FOLDER.human, 6, 6),
        (FOLDER.dev, 8, 8),
        (FOLDER.golden, 20, 22),
    ):
        counts = Counter(row.label for row in rows)
        assert set(counts) == set(task.label_names)
        assert least <= min(counts.values()) <= max(counts.values()) <= most


def test_the_recording_knows_every_prompt_with_reasoning_and_probabilities() -> None:
    texts = [*SEEDS, *IMAGINED, *(row.text for row in [*FOLDER.dev, *FOLDER.golden])]
    for text in texts:
        [recording] = RECORDED.find(text)
        assert recording.reasoning
        assert recording.soft_labels is not None
        assert max(recording.soft_labels, key=recording.soft_labels.__getitem__) == recording.completion
        assert sum(recording.soft_labels.values()) == pytest.approx(1.0)
        assert set(recording.soft_labels) <= set(FOLDER.task.label_names)
    held_out = {normalize_text(row.text) for row in [*FOLDER.examples, *FOLDER.human]}
    assert not held_out & {normalize_text(text) for text in texts}


def test_the_recording_has_the_accuracy_that_the_readme_says() -> None:
    for rows in (FOLDER.dev, FOLDER.golden):
        assert sum(RECORDED.find(row.text)[0].completion == row.label for row in rows) == len(rows)


def test_imagined_tickets_are_of_all_slices_and_labels() -> None:
    assert {len(slice_.shipped) for slice_ in SLICES} == {92}
    counts = Counter(RECORDED.find(text)[0].completion for text in IMAGINED)
    assert 70 <= min(counts.values()) <= max(counts.values()) <= 85
    wanted = [prompt for slice_ in SLICES for prompt in slice_.shipped if prompt.target_label]
    assert len(wanted) == 600
    assert len({prompt.text for prompt in wanted}) == 600


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


@pytest.mark.parametrize("other", ["seeds", "imagined", "people"])
def test_golden_and_dev_are_no_near_duplicates(other: str) -> None:
    people = [row.text for row in [*FOLDER.examples, *FOLDER.human]]
    texts = {"seeds": SEEDS, "imagined": IMAGINED, "people": people}[other]
    shingles = [(t, _shingles(t)) for t in texts]
    for row in [*FOLDER.golden, *FOLDER.dev]:
        mine = _shingles(row.text)
        for text, theirs in shingles:
            assert len(mine & theirs) / len(mine | theirs) < 0.5, (row.id, text)


@pytest.mark.parametrize(("texts", "most"), [("golden", 0.2), ("imagined", 0.05)])
def test_few_tickets_name_their_category(texts: str, most: float) -> None:
    stems = {"cancellation": "cancel", "crash": "crash", "slowness": "slow", "translation": "translat"}
    pairs = [(row.text, row.label or "") for row in FOLDER.golden]
    if texts == "imagined":
        pairs = [(text, RECORDED.find(text)[0].completion) for text in IMAGINED]
    named = sum(stems.get(label, label.rstrip("s")) in text.casefold() for text, label in pairs)
    assert named / len(pairs) <= most


def test_bag_of_words_does_not_solve_it() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    examples, golden = [*FOLDER.examples, *FOLDER.human], FOLDER.golden
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
