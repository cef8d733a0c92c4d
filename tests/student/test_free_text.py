"""A student that writes free text: what it learns, what it writes, and which settings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.kinds import Question, format_with_reasoning, get_kind, read_answer
from distill_dagster.pipeline.stages.predictions import EvaluationItem, predict_and_time
from distill_dagster.pipeline.stages.students import build_train_rows
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.losses import sum_parts
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import choose_student_class, train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainingLog, TrainRow
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.kinds import build_task
from tests.support.tiny_model import write_tiny_model

SPEC = StudentSpec(
    model="smollm2-135m-instruct",
    architecture="causal_lm",
    prompt="plain",
    lora=LoraSpec(rank=8),
    epochs=6,
    batch_size=4,
    learning_rate=2e-3,
    max_tokens=48,
    answer_tokens=24,
)
SETTINGS = TaskSettings("Problem", "Add.", reasoning=True)
KIND = get_kind(build_task("math", reasoning=True))
PAIRS = [(2, 3), (4, 1), (5, 2), (3, 3)]


def row(a: int, b: int) -> TrainRow:
    target = KIND.format_target(str(a + b), f"{a} + {b} = {a + b}.")
    return TrainRow(f"{a}{b}", StudentPrompt.from_text(f"{a} pens and {b} pens?"), str(a + b), target=target)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> tuple[Path, TrainingLog]:
    out = tmp_path_factory.mktemp("writing")
    rows = [row(a, b) for a, b in PAIRS]
    return out, train_adapter(SPEC, [], SETTINGS, rows, rows[:2], out, models_folder)


def test_it_writes_reasoning_and_answer(trained: tuple[Path, TrainingLog], models_folder: Path) -> None:
    out, log = trained
    assert log.losses[-1][2] < log.losses[0][2] / 4
    assert log.validation[-1]["loss"] < log.validation[0]["loss"]
    predictor = load_predictor(SPEC, [], SETTINGS, models_folder, out)
    found = predictor.predict([row(a, b).prompt for a, b in PAIRS], batch_size=3)
    for (a, b), prediction in zip(PAIRS, found, strict=True):
        assert prediction.probs == {}
        parsed = read_answer(KIND, prediction.raw_text, Question())
        assert (parsed.answer, parsed.reasoning) == (str(a + b), f"{a} + {b} = {a + b}.")
    alone = predictor.predict([row(*PAIRS[0]).prompt])[0]
    assert alone == found[0], "padding next to longer prompts changes nothing"


def test_only_the_target_is_learned(models_folder: Path) -> None:
    import torch

    student = FreeTextStudent(SPEC, [], SETTINGS, models_folder)
    short, long = (
        row(2, 3),
        TrainRow("x", StudentPrompt.from_text("5 pens and 2 pens and a long story?"), "7", target="7"),
    )
    items = student.encode([short, long])
    batch = student.collate(items)
    for number, (item, words) in enumerate(zip(items, (" 2 + 3 = 5.\nAnswer: 5", " 7"), strict=True)):
        learned = batch["answers"][number][batch["answers"][number] >= 0].tolist()
        assert learned[-1] == student.end
        assert student.tokenizer.decode(learned[:-1]) == words
        prompt = student.tokenizer.decode(item["ids"][: -item["target"]])
        assert prompt.endswith("\nReasoning:" if number == 0 else "\nAnswer:")
    with torch.inference_mode():
        together = sum_parts(student.compute_loss(batch))
        alone = [sum_parts(student.compute_loss(student.collate([item])))[0] for item in items]
    assert torch.allclose(together, torch.stack(alone), atol=1e-3)
    cut = student.encode([TrainRow("x", StudentPrompt.from_text("t"), "a", target="word " * 100)])[0]
    assert cut["target"] == SPEC.answer_tokens
    assert cut["ids"][-1] != student.end, "a cut target has no end token"


def test_a_penalty_of_the_base_does_not_change_what_is_written(tmp_path: Path) -> None:
    """Settings for a chat, such as a penalty for repetition, would make figures and served answers differ."""
    import torch
    import transformers

    folder = write_tiny_model(tmp_path / "model", size=32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    written, raw = [], []
    for penalty in (1.0, 1.3):
        model.generation_config.repetition_penalty = penalty
        model.save_pretrained(folder)
        spec = StudentSpec(model=str(folder), architecture="causal_lm", prompt="plain", answer_tokens=24)
        student = FreeTextStudent(spec, [], TaskSettings("Problem"), tmp_path)
        assert student.model.generation_config.eos_token_id == model.generation_config.eos_token_id
        written.append([one.text for one in student.write_answers([row(2, 3).prompt, row(4, 4).prompt])])
        ids = torch.tensor([student.renderer.encode_prompts([row(2, 3).prompt], student.cue)[0].ids])
        raw.append(model.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist())
    assert raw[0] != raw[1], "the penalty matters to this model"
    assert written[0] == written[1]


def test_saved_settings_are_those_of_the_prompt(trained: tuple[Path, TrainingLog]) -> None:
    saved = json.loads((trained[0] / "labels.json").read_text())
    assert (saved["item"], saved["reasoning"], saved["labels"]) == ("Problem", True, [])


def test_an_encoder_cannot_write_free_text(tmp_path: Path, models_folder: Path) -> None:
    spec = StudentSpec(model="all-minilm-l6-v2", architecture="encoder")
    with pytest.raises(DistillError, match="architecture: causal_lm"):
        train_adapter(spec, [], SETTINGS, [row(1, 1)], [], tmp_path, models_folder)


def test_a_student_with_reasoning_writes_the_label_after_it(tmp_path: Path, models_folder: Path) -> None:
    """The label is parsed from the text. Without `reasoning` the same student would choose it."""
    task = build_task("classification", reasoning=True)
    spec = SPEC.model_copy(update={"reasoning": True})
    answers = {
        "the parcel is late": ("late means delivery", "delivery"),
        "my money back": ("money is refund", "refund"),
    }
    rows = [
        TrainRow(t, StudentPrompt.from_text(t), label, {label: 1.0}, target=format_with_reasoning(why, label))
        for t, (why, label) in answers.items()
    ]
    train_adapter(spec, task.labels, SETTINGS, rows * 2, rows, tmp_path, models_folder)
    saved = json.loads((tmp_path / "labels.json").read_text())
    assert (saved["reasoning"], [one["name"] for one in saved["labels"]]) == (True, ["refund", "delivery"])
    predictor = load_predictor(spec, task.labels, SETTINGS, models_folder, tmp_path)
    items = [
        EvaluationItem(t, "golden", None, t, StudentPrompt.from_text(t), label) for t, (_, label) in answers.items()
    ]
    found_rows, speed = predict_and_time(get_kind(task), "distilled", predictor, items, 1)
    assert [row["latency_s"] is None for row in found_rows] == [False, True]
    [seconds] = [row["latency_s"] for row in found_rows if row["latency_s"] is not None]
    assert speed.first_token_s is not None
    assert speed.first_token_s < seconds, "the answer has many tokens"
    assert speed.tokens_per_s is not None
    text = predictor.predict([items[0].prompt])[0].raw_text
    assert 1 <= speed.tokens_per_s * seconds <= len(text) + 1
    assert speed.load is None, "two items are fewer than the callers"
    for item, found in zip(items, found_rows, strict=True):
        why, label = answers[item.id]
        assert (found["answer"], found["correct"], found["confidence"]) == (f'"{label}"', True, None)
        assert found["raw_text"] == f"Reasoning: {why}\nAnswer: {label}"
    assert choose_student_class(SPEC, task.labels) is CausalStudent


def test_rows_with_and_without_reasoning(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"reasoning": "it says money", "answer": '"refund"'},
        {"reasoning": None, "answer": '"delivery"'},
    ]
    empty: dict[str, Any] = dict.fromkeys(DATASET)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "refund"}]
    dataset = build_frame(
        [
            empty | row | {"prompt_id": str(n), "split": "train", "weight": 1.0, "messages": turns}
            for n, row in enumerate(rows)
        ],
        DATASET,
        ("prompt_id",),
    )
    assert [row.target for row in build_train_rows(dataset, "train")] == ["refund", "refund"]
    thinks = [row.target for row in build_train_rows(dataset, "train", reasoning=True)]
    assert thinks == ["Reasoning: it says money\nAnswer: refund", "refund"], "a person's answer has no reasoning"


@pytest.mark.parametrize(
    ("kind", "reasoning", "architecture", "message"),
    [
        ("math", True, "causal_lm", "for kinds with labels"),
        ("nli", False, "causal_lm", "reasoning: true"),
        ("nli", True, "encoder", "writes nothing"),
    ],
)
def test_settings_with_which_a_student_cannot_learn_reasoning(
    kind: str, reasoning: bool, architecture: str, message: str
) -> None:
    students = {"tiny": {"architecture": architecture, "reasoning": True}}
    with pytest.raises(ValidationError, match=message):
        build_task(kind, reasoning=reasoning, students=students)


def test_the_default_of_reasoning_changes_no_hash() -> None:
    plain, asks = build_task("nli", reasoning=True), {"tiny": {"reasoning": True}}
    off = build_task("nli", reasoning=True, students={"tiny": {"reasoning": False}})
    assert plain.hash_student_settings("tiny") == off.hash_student_settings("tiny")
    assert plain.hash_student_settings("tiny") != build_task(
        "nli", reasoning=True, students=asks
    ).hash_student_settings("tiny")
