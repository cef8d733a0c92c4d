from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.config.objective import SHORT_FORMS
from distill_dagster.core import models, progress
from distill_dagster.core.errors import DistillError, ModelError
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.losses import build_soft_targets, compute_soft_loss, get_row_temperature, sum_parts
from distill_dagster.student.predict import build_centroid_predictor, load_predictor
from distill_dagster.student.prompts import PlainRenderer
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import Prediction, StudentPrompt, TaskSettings, TrainingLog, TrainRow

SETTINGS = TaskSettings(item="Ticket")
MINILM = StudentSpec(
    model="all-minilm-l6-v2", architecture="encoder", lora=LoraSpec(rank=4, alpha=8), learning_rate=2e-3, batch_size=8
)
SMOLLM2 = StudentSpec(
    model="smollm2-135m-instruct",
    architecture="causal_lm",
    prompt="plain",
    lora=LoraSpec(rank=4, alpha=8),
    learning_rate=2e-3,
    batch_size=8,
)
# Descriptions that mislead on purpose, so that the base is wrong and only training can be right.
LABELS = [
    LabelSpec(name="red", description="bread, cake and what a bakery sells"),
    LabelSpec(name="blue", description="bicycles, tyres and repairs"),
]
BAKERY = ["rye bread", "a plum cake", "rolls", "sweet buns", "fresh dough", "apple pie", "sour loaf", "croissants"]
BICYCLE = ["flat tyre", "rusty chain", "new pedals", "loose saddle", "bent wheel", "a brake", "a bell", "front fork"]
PLACES = ["I ask for {}", "what about {} today", "need {}"]


def rows_of(places: list[str]) -> list[TrainRow]:
    pairs = [(w, "blue") for w in BAKERY] + [(w, "red") for w in BICYCLE]
    return [
        TrainRow(
            f"{p}-{i}",
            StudentPrompt.from_text(place.format(word)),
            label,
            {label: 0.9, "red" if label == "blue" else "blue": 0.1},
        )
        for p, place in enumerate(places)
        for i, (word, label) in enumerate(pairs)
    ]


ROWS, HELD = rows_of(PLACES[:2]), rows_of(PLACES[2:])


def share_right(predict: Callable[[list[StudentPrompt]], list[Prediction]], rows: list[TrainRow]) -> float:
    found = predict([row.prompt for row in rows])
    return sum(f.label == row.answer_label for f, row in zip(found, rows, strict=True)) / len(rows)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> tuple[Path, TrainingLog]:
    out = tmp_path_factory.mktemp("encoder")
    return out, train_adapter(MINILM, LABELS, SETTINGS, ROWS, HELD, out, models_folder, epochs=6)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> tuple[Path, TrainingLog]:
    out = tmp_path_factory.mktemp("causal")
    return out, train_adapter(SMOLLM2, LABELS, SETTINGS, ROWS, [], out, models_folder, epochs=6)


@pytest.mark.parametrize(("kind", "spec"), [("encoder", MINILM), ("causal", SMOLLM2)])
def test_training_lowers_the_loss_and_beats_the_base(
    kind: str, spec: StudentSpec, models_folder: Path, request: pytest.FixtureRequest
) -> None:
    out, log = request.getfixturevalue(kind)
    if kind == "causal":  # an encoder starts at its linear probe
        assert log.losses[-1][2] < 0.75 * log.losses[0][2]
    assert log.steps == log.epochs * 4 == log.losses[-1][0]
    assert log.tokens > 0
    assert log.tokens_per_s > 0
    assert log.peak_mb > 100
    assert 0 < log.trainable_parameters < 0.1 * log.total_parameters
    base = load_predictor(spec, LABELS, SETTINGS, models_folder)
    trained = load_predictor(spec, LABELS, SETTINGS, models_folder, out)
    assert share_right(trained.predict, ROWS) >= 0.9
    assert share_right(trained.predict, HELD) > share_right(base.predict, HELD) + 0.2
    assert trained.bytes > base.bytes
    assert trained.parameters >= base.parameters > 20_000_000
    for row in trained.predict([r.prompt for r in HELD[:3]]):
        assert math.isclose(sum(row.probs.values()), 1, rel_tol=1e-6)
        assert list(row.probs) == ["red", "blue"]


