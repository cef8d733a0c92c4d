"""GGUF files of two layers of SmolLM2 with its real tokenizer: what is exported, what is refused, what answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

import pytest

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError, ModelError
from distill_dagster.kinds import get_kind
from distill_dagster.release.gguf import converter, export
from distill_dagster.release.gguf.converter import convert_to_gguf, find_missing_converter
from distill_dagster.release.gguf.export import export_gguf
from distill_dagster.release.gguf.parity import check_conversion, collect_answers
from distill_dagster.release.gguf.quantize import choose_formats
from distill_dagster.release.merged import AnsweredPrompt, write_merged
from distill_dagster.release.runtimes.build import build_runtime, list_servable
from distill_dagster.release.runtimes.llama_server import LlamaServerRuntime
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup
from distill_dagster.release.types import DevItem, ExportResult, ExportSource, ParityError
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.corrupt_gguf import CORRUPTIONS, corrupt
from tests.support.kinds import build_task
from tests.support.tiny_model import write_random_models

pytestmark = pytest.mark.skipif(find_missing_converter() is not None, reason="llama.cpp's converter is not installed")

LABELS = [LabelSpec(name=name, description=name) for name in ("red light", "red wine", "blue", "green")]
WORDS = {"red light": "stop", "red wine": "grapes", "blue": "sky", "green": "grass"}
TEMPLATES = ["a {}", "I ask for {} and 12 more", "it's {} today, isn't it?", "{}!"]
ROWS = [
    TrainRow(f"{label}{n}", StudentPrompt.from_text(text.format(word)), label, target=f"{word} is {label}")
    for n, text in enumerate(TEMPLATES)
    for label, word in WORDS.items()
]
PROMPTS = [row.prompt for row in ROWS]


@dataclass(frozen=True)
class Released:
    source: ExportSource
    folder: Path
    result: ExportResult

    @property
    def setup(self) -> StudentSetup:
        return StudentSetup(self.source.spec, self.source.labels, self.source.settings, self.source.models)

    @property
    def full(self) -> Path:
        return self.folder / "gguf/model-f16.gguf"


def build_source(folder: Path, spec: StudentSpec, labels: list[LabelSpec], settings: TaskSettings) -> ExportSource:
    """A trained and merged student. The dev rows are its training rows, ten times."""
    train_adapter(spec, labels, settings, ROWS, [], folder / "adapter", folder)
    asked = [AnsweredPrompt(row.prompt_id, row.prompt, None, None) for row in ROWS[:8]]
    merged = write_merged(
        StudentSetup(spec, tuple(labels), settings, folder), folder / "adapter", asked, folder / "merged"
    )
    kind = get_kind(build_task("classification" if labels else "generation"))
    predictor = load_predictor(spec, labels, settings, folder, folder / "adapter")
    found = predictor.predict(PROMPTS) if labels else []
    dev = [
        DevItem(f"{row.prompt_id}/{n}", row.prompt, row.answer_label, p.label, float(p.label == row.answer_label))
        for n in range(10)
        for row, p in zip(ROWS, found, strict=False)
    ]
    return ExportSource(
        task="colours",
        student="tiny",
        adapter=folder / "adapter",
        merged=folder / "merged",
        spec=spec,
        kind=kind,
        labels=tuple(labels),
        settings=settings,
        models=folder,
        parity=merged.answers,
        dev=tuple(dev),
        wanted=("gguf-f16", "gguf-q8_0", "gguf-q4_k_m"),
    )


@pytest.fixture(scope="module")
def chooser(small_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A student that chooses labels, and is so sure of them that 4 bits change no answer."""
    folder = tmp_path_factory.mktemp("chooser")
    spec = StudentSpec(
        model=str(small_smollm2), architecture="causal_lm", prompt="plain", max_tokens=64,
        lora=LoraSpec(rank=8, alpha=16), epochs=40, batch_size=8, learning_rate=3e-3, soft_weight=0.0, dtype="float32",
    )  # fmt: skip
    source = build_source(folder, spec, LABELS, TaskSettings(item="Word"))
    (folder / "release").mkdir()
    return Released(source, folder / "release", export_gguf(source, folder / "release"))


