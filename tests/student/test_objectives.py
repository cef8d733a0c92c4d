"""What students learn with each objective. Models are tiny, with random weights."""

from __future__ import annotations

import itertools
import random
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.loading import find_trained_base
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.token_log_probs import TeacherModel, add_teacher_log_probs, find_teacher_model
from distill_dagster.student.train import choose_student_class, train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainingLog, TrainRow
from tests.support.tiny_model import write_tiny_model

SETTINGS = TaskSettings(item="Word", reasoning=True)
LABELS = [LabelSpec(name=name, description=name) for name in "abcd"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def make_spec(model: Path, objective: Any, **settings: Any) -> StudentSpec:
    values = {"epochs": 60, "batch_size": 16, "learning_rate": 3e-3, "patience": None, "answer_tokens": 24}
    return StudentSpec(
        model=str(model),
        architecture="causal_lm",
        method="full",
        prompt="plain",
        objective=objective,
        **values | settings,
    )


def make_rows() -> list[TrainRow]:
    """Words of three letters. The answer is the last letter, the reasoning the word backwards."""
    words = ["".join(letters) for letters in itertools.product("abcd", repeat=3)]
    random.Random(0).shuffle(words)
    return [
        TrainRow(word, StudentPrompt.from_text(word), word[-1], target=word[-1], reasoning=f"{word[::-1]}.")
        for word in words
    ]


ROWS = make_rows()
TRAIN, HELD = ROWS[:48], ROWS[48:]


def share_right(spec: StudentSpec, labels: list[LabelSpec], out: Path, rows: list[TrainRow]) -> float:
    found = load_predictor(spec, labels, SETTINGS, out, out).predict([row.prompt for row in rows])
    texts = [one.label.removeprefix("Answer:").strip() for one in found]
    return sum(text == row.answer_label for text, row in zip(texts, rows, strict=True)) / len(rows)


def write_rationales(spec: StudentSpec, labels: list[LabelSpec], out: Path, rows: list[TrainRow]) -> list[str]:
    """What a student writes behind the prompt of the second task."""
    student = choose_student_class(spec, labels)(find_trained_base(spec, out), labels, SETTINGS, out)
    assert not isinstance(student, EncoderStudent)
    texts = []
    for row in rows:
        item = student.encode_written(row.prompt, "Reasoning:", row.reasoning or "")
        start = torch.tensor([item["ids"][: -item["target"]]])
        written = student.model.generate(input_ids=start, max_new_tokens=12, do_sample=False, eos_token_id=student.end)
        texts.append(student.tokenizer.decode(written[0, start.shape[1] :], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("labels", [LABELS, []], ids=["labels", "written answers"])
def test_multitask_learns_the_answer_and_the_reasoning(labels: list[LabelSpec], tiny: Path, tmp_path: Path) -> None:
    """Both tasks are learned for words that were not taught, and one without reasoning teaches its answer."""
    spec = make_spec(tiny, {"kind": "multitask"})
    rows = [replace(TRAIN[0], reasoning=None), *TRAIN[1:]]
    log = train_adapter(spec, labels, SETTINGS, rows, [], tmp_path, tmp_path)
    assert set(log.loss_parts) == {"answer", "rationale"}
    for part in log.loss_parts.values():
        assert part[-1][1] < part[0][1] / 4
    assert share_right(spec, labels, tmp_path, HELD) >= 0.8
    written = write_rationales(spec, labels, tmp_path, HELD)
    right = sum(text == row.reasoning for text, row in zip(written, HELD, strict=True))
    assert right >= 0.8 * len(HELD)


def test_reasoning_is_learned_and_leads_to_the_answer(tiny: Path, tmp_path: Path) -> None:
    """Of words that were not taught. A row without reasoning is counted: it teaches behind another prompt."""
    spec = make_spec(tiny, "reasoning")

    def write(row: TrainRow) -> TrainRow:
        return replace(row, target=f"Reasoning: {row.reasoning}\nAnswer: {row.answer_label}")

    rows = [*map(write, TRAIN[1:]), TRAIN[0]]
    log = train_adapter(spec, [], SETTINGS, rows, [], tmp_path, tmp_path)
    assert log.rows_without_reasoning == 1
    found = load_predictor(spec, [], SETTINGS, tmp_path, tmp_path).predict([row.prompt for row in HELD])
    right = [one.raw_text == write(row).target for one, row in zip(found, HELD, strict=True)]
    assert sum(right) >= 0.8 * len(HELD)


@pytest.mark.parametrize("labels", [LABELS, []], ids=["labels", "written answers"])
def test_multitask_adds_the_weighted_loss_of_the_reasoning(labels: list[LabelSpec], tiny: Path, tmp_path: Path) -> None:
    def compute(objective: Any, rows: list[TrainRow]) -> dict[str, list[float]]:
        spec = make_spec(tiny, objective)
        student = choose_student_class(spec, labels)(spec, labels, SETTINGS, tmp_path)
        with torch.no_grad():
            parts = student.compute_loss(student.collate(student.encode(rows)))
        return {name: part.tolist() for name, part in parts.items()}

    mixed = [TRAIN[0], replace(TRAIN[1], reasoning=None), TRAIN[2]]
    both = compute({"kind": "multitask", "rationale_weight": 0.25}, mixed)
    assert both["answer"] == pytest.approx(compute("answer", mixed)["answer"], abs=1e-5)
    assert both["rationale"][1] == 0
    alone = [replace(row, target=f"Reasoning: {row.reasoning}") for row in mixed]
    spec = make_spec(tiny, "answer")
    writer = choose_student_class(spec, [])(spec, [], SETTINGS, tmp_path)
    with torch.no_grad():
        written = writer.compute_loss(writer.collate(writer.encode(alone)))["answer"].tolist()
    for place in (0, 2):
        assert both["rationale"][place] == pytest.approx(0.25 * written[place], abs=1e-5)


@pytest.mark.parametrize("labels", [LABELS, []], ids=["labels", "written answers"])
def test_multitask_asks_for_the_answer_as_answer_does(labels: list[LabelSpec], tiny: Path, tmp_path: Path) -> None:
    """So a prediction costs the same: equal prompts, and no reasoning is written."""
    found = []
    for objective in ("answer", "multitask"):
        spec = make_spec(tiny, objective)
        student = choose_student_class(spec, labels)(spec, labels, SETTINGS, tmp_path)
        found.append((type(student), student.predict_batch([row.prompt for row in HELD[:4]])))
    assert found[0] == found[1]
    assert not any("Reasoning" in one.raw_text for one in found[1][1])


def test_long_reasoning_is_not_learned(tiny: Path, tmp_path: Path) -> None:
    """`reasoning` leaves the row out; `multitask` still learns its answer. A token of this model is a character."""
    rows = [
        TrainRow(
            str(n), StudentPrompt.from_text("a"), "b", target=f"Reasoning: {'x' * n}\nAnswer: b", reasoning="x" * n
        )
        for n in (3, 5, 6)
    ]

    def train(objective: dict[str, Any]) -> TrainingLog:
        spec = make_spec(tiny, objective | {"max_reasoning_tokens": 5}, epochs=1)
        return train_adapter(spec, [], SETTINGS, rows, rows[:1], tmp_path / objective["kind"], tmp_path)

    thinks, both = train({"kind": "reasoning"}), train({"kind": "multitask"})
    assert (thinks.rows, thinks.long_reasoning) == (2, 1)
    assert (both.rows, both.long_reasoning) == (3, 1)
    spec = make_spec(tiny, {"kind": "reasoning", "max_reasoning_tokens": 5}, epochs=1)
    held = train_adapter(spec, [], SETTINGS, rows, rows[2:], tmp_path / "held", tmp_path)
    assert (held.rows, held.validation) == (2, []), "long reasoning of validation rows alone stops nothing"
    spec = make_spec(tiny, {"kind": "reasoning", "max_reasoning_tokens": 2})
    with pytest.raises(DistillError, match=r"longer than 2 tokens; the shortest has 3"):
        train_adapter(spec, [], SETTINGS, rows, [], tmp_path / "none", tmp_path)


def test_an_objective_is_in_the_training_log(tiny: Path, tmp_path: Path) -> None:
    log = train_adapter(make_spec(tiny, None, epochs=1), LABELS, SETTINGS, TRAIN[:4], [], tmp_path, tmp_path)
    assert log.objective == {"kind": "soft_label", "weight": 0.5, "temperature": 1.0}


@pytest.fixture(scope="module")
def expert(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the task: the tiny one, taught with all words."""
    out = tmp_path_factory.mktemp("expert")
    train_adapter(make_spec(tiny, "answer"), LABELS, SETTINGS, ROWS, [], out, out)
    return out


def compute_token_kd(student_model: Path, teacher: Path, labels: list[LabelSpec], **settings: Any) -> list[float]:
    """The part `token_kd` of the loss of some rows."""
    spec = make_spec(student_model, {"kind": "token_kd", "teacher": str(teacher), "weight": 1.0} | settings)
    student: Any = choose_student_class(spec, labels)(spec, labels, SETTINGS, teacher)
    items = student.encode(TRAIN[:6])
    found = find_teacher_model(student, student.objective, labels, teacher, None)
    assert add_teacher_log_probs(student, items, TRAIN[:6], found, student.objective, None) == 6
    with torch.no_grad():
        parts = student.compute_loss(student.collate(items))
    assert parts.keys() == {"token_kd"} if labels else parts["answer"].abs().sum() == 0
    return parts["token_kd"].tolist()


@pytest.mark.parametrize("labels", [LABELS, []], ids=["labels", "written answers"])
@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_k": 1000}, {"temperature": 2.0, "top_k": 8}])
def test_token_kd_is_zero_for_a_student_that_is_its_teacher(
    labels: list[LabelSpec], settings: dict[str, Any], tiny: Path, expert: Path
) -> None:
    assert compute_token_kd(expert, expert, labels, **settings) == pytest.approx([0] * 6, abs=1e-4)
    assert min(compute_token_kd(tiny, expert, labels, **settings)) > 0.05


def test_token_kd_over_all_tokens_is_the_divergence(tiny: Path, expert: Path) -> None:
    """With `top_k` of the whole vocabulary it is KL(teacher || student), summed over the tokens of the label."""
    found = compute_token_kd(tiny, expert, LABELS, top_k=1000)
    spec = make_spec(tiny, "answer")
    models: list[Any] = [
        choose_student_class(spec, LABELS)(spec.model_copy(update={"model": str(one)}), LABELS, SETTINGS, tiny)
        for one in (expert, tiny)
    ]
    batch = models[0].collate(models[0].encode(TRAIN[:6]))
    with torch.no_grad():
        teacher, student = (one.compute_answer_logits(batch).log_softmax(-1) for one in models)
    by_token = (teacher.exp() * (teacher - student)).sum(-1)
    tokens = (batch["answers"] >= 0).sum(1)
    expected = [float(part.sum()) for part in by_token.split(tokens.tolist())]
    assert found == pytest.approx(expected, rel=1e-2)


def test_token_kd_learns_from_a_teacher_what_its_answers_do_not_say(tiny: Path, expert: Path, tmp_path: Path) -> None:
    """All answers are wrong, and weight 1 learns from the teacher's probabilities behind the prompts alone."""
    wrong = [replace(row, answer_label="abcd"[("abcd".index(row.answer_label) + 1) % 4]) for row in TRAIN]
    objective = {"kind": "token_kd", "teacher": str(expert), "weight": 1.0}
    spec = make_spec(tiny, objective, epochs=40)
    log = train_adapter(spec, LABELS, SETTINGS, wrong, [], tmp_path, tmp_path, captured=tmp_path / "kept")
    assert log.rows_captured == len(wrong)
    assert share_right(spec, LABELS, tmp_path, HELD) >= 0.8


def test_token_kd_of_written_answers_learns_from_the_teachers_probabilities(tiny: Path, tmp_path: Path) -> None:
    """The teacher wrote two letters, and the rows have the last one wrong."""

    def double(row: TrainRow, last: str) -> TrainRow:
        answer = row.answer_label + last
        return replace(row, answer_label=answer, target=answer)

    right = [double(row, row.answer_label) for row in ROWS]
    wrong = [double(row, "abcd"[("abcd".index(row.answer_label) + 1) % 4]) for row in TRAIN]
    settings = TaskSettings(item="Word")
    expert, spec = make_spec(tiny, "answer"), make_spec(tiny, {"kind": "token_kd", "weight": 1.0})
    train_adapter(expert, [], settings, right, [], tmp_path / "expert", tmp_path)
    taught_by: dict[str, Any] = {"assistant": (expert, tmp_path / "expert"), "captured": tmp_path / "kept"}
    log = train_adapter(spec, [], settings, wrong, [], tmp_path / "out", tmp_path, **taught_by)
    assert log.rows_captured == len(wrong)
    found = load_predictor(spec, [], settings, tmp_path, tmp_path / "out").predict([row.prompt for row in HELD])
    answers = [one.label.removeprefix("Answer:").strip() for one in found]
    assert sum(a == 2 * row.answer_label for a, row in zip(answers, HELD, strict=True)) >= 0.8 * len(HELD)


def test_a_teacher_reads_an_answer_once(tiny: Path, expert: Path, tmp_path: Path) -> None:
    rows = [replace(row, completion_id=f"c-{row.prompt_id}") for row in TRAIN[:6]]

    def train(rows: list[TrainRow], **settings: Any) -> int:
        spec = make_spec(tiny, {"kind": "token_kd", "teacher": str(expert)} | settings, epochs=1)
        log = train_adapter(spec, LABELS, SETTINGS, rows, [], tmp_path, tmp_path, captured=tmp_path / "kept")
        return log.rows_captured

    assert train(rows) == 6
    assert train(rows) == 0
    assert train([*rows, TRAIN[7]]) == 1
    assert train([replace(rows[0], prompt=StudentPrompt.from_text("bbb"))]) == 1
    assert train(rows, temperature=2.0) == 6
    files = sorted((tmp_path / "kept").glob("*.parquet"))
    assert len(files) == 2
    kept = max((pl.read_parquet(file) for file in files), key=len)
    assert kept.height == 8
    assert set(kept["completion_id"]) == {row.completion_id for row in rows} | {None}
    assert kept["tokenizer"].n_unique() == 1
    assert set(kept["tokens"].list.len()) == {3 * 32}, "a space, a label and the end, 32 tokens of each position"


def test_a_teacher_with_another_vocabulary_is_refused(tiny: Path, small_smollm2: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny, {"kind": "token_kd", "teacher": str(small_smollm2)})
    with pytest.raises(DistillError, match="has another vocabulary than"):
        train_adapter(spec, LABELS, SETTINGS, TRAIN[:4], [], tmp_path, tmp_path)


def test_a_student_teaches_token_by_token(tiny: Path, expert: Path, tmp_path: Path) -> None:
    """The student that teaches must have learned the same prompts."""
    spec = make_spec(tiny, {"kind": "token_kd", "weight": 1.0}, epochs=1, teacher="student:expert")
    teacher = make_spec(tiny, "answer")
    log = train_adapter(spec, LABELS, SETTINGS, TRAIN[:8], [], tmp_path, tmp_path, assistant=(teacher, expert))
    assert log.rows_captured == 8
    other = teacher.model_copy(update={"max_tokens": 9})
    with pytest.raises(DistillError, match="was trained on other prompts"):
        train_adapter(spec, LABELS, SETTINGS, TRAIN[:8], [], tmp_path, tmp_path, assistant=(other, expert))


def prepare_token_kd(tiny: Path, teacher: str, **settings: Any) -> tuple[Any, TeacherModel]:
    """A student of token_kd, and its teacher."""
    spec = make_spec(tiny, {"kind": "token_kd", "teacher": teacher}, **settings)
    student: Any = choose_student_class(spec, LABELS)(spec, LABELS, SETTINGS, tiny)
    return student, find_teacher_model(student, student.objective, LABELS, tiny, None)


def test_trainings_at_the_same_time_share_what_a_teacher_read(tiny: Path, tmp_path: Path) -> None:
    """While the teacher of one training is loaded, another one adds its own rows and one of the first's."""
    student, teacher = prepare_token_kd(tiny, str(tiny))

    def add(rows: list[TrainRow], teacher: TeacherModel) -> int:
        return add_teacher_log_probs(student, student.encode(rows), rows, teacher, student.objective, tmp_path)

    def load() -> Any:
        assert add(TRAIN[2:6], teacher) == 4
        return teacher.load()

    assert add(TRAIN[:3], replace(teacher, load=load)) == 3
    [file] = tmp_path.glob("*.parquet")
    kept = pl.read_parquet(file)["prompt_id"].to_list()
    assert sorted(kept) == sorted(row.prompt_id for row in TRAIN[:6])
    assert add(TRAIN[:6], teacher) == 0
    assert {one.suffix for one in tmp_path.iterdir()} == {".parquet", ".lock"}


def test_rows_of_other_datasets_are_not_read(tiny: Path, tmp_path: Path) -> None:
    student, teacher = prepare_token_kd(tiny, str(tiny))
    items = student.encode(TRAIN[:2])
    assert add_teacher_log_probs(student, items, TRAIN[:2], teacher, student.objective, tmp_path) == 2
    [file] = tmp_path.glob("*.parquet")
    kept, count = pl.read_parquet(file), 20_000
    others = [
        kept[:1].with_columns(
            sequence=pl.lit(f"other {number}"),
            tokens=pl.Series([[7] * count], dtype=pl.List(pl.Int32)),
            log_probs=pl.Series([[-1.5] * count], dtype=pl.List(pl.Float32)),
        )
        for number in range(20)
    ]
    pl.concat([kept, *others]).write_parquet(file)
    first = [item["teacher_log_probs"] for item in items]
    tracemalloc.start()
    try:
        assert add_teacher_log_probs(student, items, TRAIN[:2], teacher, student.objective, tmp_path) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert all(torch.equal(item["teacher_log_probs"], one) for item, one in zip(items, first, strict=True))


def test_a_teacher_is_known_by_its_commit_and_number_format(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch of a model from the hub may move. Here the hub's cache has two commits of one."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--somebody--teacher"
    (cached / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny, cached / "snapshots" / commit)
        (cached / "refs" / "main").write_text(commit)
        _, teacher = prepare_token_kd(tiny, "somebody/teacher")
        assert teacher.load().spec.revision == commit
        found.append(teacher.identity)
    found.append(prepare_token_kd(tiny, "somebody/teacher", dtype="bfloat16")[1].identity)
    found += [prepare_token_kd(tiny, str(tiny), dtype=dtype)[1].identity for dtype in ("float32", "bfloat16")]
    assert len(set(found)) == len(found)
    assert prepare_token_kd(tiny, "somebody/teacher")[1].identity == found[1]
