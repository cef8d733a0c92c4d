"""ONNX files of encoders: they answer as the adapter without torch, and corrupted ones are refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core.errors import ModelError
from distill_dagster.release.merged import AnsweredPrompt, write_merged
from distill_dagster.release.onnx import export, graph
from distill_dagster.release.onnx.export import export_onnx
from distill_dagster.release.onnx.parity import check_full, check_int8
from distill_dagster.release.runtimes.onnx import OnnxRuntime
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup
from distill_dagster.release.types import DevItem, ExportSource, Parity, ParityError
from distill_dagster.student import encoder
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_random_models

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue", "green")]
WORDS = {"red": ["bread", "cake", "rolls"], "blue": ["tyre", "chain", "wheel"], "green": ["moss", "grass", "fern"]}
TEMPLATES = ["a {}", "I ask for a {}", "what about a {} today, or later this week if that is easier for all of you?"]
ROWS = [
    TrainRow(f"{word}{n}", StudentPrompt.from_text(text.format(word)), label)
    for n, text in enumerate(TEMPLATES)
    for label, words in WORDS.items()
    for word in words
]


class LabelKind:
    def score(self, answer: Any, reference: Any) -> float:
        return float(answer == reference)


def build_source(base: Path, folder: Path, **settings: Any) -> ExportSource:
    """A trained and merged student, with 54 dev rows."""
    values: dict[str, Any] = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2, "patience": None, "max_tokens": 20}
    values |= settings
    if values.get("method") == "full":
        values["learning_rate"] = 1e-3
    else:
        values["lora"] = LoraSpec(rank=4, alpha=8)
    spec = StudentSpec(model=str(base), architecture="encoder", soft_weight=0.0, **values)
    train_adapter(spec, LABELS, SETTINGS, ROWS, [], folder / "adapter", folder)
    asked = [AnsweredPrompt(row.prompt_id, row.prompt, None, None) for row in ROWS]
    answers = write_merged(
        StudentSetup(spec, tuple(LABELS), SETTINGS, folder), folder / "adapter", asked, folder / "merged"
    ).answers
    kind: Any = LabelKind()
    dev = tuple(
        DevItem(row.prompt_id, row.prompt, row.answer_label, one.answer, kind.score(one.answer, row.answer_label))
        for row, one in zip(ROWS, answers, strict=True)
    )
    return ExportSource(
        "colours",
        "tiny",
        folder / "adapter",
        folder / "merged",
        spec,
        kind,
        tuple(LABELS),
        SETTINGS,
        folder,
        answers,
        dev * 2,
        ("onnx", "onnx-int8"),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    """A random encoder of three layers with the tokenizer of MiniLM."""
    return write_random_models(tmp_path_factory.mktemp("base"), models_folder, 3, 0.2)["encoder"]


@pytest.fixture(scope="module")
def source(base: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return build_source(base, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def release(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release with both ONNX files."""
    folder = tmp_path_factory.mktemp("release")
    handlers = list(logging.getLogger().handlers)
    result = export_onnx(source, folder)
    assert logging.getLogger().handlers == handlers
    assert [one.name for one in result.exports] == ["onnx", "onnx-int8"], result.left_out
    return folder


def copy_release(release: Path, folder: Path) -> Path:
    for path in (release / "onnx").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "model.onnx"


def build_setup(source: ExportSource) -> StudentSetup:
    return StudentSetup(source.spec, source.labels, source.settings, source.models)


def check(source: ExportSource, path: Path) -> Parity:
    return check_full(source, path, export.load_merged(source).tokenizer)


def test_both_files_answer_as_the_adapter(source: ExportSource, release: Path) -> None:
    full, int8 = release / "onnx" / "model.onnx", release / "onnx" / "model_int8.onnx"
    parity = check(source, full)
    assert parity.passed, parity.text
    assert parity.figures["max_log_prob_difference"] < 1e-4
    assert parity.figures["agreement"] == 1
    rounded = check_int8(source, int8)
    assert rounded.passed, rounded.text
    assert rounded.figures["max_log_prob_difference"] > 0
    assert int8.stat().st_size < 0.4 * full.stat().st_size
    for path in (full, int8):
        assert (
            str(Path(__file__).parents[2]).encode() not in path.read_bytes()
        )  # torch notes where its source files are