@pytest.fixture(scope="module")
def writer(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A student that writes, asked through the chat template of its base with the task's instructions."""
    folder = tmp_path_factory.mktemp("writer")
    base = write_random_models(folder, models_folder, 2, 0.1)["causal_lm"]
    spec = StudentSpec(
        model=str(base), architecture="causal_lm", prompt="chat", method="full", epochs=20, batch_size=4,
        learning_rate=3e-3, max_tokens=96, answer_tokens=12, dtype="float32",
    )  # fmt: skip
    source = build_source(folder, spec, [], TaskSettings(item="Word", instructions="Name the colour."))
    source = replace(source, wanted=("gguf-f16", "gguf-q8_0"))
    (folder / "release").mkdir()
    return Released(source, folder / "release", export_gguf(source, folder / "release"))


def test_every_file_is_checked_and_has_what_it_needs(chooser: Released) -> None:
    names = [one.name for one in chooser.result.exports]
    assert names == ["gguf-f16", "gguf-q8_0", "gguf-q4_k_m"], chooser.result.left_out
    for one in chooser.result.exports:
        assert [parity.stage for parity in one.parity] == ["conversion", "quantization"][: len(one.parity)]
        assert all(parity.passed for parity in one.parity)
        assert one.runtime == "llama_server"
        assert {"gguf/Modelfile", "gguf/labels.gbnf", "gguf/tokenizer/tokenizer.json", one.path} <= set(one.files)
    sizes = [one.bytes for one in chooser.result.exports]
    assert sizes == sorted(sizes, reverse=True)
    conversion = chooser.result.exports[0].parity[0].figures
    assert conversion["chat_equal"] == conversion["tokens_equal"] == conversion["agreement"] == 1
    assert conversion["chat_prompts"] == 8
    assert list_servable(chooser.folder)[0] == "gguf-q8_0"
    assert "% of 8 prompts." in chooser.result.notes[0]


def test_labels_have_the_probabilities_of_the_adapter(chooser: Released) -> None:
    """Two labels share their first token, so the second one is asked for as well."""
    spec = chooser.source.spec
    predictor = load_predictor(spec, LABELS, chooser.source.settings, chooser.source.models, chooser.source.adapter)
    expected = predictor.predict(PROMPTS)
    runtime = build_runtime(chooser.folder, chooser.setup, "gguf-f16")
    runtime.open()
    answers = runtime.answer(PROMPTS)
    piece, last = runtime.stream(PROMPTS[0])
    assert isinstance(last, StudentAnswer)
    # A prompt that is read from a cache is rounded a little differently.
    assert piece == last.answer == answers[0].answer
    assert last.label_probs == pytest.approx(answers[0].label_probs, abs=2e-3)
    runtime.close()
    assert [answer.answer for answer in answers] == [prediction.label for prediction in expected]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer.label_probs == pytest.approx(prediction.probs, abs=2e-3)
        assert sum((answer.label_probs or {}).values()) == pytest.approx(1, abs=1e-6)
    assert not runtime.is_alive()
    with pytest.raises(ModelError, match="not open"):
        runtime.answer(PROMPTS)


# The benchmark of parity also loses the whole adapter, and adds a start token.
@pytest.mark.parametrize("name", CORRUPTIONS[1:7])
def test_a_corrupt_file_is_refused(name: str, chooser: Released, base_gguf: Path) -> None:
    template = (chooser.source.merged / "chat_template.jinja").read_text(encoding="utf-8")
    broken = chooser.full.with_name("broken.gguf")
    corrupt(name, chooser.full, base_gguf, broken, template)
    runtime = LlamaServerRuntime(broken, chooser.setup, "gguf-f16")
    try:
        runtime.open()
        served = runtime.renderer.build_served_template(runtime.cue)
        answers = collect_answers(chooser.source, runtime)
        parity = check_conversion(chooser.source, broken, runtime, answers, served)
    finally:
        runtime.close()
        broken.unlink()
    assert not parity.passed
    assert "broken.gguf on 8 prompts" in parity.text


@pytest.fixture(scope="module")
def base_gguf(small_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("base") / "base.gguf"
    convert_to_gguf(small_smollm2, target, "base")
    return target


def test_nothing_is_released_if_the_file_answers_otherwise(
    chooser: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's own answers are shifted, as if the converter had lost something."""
    monkeypatch.setattr(export, "convert_student", lambda source, renderer, template, to: copyfile(chooser.full, to))
    other = [replace(one, log_probs=(*one.log_probs[1:], one.log_probs[0])) for one in chooser.source.parity[:2]]
    source = replace(chooser.source, parity=tuple(other), wanted=("gguf-f16",))
    with pytest.raises(ParityError, match="max log prob difference is"):
        export_gguf(source, tmp_path)


def test_a_written_answer_is_the_adapters(writer: Released) -> None:
    """Asked through the template of the base, and streamed in pieces."""
    assert writer.result.exports[0].parity[0].figures["chat_equal"] == 1
    assert "% of the tokens of 8 answers." in writer.result.notes[0]
    expected = [one.answer for one in writer.source.parity]
    runtime = build_runtime(writer.folder, writer.setup, "gguf-f16")
    runtime.open()
    answers = runtime.answer(PROMPTS[:8])
    *pieces, last = runtime.stream(PROMPTS[0])
    runtime.close()
    assert [answer.answer for answer in answers] == expected
    assert isinstance(last, StudentAnswer)
    assert "".join(map(str, pieces)) == last.raw_text == answers[0].raw_text
    assert len(pieces) > 1
    assert answers[0].label_probs is None
    assert 0 < (answers[0].confidence or 0) <= 1
    assert answers[0].prompt_tokens == len(writer.source.parity[0].prompt_tokens)
    assert answers[0].completion_tokens == len(writer.source.parity[0].answer_tokens)


def test_the_grammar_allows_labels_only(chooser: Released) -> None:
    runtime = LlamaServerRuntime(chooser.full, chooser.setup, "gguf-f16")
    runtime.open()
    grammar = (chooser.folder / "gguf/labels.gbnf").read_text(encoding="utf-8")
    body = {"prompt": "Once upon a time", "n_predict": 12, "temperature": 0, "grammar": grammar}
    text = runtime._post("/completion", body)["content"]
    runtime.close()
    assert text.strip() in {label.name for label in LABELS}


def test_other_programs_accept_the_files(chooser: Released) -> None:
    """What Ollama would do with the template, and whether it would read the Modelfile."""
    import subprocess
    import sys

    scripts = Path(sys.executable).parent
    checked = subprocess.run([scripts / "ggufdoctor", chooser.full], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    modelfile = chooser.folder / "gguf/Modelfile"
    linted = subprocess.run([scripts / "modelfile-lint", modelfile], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = modelfile.read_text(encoding="utf-8")
    assert "FROM ./model-q8_0.gguf" in text
    # Ollama takes what is between quotes as it is: a stop with a backslash would never be found.
    stops = [line.removeprefix("PARAMETER stop ") for line in text.splitlines() if "PARAMETER stop" in line]
    assert stops == ['"<|im_end|>"']


def test_an_unknown_architecture_is_left_out(chooser: Released, tmp_path: Path) -> None:
    for file in chooser.source.merged.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NewForCausalLM"]}), encoding="utf-8")
    result = export_gguf(replace(chooser.source, merged=tmp_path, wanted=("gguf-q8_0",)), tmp_path / "release")
    assert not result.exports
    assert "NewForCausalLM" in result.left_out[0].reason
    assert not (tmp_path / "release/gguf").exists()


def test_a_missing_converter_says_how_to_install_it(
    chooser: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "CONVERTER_FOLDER", tmp_path)
    with pytest.raises(DistillError, match="make setup"):
        export_gguf(chooser.source, tmp_path)


def test_the_formats_of_a_model_with_wide_rows() -> None:
    """As llama.cpp chooses for Q4_K_M: six bits in the first and last eighth and in every third layer between."""
    tensors = [("token_embd.weight", (1024, 5000)), ("output.weight", (1024, 5000)), ("output_norm.weight", (1024,))]
    for layer in range(16):
        tensors += [(f"blk.{layer}.{part}.weight", (1024, 1024)) for part in ("attn_q", "attn_v", "ffn_down")]
    chosen = {name: found.name for name, found in choose_formats(tensors, "q4_k_m").items()}
    assert chosen["token_embd.weight"] == "Q4_K"
    assert chosen["output.weight"] == "Q6_K"
    assert "output_norm.weight" not in chosen
    assert {name for name, found in chosen.items() if ".attn_q." in name and found != "Q4_K"} == set()
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    for part in ("attn_v", "ffn_down"):
        assert [n for n in range(16) if chosen[f"blk.{n}.{part}.weight"] == "Q6_K"] == more
