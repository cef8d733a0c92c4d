"""Phases after the objective: preference pairs, and on-policy distillation from a local teacher."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.config.phases import OnPolicyPhaseSpec, PreferencePhaseSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.memory import Memory
from distill_dagster.student import memory, train
from distill_dagster.student.batches import MicroBatches
from distill_dagster.student.causal import CausalModel
from distill_dagster.student.loading import use_one_gpu
from distill_dagster.student.phases.encoding import encode_row
from distill_dagster.student.phases.on_policy import load_teacher
from distill_dagster.student.phases.preference import encode_pairs, select_pairs, train_on_pairs
from distill_dagster.student.phases.run import run_phases
from distill_dagster.student.phases.trl_trainer import PhaseRun, train_phase
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import choose_student_class, train_adapter
from distill_dagster.student.types import PhaseLog, PreferencePair, StudentPrompt, TaskSettings, TrainRow
from tests.student.test_checkpoints import read_tensorboard
from tests.support.tiny_model import teach_texts, write_tiny_model

SETTINGS = TaskSettings("P")
WORDS = [a + b for a in "abcdefgh" for b in "abcdefgh" if a != b]
LEARNED, HELD = WORDS[::2], WORDS[1::2]


@pytest.fixture(scope="module")
def undecided(shared_folder: Path) -> Path:
    """A model that repeats a word and puts 0 or 1 behind it, by chance."""
    folder = write_tiny_model(shared_folder / "undecided")
    teach_texts(folder, [f"P: {word}\nAnswer: {word}{digit}" for word in WORDS for digit in "01"], 200)
    return folder


@pytest.fixture(scope="module")
def decided(shared_folder: Path) -> Path:
    """A model that puts 1 behind a word nine times of ten."""
    folder = write_tiny_model(shared_folder / "decided", seed=1)
    teach_texts(folder, [f"P: {word}\nAnswer: {word}{digit}" for word in WORDS for digit in "0111111111"], 200)
    return folder


def row(word: str, digit: str) -> TrainRow:
    return TrainRow(word, StudentPrompt.from_text(word), word + digit, target=word + digit)


ROWS, HELD_ROWS = [row(word, "0") for word in LEARNED], [row(word, "1") for word in HELD]
PAIRS = [PreferencePair(row(word, "1"), row(word, "0")) for word in LEARNED]


def spec(model: Path, phase: dict[str, Any], **changes: Any) -> StudentSpec:
    settings: dict[str, Any] = {"lora": LoraSpec(rank=8), "patience": None, "epochs": 1, "answer_tokens": 8} | changes
    return StudentSpec(model=str(model), architecture="causal_lm", max_tokens=48, **{"then": [phase]} | settings)


def load(student: StudentSpec, folder: Path) -> CausalModel:
    model = choose_student_class(student, [])(student, [], SETTINGS, folder)
    assert isinstance(model, CausalModel)
    model.add_adapter()
    return model


def interrupt_phase(made: progress.Progress) -> None:
    """End a training in the third step of its preference phase, as Ctrl-C does."""
    if made.work.startswith("preference") and made.done == 3:
        raise KeyboardInterrupt


def share_of_ones(predictor: Any) -> float:
    found = predictor.predict([StudentPrompt.from_text(word) for word in HELD])
    return sum(one.label == f"Answer: {word}1" for one, word in zip(found, HELD, strict=True)) / len(HELD)


def test_a_student_learns_what_pairs_prefer(undecided: Path, tmp_path: Path) -> None:
    """Its rows teach one answer, pairs the other one. Only words that no pair has are asked."""
    phase = {"kind": "preference", "learning_rate": 3e-3, "epochs": 3}
    student = spec(undecided, phase, learning_rate=2e-3)
    without = student.model_copy(update={"then": []})
    alone = train_adapter(without, [], SETTINGS, ROWS, HELD_ROWS, tmp_path / "sft", tmp_path)
    assert alone.phases == []
    log = train_adapter(student, [], SETTINGS, ROWS, HELD_ROWS, tmp_path / "dpo", tmp_path, pairs=PAIRS)
    assert log.losses == alone.losses, "the phase follows the same training"
    [made] = log.phases
    assert (made.rows, made.left_out, made.steps) == (len(LEARNED), 0, 3 * 4)
    assert made.metrics["rewards/margins"][0] == 0, "the reference is the student before the phase"
    assert made.metrics["rewards/accuracies"][-1] == 1
    assert made.after["loss"] < made.before["loss"]
    before, after = (load_predictor(student, [], SETTINGS, tmp_path, tmp_path / name) for name in ("sft", "dpo"))
    assert share_of_ones(before) < 0.3
    assert share_of_ones(after) > 0.9
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("sft", "dpo")]
    assert files[0] == files[1]


def test_a_student_learns_a_teachers_answers_on_its_own_samples(undecided: Path, decided: Path, tmp_path: Path) -> None:
    phase = {"kind": "on_policy", "teacher": str(decided), "max_tokens": 6, "learning_rate": 5e-3, "epochs": 20}
    student = spec(undecided, phase | {"batch_size": 64}, learning_rate=2e-3)
    log = train_adapter(student, [], SETTINGS, ROWS, HELD_ROWS, tmp_path / "out", tmp_path)
    [made] = log.phases
    assert (made.rows, made.steps) == (len(LEARNED), 20), "a batch larger than the rows is one step"
    losses = [loss for _, loss in made.losses]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert made.after["loss"] < made.before["loss"]
    assert made.metrics["completions/clipped_ratio"][-1] < 0.1, "samples end with the student's stop token"
    assert share_of_ones(load_predictor(student, [], SETTINGS, tmp_path, tmp_path / "out")) > 0.9


def test_a_phase_has_tensorboard_files_of_its_own(undecided: Path, tmp_path: Path) -> None:
    """A phase that ends early starts over: what it logged before is hidden."""
    phase = {"kind": "preference", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    student = spec(undecided, phase)
    rows, pairs, work = ROWS[:16], PAIRS[:16], tmp_path / "work"
    with progress.listen_to_progress(interrupt_phase), pytest.raises(KeyboardInterrupt):
        train_adapter(student, [], SETTINGS, rows, [], tmp_path / "out", tmp_path, pairs=pairs, work=work)
    log = train_adapter(student, [], SETTINGS, rows, [], tmp_path / "out", tmp_path, pairs=pairs, work=work)
    [training] = (work / "tensorboard").iterdir()
    figures = read_tensorboard(training / "phase-1-preference")
    [made] = log.phases
    assert figures["train/loss"] == {step: pytest.approx(loss, abs=1e-6) for step, loss in made.losses}
    assert list(figures["train/loss"]) == [1, 2, 3, 4]
    margins = made.metrics["rewards/margins"]
    assert list(figures["train/rewards/margins"].values()) == pytest.approx(margins, abs=1e-6)
    assert len(list(training.glob("events.*"))) == 2, "the training itself has its files beside the phase's"


def test_a_training_and_its_phase_are_runs_of_mlflow(
    undecided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, which is in no extra")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    student = spec(undecided, {"kind": "preference", "epochs": 2, "batch_size": 8})
    work = tmp_path / "work"
    log = train_adapter(student, [], SETTINGS, ROWS[:16], [], tmp_path / "out", tmp_path, pairs=PAIRS[:16], work=work)
    runs = mlflow.MlflowClient((tmp_path / "runs").as_uri()).search_runs(["0"])
    found = sorted(run.data.metrics["loss"] for run in runs)
    assert found == pytest.approx(sorted([log.losses[-1][2], log.phases[0].losses[-1][1]]), abs=1e-6)
    [of_phase] = [run for run in runs if "rewards/margins" in run.data.metrics]
    assert of_phase.info.run_name.endswith("preference")
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_training_that_is_interrupted_in_a_phase_ends_as_one_that_ran_through(
    undecided: Path, tmp_path: Path
) -> None:
    """It goes on from the last checkpoint of the objective, and the phase starts over."""
    phase = {"kind": "preference", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    student = spec(undecided, phase, checkpoint={"every_steps": 1}, batch_size=4)
    rows, pairs, work = ROWS[:16], PAIRS[:16], tmp_path / "work"
    with progress.listen_to_progress(interrupt_phase), pytest.raises(KeyboardInterrupt):
        train_adapter(student, [], SETTINGS, rows, [], tmp_path / "out", tmp_path, pairs=pairs, work=work)
    log = train_adapter(student, [], SETTINGS, rows, [], tmp_path / "out", tmp_path, pairs=pairs, work=work)
    assert log.resumed_at == [3], "of four steps"
    whole = train_adapter(student, [], SETTINGS, rows, [], tmp_path / "whole", tmp_path, pairs=pairs)
    assert log.losses == whole.losses
    assert log.phases[0].losses == whole.phases[0].losses
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("dtype", "micro_batch"), [("float32", 16), ("float32", 4), ("bfloat16", 4)])
def test_the_parts_of_a_mixed_loss_are_logged(undecided: Path, tmp_path: Path, dtype: str, micro_batch: int) -> None:
    """Before the first step the student is its own reference, so that the pairs' part is log 2 there. The other part is
    what the kept answers cost."""
    import torch

    phase = {"kind": "preference", "sft_weight": 3, "learning_rate": 1e-3, "batch_size": 16, "epochs": 3}
    student = load(spec(undecided, phase, dtype=dtype), tmp_path)
    nats, tokens = 0.0, 0
    for pair in PAIRS[:16]:
        prompt, answer = encode_row(student, pair.kept)
        with torch.no_grad():
            found = student.model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        nats -= sum(float(found[len(prompt) + n - 1, token]) for n, token in enumerate(answer))
        tokens += len(answer)
    log = PhaseLog("preference")
    [own] = student.spec.then
    assert isinstance(own, PreferencePhaseSpec)
    train_on_pairs(student, own, PAIRS[:16], PhaseRun(log, "test", MicroBatches(micro_batch)))
    preferred, answers = log.metrics["loss_preference"], log.metrics["loss_answer"]
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    assert preferred[0] == pytest.approx(math.log(2), rel=tolerance)
    assert answers[0] == pytest.approx(3 * nats / tokens, rel=tolerance)
    assert preferred[-1] < preferred[0]
    for (_, loss), *parts in zip(log.losses, preferred, answers, strict=True):
        assert sum(parts) == pytest.approx(loss)


@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "full"])
def test_a_phase_leaves_nothing_but_weights(
    undecided: Path, tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    phase = {"kind": "preference", "sft_weight": 0, "learning_rate": 1e-2, "batch_size": 4}
    settings: dict[str, Any] = {"method": method, "then": [phase]}
    if method != "full":
        settings["lora"] = LoraSpec(rank=8, dropout=0.1)
    student = load(StudentSpec(model=str(undecided), architecture="causal_lm", **settings), tmp_path)

    def describe() -> dict[str, Any]:
        base = student.model.get_base_model() if method != "full" else student.model
        return {
            "weights": {n: (p.dtype, p.requires_grad, p.shape) for n, p in student.model.named_parameters()},
            "dropout": [m.p for m in student.model.modules() if type(m).__name__ == "Dropout"],
            "padding": (base.config.pad_token_id, base.generation_config.pad_token_id),
            "forward": base.__dict__.get("forward"),
            "training": student.model.training,
        }

    capfd.readouterr()
    before = describe()
    [log] = run_phases(student, [], PAIRS[:8], tmp_path, dict, "test")
    assert describe() == before
    assert log.losses[0][1] == pytest.approx(math.log(2), abs=1e-4), "the reference is the student before the phase"
    assert log.losses[-1][1] != log.losses[0][1]
    assert capfd.readouterr() == ("", ""), "progress is reported, not printed"


def test_a_student_that_chooses_labels_learns_from_pairs(undecided: Path, tmp_path: Path) -> None:
    labels = [LabelSpec(name=name, description=name) for name in ("same", "other")]
    phase = {"kind": "preference", "sft_weight": 0, "learning_rate": 5e-3, "epochs": 16}
    student = spec(undecided, phase, learning_rate=2e-3, epochs=12)
    rows = [TrainRow(word, StudentPrompt.from_text(word), "same") for word in LEARNED]
    pairs = [PreferencePair(TrainRow(r.prompt_id, r.prompt, "other"), r) for r in rows]
    log = train_adapter(student, labels, SETTINGS, rows, rows, tmp_path / "out", tmp_path, pairs=pairs)
    assert log.phases[0].before["agreement"] == 1
    assert log.phases[0].after["agreement"] == 0
    predictor = load_predictor(student, labels, SETTINGS, tmp_path, tmp_path / "out")
    assert {one.label for one in predictor.predict([StudentPrompt.from_text(word) for word in HELD])} == {"other"}


@pytest.mark.parametrize(("dtype", "scaled"), [("float16", True), ("bfloat16", False)])
def test_a_phase_in_float16_scales_its_loss(undecided: Path, tmp_path: Path, dtype: str, scaled: bool) -> None:
    """As the training before it does. It takes a GPU, so that only the settings are seen here."""
    student = load(spec(undecided, {"kind": "preference"}, dtype=dtype), tmp_path)
    given: list[dict[str, Any]] = []

    def build_trainer(settings: dict[str, Any], _: Any) -> Any:
        given.append(settings)
        raise DistillError("seen")

    with pytest.raises(DistillError, match="seen"):
        train_phase(
            student,
            student.spec.then[0],
            [{"prompt_ids": [1]}],
            build_trainer,
            PhaseRun(PhaseLog("preference"), "test"),
        )
    assert given[0]["fp16"] is scaled


def test_several_gpus_are_no_reason_to_refuse(tmp_path: Path) -> None:
    import transformers

    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert use_one_gpu(arguments).n_gpu == 0
    arguments._n_gpu = 4  # what a machine with four GPUs gives
    assert use_one_gpu(arguments).n_gpu == 1


def test_pairs_that_say_nothing_are_left_out(undecided: Path, tmp_path: Path) -> None:
    student = load(spec(undecided, {"kind": "preference"}), tmp_path)
    reasoned = TrainRow("ab", StudentPrompt.from_text("ab"), "ab0", target="Reasoning: a first\nAnswer: ab0")
    left_out = (row("ab", "1"), reasoned, row("ab", "000000000"), row("", ""))
    pairs = [PreferencePair(row("ab", "1"), rejected) for rejected in (row("ab", "0"), *left_out)]
    prompt, kept = encode_row(student, pairs[0].kept)
    assert student.tokenizer.decode(prompt) == "P: ab\nAnswer:"
    assert student.tokenizer.decode(kept) == " ab1<end>"
    assert encode_pairs(student, pairs) == [
        {"prompt_ids": prompt, "chosen_ids": kept, "rejected_ids": encode_row(student, row("ab", "0"))[1]}
    ], "left out: equal answers, a prompt that ends in another cue, an answer that has to be cut, none"
    assert select_pairs(pairs, 1) == pairs[:1]
    assert run_phases(student, [], [], tmp_path, dict, "test")[0].rows == 0, "without pairs nothing is trained"


def test_a_teacher_of_another_vocabulary_is_refused(undecided: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", characters="abc")
    student = load(spec(undecided, {"kind": "on_policy", "teacher": str(other)}), tmp_path)
    with pytest.raises(DistillError, match=r"has another vocabulary than .*undecided"):
        run_phases(student, ROWS, [], tmp_path, dict, "test")


def test_a_teacher_that_cannot_teach_is_found_before_the_training(
    undecided: Path, decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_tiny_model(tmp_path / "other", characters="abc")
    listened: list[int] = []
    for teacher, message in ((other, "has another vocabulary"), (decided, r"needs about .* next to the student")):
        if teacher == decided:
            monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(10**9, 10**4))
            monkeypatch.setattr(train, "check_model_fits", lambda *_, **__: None)
        student = spec(undecided, {"kind": "on_policy", "teacher": str(teacher)})
        with pytest.raises(DistillError, match=message):
            train_adapter(
                student,
                [],
                SETTINGS,
                ROWS,
                HELD_ROWS,
                tmp_path / "out",
                tmp_path,
                on_validation=lambda epoch, _: listened.append(epoch),
            )
        assert not listened, "nothing was trained"


def test_a_teacher_may_have_more_padding_in_its_vocabulary(undecided: Path, decided: Path, tmp_path: Path) -> None:
    """Models of one family round the size of one vocabulary up to different numbers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(decided)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    model.save_pretrained(tmp_path / "padded")
    transformers.AutoTokenizer.from_pretrained(decided).save_pretrained(tmp_path / "padded")
    phase = {"kind": "on_policy", "teacher": str(tmp_path / "padded"), "max_tokens": 6, "epochs": 1}
    student = load(spec(undecided, phase), tmp_path)
    [own] = student.spec.then
    assert isinstance(own, OnPolicyPhaseSpec)
    teacher = load_teacher(student, own, tmp_path)
    assert (teacher.config.vocab_size, teacher.get_output_embeddings().weight.shape[0]) == (size, size)
    [log] = run_phases(student, ROWS, [], tmp_path, dict, "test")
    assert log.steps > 0
    smaller = load(spec(tmp_path / "padded", phase | {"teacher": str(decided)}), tmp_path)
    [other] = smaller.spec.then
    assert isinstance(other, OnPolicyPhaseSpec)
    with pytest.raises(DistillError, match="has another vocabulary"):
        load_teacher(smaller, other, tmp_path)


