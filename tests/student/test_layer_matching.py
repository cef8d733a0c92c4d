"""`hidden_state` and `attention`: a shallower encoder that imitates a deeper one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.config.assistants import check_assistant
from distill_dagster.config.student import check_student
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.core.memory import Memory
from distill_dagster.student import loading, memory
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainedStudent, TrainingLog, TrainRow

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
WORDS = {"red": ["bread", "cake", "rolls"], "blue": ["tyre", "chain", "pedal"]}
PLACES = ["I ask for a {}", "what about a {} today", "we need one {} more", "no {} here"]
ROWS, HELD = (
    [
        TrainRow(f"{word}-{place}", StudentPrompt.from_text(place.format(word)), label)
        for place in places
        for label, words in WORDS.items()
        for word in words
    ]
    for places in (PLACES[:3], PLACES[3:])
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    """Random encoders of one tokenizer: four layers, a wider one, and one with fewer attention heads."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        models.resolve_model("all-minilm-l6-v2", models_folder).location
    )
    folders = {}
    for name, size, heads in (("deep", 32, 4), ("wide", 48, 4), ("two_heads", 32, 2)):
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        config = transformers.BertConfig(
            hidden_size=size,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=heads,
            vocab_size=len(tokenizer),
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        transformers.AutoModel.from_config(config).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def make_spec(
    folder: Path, objective: object, layers: int | None = 2, method: str = "lora", **more: Any
) -> StudentSpec:
    values: dict[str, Any] = {"method": method, "objective": objective, "epochs": 8, "batch_size": 8}
    values |= {"learning_rate": 1e-2, "patience": None} | more
    if method == "lora":
        values["lora"] = LoraSpec(rank=8, alpha=16)
    if layers is not None:
        values["shrink"] = {"layers": layers}
    return StudentSpec(model=str(folder), architecture="encoder", **values)


def measure_difference(
    spec: StudentSpec, kind: str, folder: Path | None, assistant: TrainedStudent | None = None
) -> float:
    """How far the layers of what was trained in a folder are from those they imitate, on rows that were not learned."""
    objective = {"kind": kind, "layers": getattr(spec.objective, "layers", None)}
    student = EncoderStudent(
        spec.model_copy(update={"objective": make_spec(Path("m"), objective).objective}), LABELS, SETTINGS, Path()
    )
    student.match_layers(Path(), assistant)
    if folder is not None:
        student.load_adapter(folder, merge=False)
    student.model.eval()
    batch = student.collate(student.encode(HELD))
    with torch.no_grad():
        return float(student.compute_loss(batch)[kind].mean())


def train(spec: StudentSpec, out: Path, assistant: tuple[StudentSpec, Path] | None = None) -> TrainingLog:
    return train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, out, out.parent, assistant=assistant)


@pytest.mark.parametrize("kind", ["hidden_state", "attention"])
def test_the_layers_become_those_of_the_deeper_model(kind: str, encoders: dict[str, Path], tmp_path: Path) -> None:
    plain, matched = (
        make_spec(encoders["deep"], "soft_label"),
        make_spec(encoders["deep"], {"kind": kind, "match_weight": 10}),
    )
    train(plain, tmp_path / "plain")
    log = train(matched, tmp_path / "matched")
    before, without, found = (
        measure_difference(plain, kind, folder) for folder in (None, tmp_path / "plain", tmp_path / "matched")
    )
    assert found < 0.8 * min(before, without)  # on texts that were not learned
    losses = [loss for _, loss in log.loss_parts[kind]]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert set(log.loss_parts) == {"soft_label", "answer", kind}
    probs = load_predictor(matched, LABELS, SETTINGS, tmp_path, tmp_path / "matched").predict([r.prompt for r in ROWS])
    assert sum(p.label == row.answer_label for p, row in zip(probs, ROWS, strict=True)) >= 0.7 * len(
        ROWS
    )  # chance: 0.5


@pytest.mark.parametrize("kind", ["hidden_state", "attention"])
def test_equal_layers_differ_by_nothing(kind: str, encoders: dict[str, Path]) -> None:
    """The first layer that `shrink` keeps computes what the first layer of the deeper model computes."""
    objective = {"kind": kind, "layers": {1: 1}}
    assert measure_difference(make_spec(encoders["deep"], objective), kind, None) == pytest.approx(0, abs=1e-6)
    objective = {"kind": kind, "layers": {2: 4}}
    assert measure_difference(make_spec(encoders["deep"], objective), kind, None) > 0.01


def test_a_deeper_encoder_that_does_not_fit_is_not_loaded(
    encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = EncoderStudent(make_spec(encoders["deep"], "hidden_state"), LABELS, SETTINGS, Path())
    monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(10**9, 10**4))
    monkeypatch.setattr(loading, "load_base", None)
    with pytest.raises(DistillError, match=r"The teacher .*deep.* needs about .* next to the student"):
        student.match_layers(Path(), None)