def test_the_causal_adapter_loads_with_plain_peft(causal: tuple[Path, TrainingLog], models_folder: Path) -> None:
    import transformers
    from peft import PeftModel

    out, _ = causal
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    base = transformers.AutoModelForCausalLM.from_pretrained(
        models.resolve_model(SMOLLM2.model, models_folder).location
    )
    model = PeftModel.from_pretrained(base, str(out)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    asked = [row.prompt for row in HELD[:6]]
    predicted = load_predictor(SMOLLM2, LABELS, SETTINGS, models_folder, out).predict(asked)
    for prompt, prediction in zip(asked, predicted, strict=True):
        ids = tokenizer(f"Ticket: {prompt.text}\nCategory:", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
            mask = torch.ones_like(ids)
            written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        choices = [tokenizer(f" {label}").input_ids[0] for label in prediction.probs]
        expected = logits[choices].softmax(-1).tolist()
        assert list(prediction.probs.values()) == pytest.approx(expected, abs=1e-3)
        assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip() == prediction.raw_text


def test_the_encoder_adapter_loads_with_plain_peft(encoder: tuple[Path, TrainingLog], models_folder: Path) -> None:
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file

    out, log = encoder
    assert [v["epoch"] for v in log.validation] == list(range(log.epochs + 1))
    base = transformers.AutoModel.from_pretrained(models.resolve_model(MINILM.model, models_folder).location)
    model = PeftModel.from_pretrained(base, str(out)).eval()
    tokenizer, head = transformers.AutoTokenizer.from_pretrained(out), load_file(out / "head.safetensors")
    for row in HELD[:4]:
        with torch.no_grad():
            hidden = model(**tokenizer(row.prompt.text, return_tensors="pt")).last_hidden_state[0]
        vector = torch.nn.functional.normalize(hidden.mean(0), dim=-1)
        expected = (head["weight"] @ vector + head["bias"]).softmax(-1).tolist()
        found = load_predictor(MINILM, LABELS, SETTINGS, models_folder, out).predict([row.prompt])[0]
        assert list(found.probs.values()) == pytest.approx(expected, abs=1e-4)
    assert not list(out.glob("*.bin"))
    assert not list(out.glob("*.pt"))
    assert json.loads((out / "labels.json").read_text())["labels"][0]["name"] == "red"


def test_the_same_seed_gives_the_same_bytes(
    encoder: tuple[Path, TrainingLog], models_folder: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # a person who trains cannot act on it
        train_adapter(MINILM, LABELS, SETTINGS, ROWS, HELD, tmp_path, models_folder, epochs=6)
    for name in ("adapter_model.safetensors", "head.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (encoder[0] / name).read_bytes(), name
    other = tmp_path / "other"
    train_adapter(MINILM.model_copy(update={"seed": 1}), LABELS, SETTINGS, ROWS[:8], [], other, models_folder, epochs=1)
    first = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert (other / "adapter_model.safetensors").read_bytes() != first


def test_the_same_seed_gives_the_same_causal_bytes(small_smollm2: Path, tmp_path: Path) -> None:
    spec = SMOLLM2.model_copy(update={"model": str(small_smollm2)})
    for name in ("a", "b"):
        train_adapter(spec, LABELS, SETTINGS, ROWS[:16], [], tmp_path / name, tmp_path, epochs=2)
    file = "adapter_model.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_labels_that_share_tokens_are_scored_like_whole_sequences(small_smollm2: Path, tmp_path: Path) -> None:
    """The cached passes behind shared beginnings equal a plain pass over prompt and label."""
    names = ["account closed", "account access", "account", "refund", "account access denied"]
    labels = [LabelSpec(name=name, description="x") for name in names]
    spec = SMOLLM2.model_copy(update={"model": str(small_smollm2)})
    student = CausalStudent(spec, labels, SETTINGS, tmp_path)
    assert not student.trie.has_one_choice
    assert len(student.trie.branches) >= 3
    texts = ["close it", "I want my money back, and quickly please", "who may see this?"]
    asked = [StudentPrompt.from_text(text) for text in texts]
    found = student.compute_log_probs(asked)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
    for row, prompt in enumerate(asked):
        start = student.renderer.encode_prompts([prompt])[0].ids
        logits = []
        for branch in student.trie.branches:
            ids = torch.tensor([start + list(branch.prefix)])
            with torch.no_grad():
                logits.append(student.model(input_ids=ids).logits[:, -1, list(branch.children)])
        torch.testing.assert_close(student.trie.compute_log_probs(logits)[0], found[row], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("architecture", "temperature"), [("encoder", 1.0), ("encoder", 2.0), ("causal_lm", 2.0)])
def test_a_student_learns_probabilities_and_not_labels_that_contradict_them(
    architecture: str, temperature: float, models_folder: Path, tmp_path: Path
) -> None:
    """The label of every row is wrong and its probabilities are right. Only texts that were not taught are asked."""
    names = {"red": "account closed", "blue": "account access"}  # labels that share their first token
    labels = [LabelSpec(name=names[label.name], description=label.description) for label in LABELS]

    def rename(row: TrainRow, wrong: bool) -> TrainRow:
        other = next(name for name in names if name != row.answer_label)
        soft = {names[label]: prob for label, prob in row.soft.items()}
        return replace(row, answer_label=names[other if wrong else row.answer_label], soft=soft)

    base = MINILM if architecture == "encoder" else SMOLLM2
    objective = {"kind": "soft_label", "weight": 1.0, "temperature": temperature}
    spec = StudentSpec.model_validate(
        base.model_dump(exclude=set(SHORT_FORMS) | {"objective"}) | {"objective": objective, "patience": None}
    )
    wrong = [rename(row, True) for row in ROWS]
    log = train_adapter(spec, labels, SETTINGS, wrong, [], tmp_path / "out", models_folder, epochs=4)
    assert set(log.loss_parts) == ({"soft_label"} if architecture == "encoder" else {"soft_label", "label_tokens"})
    assert log.rows_with_soft_labels == len(ROWS)
    held = [rename(row, False) for row in HELD]
    predictor = load_predictor(spec, labels, SETTINGS, models_folder, tmp_path / "out")
    found = predictor.predict([row.prompt for row in held])
    right = [prediction.label == row.answer_label for prediction, row in zip(found, held, strict=True)]
    assert sum(right) >= 0.8 * len(held)
    if architecture == "causal_lm":  # a program that lets the student write gets an end
        student = CausalStudent(spec, labels, SETTINGS, models_folder)
        student.load_adapter(tmp_path / "out", merge=False)
        [start] = student.renderer.encode_prompts([held[0].prompt])
        ids = torch.tensor([start.ids])
        written = student.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        assert student.tokenizer.decode(written[:-1]).strip() in names.values()
        assert written[-1] == student.end


def test_a_label_without_probabilities_is_not_softened() -> None:
    """At T = 2 the best logits of a one-hot target would be twice as far apart: it counts as at T = 1."""
    rows = [TrainRow("a", StudentPrompt.from_text("a"), "red"), replace(ROWS[0], prompt_id="b")]
    assert [get_row_temperature(row, 2.0) for row in rows] == [1.0, 2.0]
    assert get_row_temperature(replace(rows[0], soft={"red": 1.0}), 2.0) == 1.0, "votes that all agree"
    logits, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), build_soft_targets(rows, ["red", "blue"], 2.0)
    both = compute_soft_loss(logits, targets, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(both[0], compute_soft_loss(logits[:1], targets[:1], 1.0)[0])
    torch.testing.assert_close(both[1], compute_soft_loss(logits[1:], targets[1:], 2.0)[0])
    torch.testing.assert_close(both[0], torch.nn.functional.cross_entropy(logits[:1], torch.tensor([0])))


def test_the_causal_loss_of_one_hot_rows_is_the_likelihood(small_smollm2: Path, tmp_path: Path) -> None:
    """The hard part counts every token of the label. So do the soft part, -log P(label), and that of any label."""
    labels = [LabelSpec(name=name, description="x") for name in ("account closed", "account access", "refund")]
    for soft_weight in (1.0, 0.0):
        spec = SMOLLM2.model_copy(update={"model": str(small_smollm2), "soft_weight": soft_weight})
        student = CausalStudent(spec, labels, SETTINGS, tmp_path)
        rows = [
            TrainRow(str(i), StudentPrompt.from_text(text), label.name)
            for i, (text, label) in enumerate(
                zip(["close", "let me see the shared page", "money"], labels, strict=True)
            )
        ]
        with torch.no_grad():
            loss = sum_parts(student.compute_loss(student.collate(student.encode(rows))))
        for i, row in enumerate(rows):
            start, path = student.renderer.encode_prompts([row.prompt])[0].ids, student.trie.paths[i]
            with torch.no_grad():
                logits = student.model(input_ids=torch.tensor([start + list(path)])).logits[0].log_softmax(-1)
            by_token = [-logits[len(start) - 1 + k, token] for k, token in enumerate(path)]
            torch.testing.assert_close(loss[i], sum(by_token), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["encoder", "causal_lm"])
def test_nf4_trains_two_steps_on_a_cpu(
    architecture: str, models_folder: Path, small_smollm2: Path, tmp_path: Path
) -> None:
    spec = MINILM if architecture == "encoder" else SMOLLM2.model_copy(update={"model": str(small_smollm2)})
    spec = spec.model_copy(update={"quantization": "nf4"})
    log = train_adapter(spec, LABELS, SETTINGS, ROWS[:8], HELD[:2], tmp_path, models_folder, epochs=2)
    assert log.steps == 2
    assert all(math.isfinite(loss) for _, _, loss in log.losses)
    found = load_predictor(spec, LABELS, SETTINGS, models_folder, tmp_path).predict(
        [StudentPrompt.from_text("a plum cake")]
    )
    assert math.isclose(sum(found[0].probs.values()), 1, rel_tol=1e-6)


def test_row_weights_count(models_folder: Path, tmp_path: Path) -> None:
    """Wrong answers in rows of weight 0 have no effect."""
    other = {"red": "blue", "blue": "red"}
    wrong = [TrainRow("w" + row.prompt_id, row.prompt, other[row.answer_label], weight=0.0) for row in ROWS]
    train_adapter(MINILM, LABELS, SETTINGS, ROWS + wrong, [], tmp_path, models_folder, epochs=4)
    trained = load_predictor(MINILM, LABELS, SETTINGS, models_folder, tmp_path)
    assert share_right(trained.predict, ROWS) >= 0.9


def test_only_the_ratio_of_weights_counts(models_folder: Path, tmp_path: Path) -> None:
    """All weights doubled are no larger learning rate: the adapters are the same bytes."""
    for name, weight in (("one", 1.0), ("two", 2.0)):
        rows = [replace(row, weight=weight) for row in ROWS[:6]]
        train_adapter(MINILM, LABELS, SETTINGS, rows, [], tmp_path / name, models_folder, epochs=1)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_predictions_do_not_depend_on_the_batch(causal: tuple[Path, TrainingLog], models_folder: Path) -> None:
    predictor = load_predictor(SMOLLM2, LABELS, SETTINGS, models_folder, causal[0])
    texts = ["a", "the wheel of my old bicycle is bent and the tyre is flat again", "rye bread", "bent wheel"]
    asked = [StudentPrompt.from_text(text) for text in texts]
    together = predictor.predict(asked, batch_size=4)
    for prompt, found in zip(asked, together, strict=True):
        assert found.probs["red"] == pytest.approx(predictor.predict([prompt])[0].probs["red"], abs=1e-3)
    assert predictor.predict([]) == []


def test_progress_is_reported(models_folder: Path, tmp_path: Path) -> None:
    steps: list[progress.Progress] = []
    with progress.listen_to_progress(steps.append):
        train_adapter(MINILM, LABELS, SETTINGS, ROWS[:16], [], tmp_path, models_folder, epochs=1, what="seed_only")
    assert [(step.work, step.done, step.total) for step in steps] == [
        ("training seed_only", 1, 2),
        ("training seed_only", 2, 2),
    ]
    assert steps[1].loss is not None
    assert steps[1].loss > 0


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="no rows"):
        train_adapter(MINILM, LABELS, SETTINGS, [], [], tmp_path, tmp_path)
    with pytest.raises(DistillError, match="'green' is not a label"):
        train_adapter(
            MINILM, LABELS, SETTINGS, [TrainRow("p", StudentPrompt.from_text("t"), "green")], [], tmp_path, tmp_path
        )


def test_a_folder_that_is_no_adapter(models_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be loaded"):
        load_predictor(MINILM, LABELS, SETTINGS, models_folder, tmp_path)


def test_an_encoder_of_other_labels_is_refused(encoder: tuple[Path, TrainingLog], models_folder: Path) -> None:
    more = [*LABELS, LabelSpec(name="green", description="plants")]
    with pytest.raises(ModelError, match="other labels"):
        load_predictor(MINILM, more, SETTINGS, models_folder, encoder[0])


def test_long_texts_are_cut_and_the_question_stays(models_folder: Path) -> None:
    import transformers

    source = models.resolve_model(SMOLLM2.model, models_folder).location
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    asked = [StudentPrompt.from_text(text) for text in ("word " * 500, "short")]
    encoded = PlainRenderer(tokenizer, SETTINGS, 32).encode_prompts(asked)
    ids = [one.ids for one in encoded]
    assert len(ids[0]) == 32
    assert [one.is_cut for one in encoded] == [True, False]
    assert all(tokenizer.decode(i).endswith("\nCategory:") for i in ids)
    assert tokenizer.decode(ids[1]) == "Ticket: short\nCategory:"


def test_embeddings_and_centroids(models_folder: Path) -> None:
    import numpy as np

    vectors = embed_sentences(["rye bread", "a loaf of bread", "bent wheel"], models_folder)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    predictor = build_centroid_predictor(
        [r.prompt.text for r in ROWS], [r.answer_label for r in ROWS], LABELS, models_folder
    )
    assert share_right(predictor.predict, HELD) == 1.0
    alone = build_centroid_predictor(["rye bread"], ["blue"], LABELS, models_folder)
    assert [found.probs for found in alone.predict([*map(StudentPrompt.from_text, ("rye bread", "bent wheel"))])] == [
        {"red": 0.0, "blue": 1.0}
    ] * 2
    with pytest.raises(ValueError, match="no label has an example"):
        build_centroid_predictor([], [], LABELS, models_folder)
