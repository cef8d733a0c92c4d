"""The runtime of an adapter answers as the predictor does, in batches and in pieces."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.core.errors import ModelError
from distill_dagster.release.runtimes.adapter import AdapterRuntime
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_tiny_model

LABELS = (LabelSpec(name="red", description="warm"), LabelSpec(name="blue", description="cold"))
TEXTS = ["fire", "ice and snow", "a"]


def build_setup(folder: Path, labels: tuple[LabelSpec, ...]) -> tuple[StudentSetup, Path]:
    model = write_tiny_model(folder / "base")
    spec = StudentSpec(model=str(model), architecture="causal_lm", epochs=1, max_tokens=64, batch_size=4)
    if not labels:
        taught = {"method": "full", "learning_rate": 3e-3, "epochs": 15, "answer_tokens": 12}
        spec = spec.model_copy(update=taught)
    setup = StudentSetup(spec, labels, TaskSettings(item="Text"), folder)
    rows = [
        TrainRow(
            str(n), StudentPrompt.from_text(text), "red" if n % 2 else "blue", target="ab cd" if not labels else None
        )
        for n, text in enumerate(TEXTS * 3)
    ]
    train_adapter(spec, list(labels), setup.settings, rows, [], folder / "adapter", folder)
    return setup, folder / "adapter"


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentSetup, Path]:
    return build_setup(tmp_path_factory.mktemp("chooser"), LABELS)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentSetup, Path]:
    return build_setup(tmp_path_factory.mktemp("writer"), ())


def test_a_label_has_the_probabilities_of_the_predictor(chooser: tuple[StudentSetup, Path]) -> None:
    setup, adapter = chooser
    prompts = [StudentPrompt.from_text(text) for text in TEXTS]
    runtime = AdapterRuntime(adapter, setup)
    runtime.open()
    answers = runtime.answer(prompts)
    expected = load_predictor(setup.spec, list(setup.labels), setup.settings, setup.models, adapter).predict(prompts)
    assert [a.answer for a in answers] == [p.label for p in expected]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer.label_probs == pytest.approx(prediction.probs, abs=1e-6)
        assert answer.label_probs is not None
        assert answer.confidence == max(answer.label_probs.values())
    # Single characters are tokens: "Text: ", the text and "\nCategory:".
    assert [a.prompt_tokens for a in answers] == [16 + len(text) for text in TEXTS]
    assert next(iter(runtime.stream(prompts[0]))) == answers[0].answer
    runtime.close()
    assert not runtime.is_alive()
    with pytest.raises(ModelError, match="not open"):
        runtime.answer(prompts)


def test_the_pieces_of_a_stream_add_up_to_the_answer(writer: tuple[StudentSetup, Path]) -> None:
    setup, adapter = writer
    runtime = AdapterRuntime(adapter, setup)
    runtime.open()
    prompt = StudentPrompt.from_text(TEXTS[1])
    [whole] = runtime.answer([prompt])
    *pieces, last = runtime.stream(prompt)
    assert isinstance(last, StudentAnswer)
    assert last == whole
    assert "".join(str(piece) for piece in pieces) == whole.raw_text
    assert len(pieces) > 1
    assert whole.label_probs is None
    assert (whole.completion_tokens == 12) == (whole.finish_reason == "length")


def test_closing_a_stream_ends_the_writing(writer: tuple[StudentSetup, Path]) -> None:
    setup, adapter = writer
    runtime = AdapterRuntime(adapter, setup)
    runtime.open()
    stream = runtime.stream(StudentPrompt.from_text(TEXTS[0]))
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()  # joins the thread that writes
    assert runtime.answer([StudentPrompt.from_text(TEXTS[0])])  # its lock is free


def test_a_setup_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec = StudentSpec(model="m", architecture="causal_lm", method="full", patience=None)
    setup = StudentSetup(spec, LABELS, TaskSettings(item="Text", instructions="Sort."), tmp_path)
    setup.write(tmp_path)
    assert StudentSetup.read(tmp_path, tmp_path) == setup
    assert setup.chooses_label