def test_a_phase_computes_as_few_pairs_at_once_as_the_training(undecided: Path, tmp_path: Path) -> None:
    """Eight pairs at once and four times two give the same losses, and the second never computes more than two."""
    phase = {"kind": "preference", "batch_size": 8, "epochs": 2, "learning_rate": 1e-3}
    found = {}
    for size in ("auto", 2):
        sized = spec(undecided, phase, micro_batch_size=size)
        log = train_adapter(sized, [], SETTINGS, ROWS, HELD_ROWS, tmp_path / str(size), tmp_path, pairs=PAIRS)
        found[size] = [loss for _, loss in log.phases[0].losses]
    assert found[2] == pytest.approx(found["auto"], abs=1e-4)
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}] * 12
    student = load(spec(undecided, phase), tmp_path)
    given: list[dict[str, Any]] = []

    def build_trainer(settings: dict[str, Any], _: Any) -> Any:
        given.append(settings)
        raise DistillError("seen")

    for most in (None, 100, 3, 1):
        with pytest.raises(DistillError, match="seen"):
            train_phase(
                student, student.spec.then[0], rows, build_trainer, PhaseRun(PhaseLog("preference"), "test"), most
            )
    steps = [(one["per_device_train_batch_size"], one["gradient_accumulation_steps"]) for one in given]
    assert steps == [(8, 1), (8, 1), (2, 4), (1, 8)]


