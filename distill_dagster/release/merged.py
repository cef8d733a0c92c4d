"""The trained student as one model in Hugging Face format, and the answers that every export is compared with.

The adapter is merged in float32. A base that was quantized for training (`quantization: nf4`) is loaded in full
precision: no other program reads its 4-bit blocks.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.progress import report_progress
from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.release.parity import find_largest, judge_parity
from distill_dagster.release.types import Parity, ParityPrompt
from distill_dagster.student.encoder import HEAD_FILE, EncoderStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.loading import get_torch_dtype
from distill_dagster.student.predict import StudentPredictor
from distill_dagster.student.prompts import LABEL_CUE
from distill_dagster.student.train import LABELS_FILE, PROMPT_FILE
from distill_dagster.student.types import StudentPrompt

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec
    from distill_dagster.release.runtimes.types import StudentSetup
    from distill_dagster.student.prompts import PromptRenderer
    from distill_dagster.student.train import Student

PARITY_PROMPTS = 60
DIFFERENCE = "max_log_prob_difference"
MAX_DIFFERENCE = 1e-3
"""Between log-probabilities of the adapter and of the merged model, both in float32: rounding alone stays below it."""
MAX_ROUNDED_DIFFERENCE, MIN_PROB = 0.5, 1e-4
"""The same after rounding to 16 bits, of labels and tokens with at least this probability. Sound students of the
bundled task have 0.03 and 0.09; the mildest corruption of their exports has 2.5."""
NOT_RELEASED = ("artifact.json", "trained_on.parquet", "training_log.json")
"""Files of an adapter's folder that only the lake needs."""


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt that the student and its untrained base answered. Answers are canonical JSON texts, or None."""

    id: str
    prompt: StudentPrompt
    answer: str | None
    base_answer: str | None


@dataclass(frozen=True)
class MergedStudent:
    """The adapter's answers, and how those of the merged model differ from them.

    A causal student has the renderer of its prompts and the cue that it is asked with. An encoder has neither.
    """

    answers: tuple[ParityPrompt, ...]
    parity: Parity
    renderer: PromptRenderer | None
    cue: str


def choose_parity_prompts(answered: Sequence[AnsweredPrompt], limit: int = PARITY_PROMPTS) -> list[AnsweredPrompt]:
    """Choose prompts, those first on which student and base differ: on others a lost adapter is not seen.

    At most two thirds are such prompts. The choice is the same for the same prompts.
    """
    ordered = sorted(answered, key=lambda one: hash_content(one.id))
    differing = [one for one in ordered if one.answer != one.base_answer]
    equal = [one for one in ordered if one.answer == one.base_answer]
    chosen = differing[: max(2 * limit // 3, limit - len(equal))]
    return chosen + equal[: limit - len(chosen)]


def copy_adapter(adapter: Path, folder: Path) -> None:
    """Copy what was trained, without the files that only the lake needs."""
    shutil.copytree(adapter, folder, ignore=shutil.ignore_patterns(*NOT_RELEASED))


def write_merged(setup: StudentSetup, adapter: Path, asked: Sequence[AnsweredPrompt], folder: Path) -> MergedStudent:
    """Write the merged student in float32 to a new folder, and answer the prompts with the adapter in float32.

    The folder has config.json, the weights as safetensors, the tokenizer, labels.json, for a causal student prompt.json
    and its chat template, and for an encoder head.safetensors.

    Returns:
        The adapter's answers, and the comparison with those of the folder, loaded again.

    Raises:
        ModelError: the base or the adapter cannot be loaded.
    """
    exact = setup.with_spec(dtype="float32", quantization="none")
    report_progress("merging the adapter into its base", 0, 0)
    predictor = exact.load_predictor(adapter)
    assert isinstance(predictor, StudentPredictor)
    student = predictor.student
    answers = tuple(_answer(student, asked))
    _save(student, adapter, folder)
    renderer = None if isinstance(student, EncoderStudent) else student.renderer
    cue = student.cue if isinstance(student, FreeTextStudent) else LABEL_CUE
    del student, predictor
    parity = compare_merged(exact, folder, answers)
    return MergedStudent(answers, parity, renderer, cue)


def compare_merged(setup: StudentSetup, merged: Path, answers: Sequence[ParityPrompt]) -> Parity:
    """Load the merged folder as any other program would, and compare its log-probabilities with the adapter's."""
    figures = _measure_difference(setup, merged, answers, 0.0)
    what = f"merged, loaded by transformers in float32, on {count_noun(len(answers), 'prompt')}"
    return judge_parity("conversion", what, figures, {DIFFERENCE: MAX_DIFFERENCE})