def test_attention_is_compared_without_dropout(encoders: dict[str, Path], tmp_path: Path) -> None:
    """A model returns its attention after dropout. Equal layers must be equal in training too."""
    model = transformers.AutoModel.from_pretrained(encoders["deep"])
    model.config.attention_probs_dropout_prob = 0.1
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoders["deep"]).save_pretrained(tmp_path)
    student = EncoderStudent(make_spec(tmp_path, {"kind": "attention", "layers": {1: 1}}), LABELS, SETTINGS, Path())
    dropped = student.model["encoder"].encoder.layer[0].attention.self.dropout
    assert dropped.p == 0.1
    student.match_layers(Path(), None)
    student.model.train()
    loss = student.compute_loss(student.collate(student.encode(ROWS)))["attention"]
    assert float(loss.detach().abs().max()) == pytest.approx(0, abs=1e-6)


def test_the_projection_depends_on_the_seed_alone(encoders: dict[str, Path], tmp_path: Path) -> None:
    wide = make_spec(encoders["wide"], "answer", layers=None, epochs=1)
    train(wide, tmp_path / "wide")
    found: list[list[float]] = []
    for seed in (1, 1, 2):
        torch.rand(len(found) + 1)  # what came before in the process
        narrow = make_spec(encoders["deep"], "hidden_state", layers=None, epochs=1, method="full", seed=seed)
        log = train(narrow, tmp_path / f"{len(found)}", (wide, tmp_path / "wide"))
        found.append([loss for _, loss in log.loss_parts["hidden_state"]])
    assert found[0] == found[1] != found[2]


def test_a_student_imitates_a_wider_trained_one_through_a_projection(encoders: dict[str, Path], tmp_path: Path) -> None:
    wide = make_spec(encoders["wide"], "answer", layers=None)
    train(wide, tmp_path / "wide")
    assistant = (wide, tmp_path / "wide")
    narrow = make_spec(encoders["deep"], {"kind": "hidden_state", "match_weight": 10}, layers=None)
    log = train(narrow, tmp_path / "narrow", assistant)
    losses = [loss for _, loss in log.loss_parts["hidden_state"]]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    projected = 4 * (32 * 48 + 48)
    alone = train(make_spec(encoders["deep"], "soft_label", layers=None, epochs=1), tmp_path / "alone")
    assert log.trainable_parameters == alone.trainable_parameters + projected
    assert log.total_parameters == alone.total_parameters  # the projection is not part of the student
    names = [{f.name for f in (tmp_path / folder).iterdir()} for folder in ("narrow", "alone")]
    assert names[0] == names[1]


def test_what_cannot_be_matched_is_refused(encoders: dict[str, Path], tmp_path: Path) -> None:
    other = (make_spec(encoders["two_heads"], "answer", layers=None, epochs=1), tmp_path / "other")
    train(*other)
    with pytest.raises(DistillError, match=r"The student has 4, its teacher 2. Use `objective: hidden_state`"):
        train(make_spec(encoders["deep"], "attention"), tmp_path / "out", other)
    with pytest.raises(DistillError, match="has 3: 4, but the student has 2 layers and its teacher 4"):
        train(make_spec(encoders["deep"], {"kind": "hidden_state", "layers": {3: 4}}), tmp_path / "out")
    with pytest.raises(ValueError, match=r"imitates a deeper encoder. Set `shrink`"):
        check_student("small", make_spec(encoders["deep"], "attention", layers=None), "classification", False)
    settings = {"model": "m", "architecture": "causal_lm", "objective": "hidden_state", "shrink": {"layers": 2}}
    causal = StudentSpec.model_validate(settings)
    with pytest.raises(ValueError, match="needs `architecture: encoder`"):
        check_student("small", causal, "classification", False)
    with pytest.raises(ValidationError, match="layers"):
        make_spec(encoders["deep"], {"kind": "attention", "layers": {0: 1}})


def test_a_student_that_learns_from_rows_alone_imitates_nothing() -> None:
    spec = make_spec(Path("m"), {"kind": "attention", "weight": 0.25, "temperature": 2})
    objective = spec.keep_rows_only(writes_reasoning=False).objective
    assert objective is not None
    assert objective.model_dump() == {"kind": "soft_label", "weight": 0.25, "temperature": 2}
    spec = make_spec(Path("m"), {"kind": "hidden_state", "weight": 0})
    objective = spec.keep_rows_only(writes_reasoning=False).objective
    assert objective is not None
    assert objective.kind == "answer"


def test_the_teacher_of_layers_is_an_encoder() -> None:
    students = {
        "large": StudentSpec(model="m", architecture="causal_lm"),
        "small": make_spec(Path("m"), "hidden_state", teacher="student:large"),
    }
    with pytest.raises(ValueError, match=r"whose layers an encoder cannot imitate"):
        check_assistant("small", students, "classification", False)
