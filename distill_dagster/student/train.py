"""Train a student. All architectures and methods share one loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.config.objective import WRITING_OBJECTIVES
from distill_dagster.core import models, progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.processes import measure_peak_mb
from distill_dagster.student import loading
from distill_dagster.student.batches import LengthBatchSampler
from distill_dagster.student.best_epoch import BestEpoch
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.types import TRAINING_LOG_FILE, TaskSettings, TrainingLog, TrainRow

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec, StudentSpec

LABELS_FILE = "labels.json"
Student = CausalStudent | EncoderStudent | FreeTextStudent
STUDENT_CLASSES: dict[str, type[CausalStudent] | type[EncoderStudent]] = {
    "causal_lm": CausalStudent,
    "encoder": EncoderStudent,
}


def choose_student_class(spec: StudentSpec, labels: list[LabelSpec]) -> type[Student]:
    """The class of a student: a free-text student without labels or with reasoning, else one that chooses a label.

    Raises:
        DistillError: an encoder would have to write free text.
    """
    if labels and spec.resolve_objective(True, task_reasoning=True).kind not in WRITING_OBJECTIVES:
        return STUDENT_CLASSES[spec.architecture]
    if spec.architecture != "causal_lm":
        raise DistillError("An encoder chooses a label and cannot write text. Use `architecture: causal_lm`.")
    return FreeTextStudent


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
    """Train a student and write what was trained to the folder `out`, which is created if needed.

    `out` gets adapter_model.safetensors and adapter_config.json or, with `method: full`, model.safetensors and
    config.json; the tokenizer, labels.json, training_log.json and, for an encoder, head.safetensors. On one machine the
    same rows, settings and seed give the same bytes of weights.

    Args:
        validation: rows whose loss is measured after each epoch. With the spec's `patience`, the epoch with the lowest
            loss is kept, and training stops after that many epochs without a lower one.
        epochs: the most epochs; replaces the epochs of the spec.
        what: the name of the training in progress reports.

    Raises:
        DistillError: there are no rows, or a row's answer is not a label.
        ModelError: the base cannot be found or loaded.
    """
    names = [label.name for label in labels]
    _check_rows(rows, validation, names)
    dtype = loading.get_training_dtype(spec)
    student = choose_student_class(spec, labels)(spec, labels, settings, models_folder, dtype)
    log = TrainingLog(rows=len(rows), epochs=epochs or spec.epochs, method=spec.method)
    if isinstance(student, EncoderStudent):
        start = time.perf_counter()
        log.probe_penalty = student.fit_head(rows, validation)
        log.probe_seconds = round(time.perf_counter() - start, 3)
    of_base = {id(parameter) for parameter in student.base.model.parameters()}
    student.add_adapter()
    log.dtype = str(loading.get_torch_dtype(spec.dtype)).removeprefix("torch.")
    trained = [parameter for parameter in student.trained_module.parameters() if parameter.requires_grad]
    log.trainable_parameters = sum(p.numel() for p in trained)
    log.total_parameters = student.base.parameters + sum(p.numel() for p in trained if id(p) not in of_base)
    _fit(student, rows, validation, log, what)
    _save_student(student, labels, log, out)
    return log


def _check_rows(rows: list[TrainRow], validation: list[TrainRow], names: list[str]) -> None:
    if not rows:
        raise DistillError("There are no rows to train on. Lower the thresholds in `curation`, or add prompts.")
    for row in [*rows, *validation]:
        if names and row.answer_label not in names:
            raise DistillError(
                f"Row {row.prompt_id}: {row.answer_label!r} is not a label of this task. Add it to `labels`."
            )


def _fit(student: Student, rows: list[TrainRow], validation: list[TrainRow], log: TrainingLog, what: str) -> None:
    import transformers

    from distill_dagster.student.trainer import StudentTrainer

    spec = student.spec
    items = student.encode(rows)
    mean_weight = sum(item["weight"] for item in items) / len(items) or 1.0
    for item in items:  # scale to a mean of 1, so that weights do not change the learning rate
        item["weight"] /= mean_weight
    batches = LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed)
    total = len(batches) * log.epochs
    best = BestEpoch(student.trained_module, spec.patience) if validation and spec.patience is not None else None

    def validate(epoch: int) -> bool:
        """Log the scores on validation. Return whether training should stop."""
        scores = _compute_validation_scores(student, validation)
        log.validation.append({"epoch": epoch, **scores})
        return best is not None and best.add_epoch(epoch, scores["loss"])

    class _TrainingWatcher(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            loss = log.losses[-1][2] if log.losses else None
            progress.report_progress(f"training {what}", state.global_step, total, loss=loss)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                log.losses.append((state.global_step, round(float(state.epoch), 4), float(logs["loss"])))
                for name in (name for name in logs if name.startswith("loss_")):
                    part = log.loss_parts.setdefault(name.removeprefix("loss_"), [])
                    part.append((state.global_step, float(logs[name])))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if validation and validate(round(float(state.epoch))):
                control.should_training_stop = True

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
        watcher = _TrainingWatcher()
        trainer = StudentTrainer(student, items, batches, spec.batch_size, arguments, [watcher])
        start = time.perf_counter()
        if isinstance(student, EncoderStudent):
            if validation:
                validate(0)  # a new adapter changes nothing, so this is the linear probe
            student.start_fine_tuning()
        else:
            student.choose_attention(max(item["length"] for item in items))
            student.reuse_frozen_layers(student.list_sequences(items, validation))
            log.reused_layers = len(student.frozen.layers) if student.frozen is not None else 0
        trainer.train()
    if best is not None:
        best.restore()
        log.best_epoch = best.epoch
    if isinstance(student, EncoderStudent):
        log.kept = "linear probe" if log.best_epoch == 0 else "fine-tuned"
    log.seconds = round(time.perf_counter() - start, 3)
    log.steps = trainer.state.global_step
    log.epochs = log.steps // len(batches)
    log.tokens = sum(item["length"] for item in items) * log.epochs
    log.tokens_per_s = round(log.tokens / log.seconds, 1)
    log.peak_mb = round(_measure_peak_mb(), 1)


def _compute_validation_scores(student: Student, rows: list[TrainRow]) -> dict[str, float]:
    is_training = student.trained_module.training
    student.trained_module.eval()
    scores = student.compute_validation_scores(rows)
    student.trained_module.train(is_training)
    return scores


def _measure_peak_mb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else measure_peak_mb()


def _save_student(student: Student, labels: list[LabelSpec], log: TrainingLog, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    student.save_adapter(out)
    student.tokenizer.save_pretrained(str(out))
    task: dict[str, Any] = {
        "architecture": student.spec.architecture,
        "item": student.settings.item,
        "labels": [label.model_dump() for label in labels],
    }
    _write_json(out / LABELS_FILE, task | student.get_saved_settings())
    _write_json(out / TRAINING_LOG_FILE, log.to_dict())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
