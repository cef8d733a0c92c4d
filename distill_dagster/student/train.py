"""Training a student's adapter with LoRA: the same loop for causal models and encoders."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models, progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student import loading
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.types import TaskSettings, TrainingLog, TrainRow

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec, StudentSpec

Student = CausalStudent | EncoderStudent | FreeTextStudent
STUDENT_CLASSES: dict[str, type[CausalStudent] | type[EncoderStudent]] = {
    "causal_lm": CausalStudent,
    "encoder": EncoderStudent,
}


def choose_student_class(spec: StudentSpec, labels: list[LabelSpec]) -> type[Student]:
    """What learns: without labels to choose from, or with reasoning, an answer is written, which an encoder cannot."""
    if labels and not spec.reasoning:
        return STUDENT_CLASSES[spec.architecture]
    if spec.architecture != "causal_lm":
        raise DistillError("An encoder chooses among labels and writes nothing. Use `architecture: causal_lm`.")
    return FreeTextStudent


LABELS_FILE, TRAINING_LOG_FILE = "labels.json", "training_log.json"


def train_adapter(
    spec: StudentSpec,
    labels: list[LabelSpec],
    settings: TaskSettings,
    rows: list[TrainRow],
    validation: list[TrainRow],
    out: Path,
    models_folder: Path,
    epochs: int | None = None,
    what: str = "student",
) -> TrainingLog:
    """Train a LoRA adapter and write it to the folder `out`, which is made if it is not there.

    `out` gets adapter_model.safetensors, adapter_config.json, the tokenizer, labels.json, training_log.json and, for an
    encoder, head.safetensors. On one machine the same rows, settings and seed give the same adapter bytes. `epochs`
    replaces that of the spec, `what` names the training in progress reports. Nothing is chosen on `validation`: its
    loss and agreement are only logged.

    Raises:
        DistillError: there is no row, or a row's answer is not a label.
        ModelError: the base cannot be found or loaded.
    """
    names = [label.name for label in labels]
    _check_rows(rows, validation, names)
    student = choose_student_class(spec, labels)(spec, labels, settings, models_folder)
    log = TrainingLog(rows=len(rows), epochs=epochs or spec.epochs)
    student.add_adapter()
    log.trainable_parameters = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    log.total_parameters = student.base.parameters + log.trainable_parameters
    _fit(student, rows, validation, log, what)
    _save_student(student, labels, log, out)
    return log


def _check_rows(rows: list[TrainRow], validation: list[TrainRow], names: list[str]) -> None:
    if not rows:
        raise DistillError("There is no row to train on. Lower the thresholds in `curation`, or add prompts.")
    for row in [*rows, *validation]:
        if names and row.answer_label not in names:
            raise DistillError(f"Row {row.prompt_id}: {row.answer_label!r} is not a label of this task. Add it.")


class LengthBatchSampler:
    """Batches of rows of nearly one length, in an order that is new in every epoch and fixed by the seed.

    Shuffled, cut into stretches of 16 batches, each sorted by length: little padding, and still random batches.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        import random

        chance = random.Random(f"{self.seed}/{self.epoch}")
        self.epoch += 1
        order = list(range(len(self.lengths)))
        chance.shuffle(order)
        stretch = 16 * self.batch_size
        batches = []
        for start in range(0, len(order), stretch):
            part = sorted(order[start : start + stretch], key=lambda i: self.lengths[i])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        chance.shuffle(batches)
        return iter(batches)


def _fit(student: Student, rows: list[TrainRow], validation: list[TrainRow], log: TrainingLog, what: str) -> None:
    import torch
    import transformers

    spec = student.spec
    items = student.encode(rows)
    mean = sum(item["weight"] for item in items) / len(items) or 1.0
    for item in items:  # of mean 1, so that weights do not act as another learning rate
        item["weight"] /= mean
    batches = LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed)
    total = len(batches) * log.epochs

    class _Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(items, batch_sampler=batches, collate_fn=student.collate)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return (student.loss(inputs) * inputs["weight"]).mean()

    class _Watch(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.report_progress(f"training {what}", state.global_step, total)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                log.losses.append((state.global_step, round(float(state.epoch), 4), float(logs["loss"])))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if validation:
                log.validation.append(
                    {"epoch": round(float(state.epoch)), **_compute_validation_scores(student, validation)}
                )

    with TemporaryDirectory() as scratch, models.silence_transformers():
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            num_train_epochs=log.epochs,
            per_device_train_batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(spec.warmup_ratio * total),
            max_grad_norm=1.0,
            logging_steps=max(1, total // 100),
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=loading.choose_device() == "cpu",
            seed=spec.seed,
        )
        watch = _Watch()
        trainer = _Trainer(model=student.model, args=arguments, train_dataset=items, callbacks=[watch])
        trainer.remove_callback(transformers.PrinterCallback)
        start = time.perf_counter()
        trainer.train()
    log.seconds = round(time.perf_counter() - start, 3)
    log.steps = total
    log.tokens = sum(item["length"] for item in items) * log.epochs
    log.tokens_per_s = round(log.tokens / log.seconds, 1)
    log.peak_mb = round(_measure_peak_mb(), 1)


def _compute_validation_scores(student: Student, rows: list[TrainRow], batch_size: int = 64) -> dict[str, float]:
    """Mean negative log-likelihood of the kept labels, and agreement: the share of rows where it is most probable."""
    training = student.model.training
    student.model.eval()
    if isinstance(student, FreeTextStudent):
        found = student.validate(rows)
        student.model.train(training)
        return found
    loss, agree = 0.0, 0
    order = sorted(rows, key=lambda row: len(row.text))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        for row, log_probs in zip(part, student.log_probs([row.text for row in part]).tolist(), strict=True):
            kept = student.labels.index(row.answer_label)
            loss -= log_probs[kept]
            agree += log_probs[kept] == max(log_probs)
    student.model.train(training)
    return {"loss": round(loss / len(rows), 6), "agreement": round(agree / len(rows), 6)}


def _measure_peak_mb() -> float:
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _save_student(student: Student, labels: list[LabelSpec], log: TrainingLog, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    student.save_adapter(out)
    student.tokenizer.save_pretrained(str(out))
    described = [label.model_dump() for label in labels]
    task: dict[str, Any] = {
        "architecture": student.spec.architecture,
        "item": student.settings.item,
        "labels": described,
    }
    if isinstance(student, FreeTextStudent):
        task["reasoning"] = student.settings.reasoning
    _write_json(out / LABELS_FILE, task)
    _write_json(out / TRAINING_LOG_FILE, log.to_dict())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