def round_if_equal(setup: StudentSetup, merged: Path, answers: Sequence[ParityPrompt]) -> Parity | None:
    """Round a merged folder to the student's 16 bits, if it then still answers as the adapter.

    Returns:
        The comparison. None if the student has 32 bits. If it did not pass, the folder is as it was.
    """
    dtype = str(get_torch_dtype(setup.spec.dtype)).removeprefix("torch.")
    if dtype == "float32":
        return None
    rounded = merged.with_name(f"{merged.name}-{dtype}")
    shutil.copytree(merged, rounded)
    round_merged(setup.spec, rounded)
    figures = _measure_difference(setup, rounded, answers, MIN_PROB)
    what = f"merged, rounded to {dtype}, on {count_noun(len(answers), 'prompt')}"
    parity = judge_parity("quantization", what, figures, {DIFFERENCE: MAX_ROUNDED_DIFFERENCE})
    if parity.passed:
        shutil.rmtree(merged)
        rounded.rename(merged)
    else:
        shutil.rmtree(rounded)
    return parity


def _measure_difference(
    setup: StudentSetup, merged: Path, answers: Sequence[ParityPrompt], least: float
) -> dict[str, float]:
    """The largest difference of log-probabilities, in nats, of what has at least the probability `least`."""
    report_progress("checking the merged model", 0, 0)
    predictor = setup.with_spec(method="full", dtype="float32", quantization="none").load_predictor(merged)
    assert isinstance(predictor, StudentPredictor)
    asked = [AnsweredPrompt("", one.prompt, None, None) for one in answers]
    again = _answer(predictor.student, asked, [one.answer for one in answers])
    largest = find_largest(
        abs(now - then)
        for before, after in zip(answers, again, strict=True)
        for now, then in zip(after.log_probs, before.log_probs, strict=True)
        if not math.exp(then) < least  # so that what is not a number is compared
    )
    return {"prompts": float(len(answers)), DIFFERENCE: largest}


def round_merged(spec: StudentSpec, folder: Path) -> None:
    """Round the weights of a merged folder to the student's number format, if that has 16 bits. The head stays."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    dtype = get_torch_dtype(spec.dtype)
    if dtype == torch.float32:
        return
    for file in folder.glob("*.safetensors"):
        if file.name == HEAD_FILE:
            continue
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, metadata)
    config = folder / "config.json"
    value = json.loads(config.read_text(encoding="utf-8"))
    value["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _save(student: Student, adapter: Path, folder: Path) -> None:
    model = student.model["encoder"] if isinstance(student, EncoderStudent) else student.model
    with models.silence_transformers():
        model.save_pretrained(str(folder))
        student.tokenizer.save_pretrained(str(folder))
    for name in (LABELS_FILE, PROMPT_FILE, HEAD_FILE):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)


def _answer(
    student: Student, asked: Sequence[AnsweredPrompt], written: Sequence[str] | None = None
) -> list[ParityPrompt]:
    """One answer for each prompt. `written` are texts whose tokens a writing student rates instead of its own."""
    answers = []
    for number, one in enumerate(asked):
        report_progress("answering with the adapter" if written is None else "comparing answers", number, len(asked))
        if isinstance(student, FreeTextStudent):
            answers.append(_rate_written(student, one, None if written is None else written[number]))
            continue
        log_probs = student.compute_log_probs([one.prompt])[0].tolist()
        label = student.labels[max(range(len(log_probs)), key=log_probs.__getitem__)]
        tokens = _list_prompt_tokens(student, one.prompt)
        answers.append(ParityPrompt(one.prompt, tokens, label, tuple(log_probs)))
    return answers


def _list_prompt_tokens(student: Any, prompt: StudentPrompt) -> tuple[int, ...]:
    if isinstance(student, EncoderStudent):
        tokens = student.tokenizer([prompt.text], truncation=True, max_length=student.spec.max_tokens)
        return tuple(tokens["input_ids"][0])
    return tuple(student.renderer.encode_prompts([prompt])[0].ids)


def _rate_written(student: FreeTextStudent, one: AnsweredPrompt, text: str | None) -> ParityPrompt:
    """What a student writes, or a given text, with the log-probability of each of its tokens and of the end token."""
    import torch

    text = student.predict_batch([one.prompt])[0].raw_text if text is None else text
    mark = REASONING_MARK if student.writes_reasoning else ANSWER_MARK
    item = student.encode_written(one.prompt, mark, text.removeprefix(mark).strip())
    prompt, answer = item["ids"][: -item["target"]], item["ids"][-item["target"] :]
    with torch.inference_mode():
        batch = {name: value.to(student.device) for name, value in student.collate_written([item]).items()}
        logits, _ = student.compute_target_logits(batch)
        chosen = torch.tensor(answer, device=logits.device)
        log_probs = logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
    return ParityPrompt(one.prompt, tuple(prompt), text, tuple(log_probs), tuple(answer))