def test_pairs_of_rows_with_long_reasoning_are_left_out(undecided: Path, tmp_path: Path) -> None:
    phase = {"kind": "preference", "epochs": 1, "batch_size": 4}
    student = spec(undecided, phase, objective={"kind": "reasoning", "max_reasoning_tokens": 4}, answer_tokens=40)

    def reason(one: TrainRow, why: str) -> TrainRow:
        return replace(one, reasoning=why, target=f"Reasoning: {why}\nAnswer: {one.answer_label}")

    rows = [reason(one, "so" if number % 2 else "a long story") for number, one in enumerate(ROWS)]
    pairs = [PreferencePair(one, replace(one, target=f"Reasoning: no\nAnswer: {one.answer_label}9")) for one in rows]
    settings = replace(SETTINGS, reasoning=True)
    log = train_adapter(student, [], settings, rows, [], tmp_path / "out", tmp_path, pairs=pairs)
    assert (log.rows, log.long_reasoning) == (len(ROWS) // 2, len(ROWS) // 2)
    assert log.phases[0].rows == len(ROWS) // 2


def test_a_missing_package_is_named_before_training(
    undecided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    student = spec(undecided, {"kind": "preference"})
    with pytest.raises(DistillError, match=r"needs the package trl.*-e '\.\[align\]'"):
        train_adapter(student, [], SETTINGS, ROWS, [], tmp_path / "out", tmp_path, pairs=PAIRS)
    assert not (tmp_path / "out").exists()