def test_a_runtime_answers_as_the_predictor(source: ExportSource, release: Path) -> None:
    prompts = [StudentPrompt.from_text(text) for text in ("a cake", "", "tyre " * 60, "what?", "moss")] * 3
    expected = load_predictor(source.spec, LABELS, SETTINGS, source.models, source.adapter).predict(prompts)
    runtime = OnnxRuntime(release / "onnx" / "model.onnx", build_setup(source))
    with pytest.raises(ModelError, match="not open"):
        runtime.answer(prompts)
    runtime.open()
    answers = runtime.answer(prompts)
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer.answer == answer.raw_text == prediction.label
        assert answer.label_probs == pytest.approx(prediction.probs, abs=1e-5)
        assert answer.confidence == max((answer.label_probs or {}).values())
    assert [answer.prompt_tokens for answer in answers[:3]] == [4, 2, 20]
    *pieces, last = runtime.stream(prompts[0])
    assert isinstance(last, StudentAnswer)
    assert pieces == [last.raw_text] == [answers[0].answer]
    assert runtime.is_alive()
    runtime.close()
    assert not runtime.is_alive()


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
def test_an_answer_does_not_depend_on_the_texts_next_to_it(file: str, source: ExportSource, release: Path) -> None:
    runtime = OnnxRuntime(release / "onnx" / file, build_setup(source))
    runtime.open()
    prompts = [row.prompt for row in ROWS]
    together = runtime.answer(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        assert runtime.answer([prompt])[0].label_probs == pytest.approx(answer.label_probs, abs=1e-5)


def test_a_runtime_needs_no_torch(source: ExportSource, release: Path) -> None:
    build_setup(source).write(release)
    code = f"""
import json, sys
from pathlib import Path
from distill_dagster.release.runtimes.onnx import OnnxRuntime
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.student.types import StudentPrompt
release = Path({str(release)!r})
runtime = OnnxRuntime(release / "onnx" / "model_int8.onnx", StudentSetup.read(release, release))
runtime.open()
answer = runtime.answer([StudentPrompt.from_text("I ask for a cake")])[0].answer
print(json.dumps([answer, sorted(set(sys.modules) & {{"torch", "transformers", "peft", "onnx"}})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, heavy = json.loads(done.stdout)
    assert heavy == []
    assert answer in WORDS


def test_all_weights_of_a_student_are_exported(base: Path, tmp_path: Path) -> None:
    source = replace(build_source(base, tmp_path, method="full"), wanted=("onnx",))
    result = export_onnx(source, tmp_path / "release")
    [exported] = result.exports
    assert exported.parity[0].passed
    assert exported.bytes == sum((tmp_path / "release" / file).stat().st_size for file in exported.files)


def test_a_shallower_student_is_exported_and_what_dev_cannot_show_is_left_out(base: Path, tmp_path: Path) -> None:
    source = build_source(base, tmp_path, method="dora", shrink={"layers": 2})
    few = replace(source, wanted=("onnx-int8",), dev=source.dev[:20])
    result = export_onnx(few, tmp_path / "release")
    assert result.exports == ()
    assert "dev.jsonl has 20 rows, and it takes at least 52" in result.left_out[0].reason
    assert not (tmp_path / "release" / "onnx").exists()


def test_only_what_is_wanted_is_written(source: ExportSource, tmp_path: Path) -> None:
    assert export_onnx(replace(source, wanted=("adapter", "merged")), tmp_path).exports == ()
    assert list(tmp_path.iterdir()) == []


def lose_layer(student: Any, base: Any) -> None:
    """One layer has the base's weights, as if its adapter had not been merged."""
    student.model["encoder"].encoder.layer[1].load_state_dict(base.model["encoder"].encoder.layer[1].state_dict())


def pool_first_token(hidden: Any, attention_mask: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(hidden[:, 0], dim=-1)


def pool_padding_too(hidden: Any, attention_mask: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(hidden.mean(1), dim=-1)


def test_a_lost_layer_is_refused(source: ExportSource, release: Path, tmp_path: Path) -> None:
    student = export.load_merged(source)
    lose_layer(student, encoder.EncoderStudent(source.spec, LABELS, SETTINGS, source.models))
    path = copy_release(release, tmp_path)
    graph.write_graph(student, path)
    assert "max log prob difference is" in check(source, path).text


def test_another_order_of_the_head_is_refused(source: ExportSource, release: Path, tmp_path: Path) -> None:
    path = copy_release(release, tmp_path)
    model = onnx.load(path)
    for weights in model.graph.initializer:
        if weights.name.startswith("head."):
            value = onnx.numpy_helper.to_array(weights)
            weights.CopyFrom(onnx.numpy_helper.from_array(value[::-1].copy(), weights.name))
    onnx.save(model, path)
    assert "max log prob difference is" in check(source, path).text


@pytest.mark.parametrize("pool", [pool_first_token, pool_padding_too])
def test_a_student_with_other_pooling_is_not_released(
    pool: Any, source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "mean_pool", pool)
    with pytest.raises(ParityError, match=r"does not answer as the adapter.*max log prob difference is"):
        export_onnx(source, tmp_path)


def test_corrupted_files_next_to_the_graph_are_refused(source: ExportSource, release: Path, tmp_path: Path) -> None:
    path = copy_release(release, tmp_path)
    tokenizer, config = tmp_path / "tokenizer.json", tmp_path / "config.json"
    good = json.loads(tokenizer.read_text(encoding="utf-8"))
    for change in (
        {"truncation": None},
        {"truncation": good["truncation"] | {"max_length": 19}},
        {"normalizer": good["normalizer"] | {"lowercase": False}},
        {"post_processor": None},
    ):
        tokenizer.write_text(json.dumps(good | change), encoding="utf-8")
        parity = check(source, path)
        assert not parity.passed, change
        assert "tokens equal is" in parity.text
    tokenizer.write_text(json.dumps(good), encoding="utf-8")
    assert check(source, path).passed

    named = json.loads(config.read_text(encoding="utf-8"))
    named["id2label"] = {"0": "blue", "1": "red", "2": "green"}
    config.write_text(json.dumps(named), encoding="utf-8")
    assert "other labels than the student, or the same in another order" in check(source, path).text
    config.write_bytes((release / "onnx" / "config.json").read_bytes())
    path.write_bytes(b"nothing")
    assert "could not be loaded" in check(source, path).text
