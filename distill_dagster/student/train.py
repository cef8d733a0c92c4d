"""Train a student. All architectures and methods share one loop."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.config.objective import WRITING_OBJECTIVES
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.core.processes import measure_peak_mb
from distill_dagster.student import loading
from distill_dagster.student.batches import LengthBatchSampler
from distill_dagster.student.best_epoch import BestEpoch
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.checkpoints import Checkpoints, compute_training_key
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.memory import check_model_fits, choose_micro_batches
from distill_dagster.student.phases.run import run_phases
from distill_dagster.student.phases.trl_trainer import require_trl
from distill_dagster.student.rationales import leave_out_long_reasoning
from distill_dagster.student.types import (
    TRAINING_LOG_FILE,
    PreferencePair,
    TaskSettings,
    TrainingLog,
    TrainRow,
    ValidationListener,
)
from distill_dagster.student.validation import compute_validation_scores

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
    pairs: Sequence[PreferencePair] = (),
    work: Path | None = None,
    on_validation: ValidationListener | None = None,
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
        pairs: what a preference phase in the spec's `then` learns from.
        work: the folder of this training's checkpoints, which belongs to it alone. If they are of the same training,
            that is of the same rows, settings and base, it goes on from the latest, and the weights are those that it
            would have had without the interruption. Without a folder there are no checkpoints.
        on_validation: gets the scores after each epoch. An exception that it raises ends the training.

    Raises:
        DistillError: there are no rows, a row's answer is not a label, `then` needs a package that is not installed, or
            the training does not fit in memory.
        ModelError: the base cannot be found or loaded.
    """
    names = [label.name for label in labels]
    _check_rows(rows, validation, names)
    if spec.then:
        require_trl()
    check_model_fits(spec, models_folder)
    dtype = loading.get_training_dtype(spec)
    student = choose_student_class(spec, labels)(spec, labels, settings, models_folder, dtype)
    log = TrainingLog(epochs=epochs or spec.epochs, method=spec.method, objective=student.objective.model_dump())
    rows, log.long_reasoning = leave_out_long_reasoning(student.objective, student.tokenizer, rows)
    validation, _ = leave_out_long_reasoning(student.objective, student.tokenizer, validation)
    log.rows = len(rows)
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
    saved = _open_checkpoints(work, student, labels, rows, validation, log.epochs)
    _fit(student, rows, validation, log, saved, what, on_validation)
    if spec.then:
        assert not isinstance(student, EncoderStudent), "an encoder has no phases, see config.phases.check_phase"
        measure = partial(compute_validation_scores, student, validation) if validation else dict
        log.phases = run_phases(student, rows, pairs, models_folder, measure, what)
    _save_student(student, labels, log, out)
    if saved is not None:
        saved.delete()
    return log


def _check_rows(rows: list[TrainRow], validation: list[TrainRow], names: list[str]) -> None:
    if not rows:
        raise DistillError("There are no rows to train on. Lower the thresholds in `curation`, or add prompts.")
    for row in [*rows, *validation]:
        if names and row.answer_label not in names:
            raise DistillError(
                f"Row {row.prompt_id}: {row.answer_label!r} is not a label of this task. Add it to `labels`."
            )


def _open_checkpoints(
    work: Path | None,
    student: Student,
    labels: list[LabelSpec],
    rows: list[TrainRow],
    validation: list[TrainRow],
    epochs: int,
) -> Checkpoints | None:
    if work is None or student.spec.checkpoint.every_steps is None:
        return None
    key = compute_training_key(student.spec, student.base.sha256, labels, student.settings, rows, validation, epochs)
    return Checkpoints.open(work / "checkpoints", key)


def _fit(
    student: Student,
    rows: list[TrainRow],
    validation: list[TrainRow],
    log: TrainingLog,
    saved: Checkpoints | None,
    what: str,
    on_validation: ValidationListener | None,
) -> None:
    """Train the student's weights, from the latest of the saved checkpoints on, and fill the log."""
    from distill_dagster.student.trainer import StudentTrainer
    from distill_dagster.student.training_watcher import TrainingWatcher

    spec = student.spec
    items = student.encode(rows)
    mean_weight = sum(item["weight"] for item in items) / len(items) or 1.0
    for item in items:  # scale to a mean of 1, so that weights do not change the learning rate
        item["weight"] /= mean_weight
    batches = LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed)
    best = BestEpoch(student.trained_module, spec.patience) if validation and spec.patience is not None else None
    save_every = spec.checkpoint.every_steps if saved is not None else None
    with TemporaryDirectory() as scratch, models.silence_transformers():
        watcher = TrainingWatcher(log, validation, best, len(batches), save_every, what, on_validation)
        folder = saved.folder if saved is not None else Path(scratch)
        arguments = build_arguments(spec, folder, log.epochs, len(batches))
        if not isinstance(student, EncoderStudent):
            student.choose_attention(max(item["length"] for item in items))
        student.reuse_frozen_layers(student.list_sequences(items, validation))
        log.reused_layers = len(student.frozen.layers) if student.frozen is not None else 0
        micro_batches = choose_micro_batches(student, items, arguments.world_size)
        trainer = watcher.trainer = StudentTrainer(student, items, batches, micro_batches, arguments, [watcher])
        checkpoint = saved.find_latest() if saved is not None else None
        if checkpoint is not None:
            watcher.resume(checkpoint)
        elif isinstance(student, EncoderStudent):
            watcher.validate(0)  # a new adapter changes nothing, so this is the linear probe
        if isinstance(student, EncoderStudent):
            student.start_fine_tuning()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if best is not None:
        best.restore()
        log.best_epoch = best.epoch
    if isinstance(student, EncoderStudent):
        log.kept = "linear probe" if log.best_epoch == 0 else "fine-tuned"
    log.seconds = round(watcher.seconds, 3)
    log.steps = trainer.state.global_step
    log.epochs = log.steps // len(batches)
    log.tokens = sum(item["length"] for item in items) * log.epochs
    log.tokens_per_s = round(log.tokens / log.seconds, 1)
    log.peak_mb = round(_measure_peak_mb(), 1)


def build_arguments(spec: StudentSpec, folder: Path, epochs: int, steps_per_epoch: int) -> Any:
    """The arguments of a `StudentTrainer`. Checkpoints are written to `folder`."""
    import transformers

    steps = epochs * steps_per_epoch
    return transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(spec.warmup_ratio * steps),
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 100),
        save_strategy="no",  # TrainingWatcher says when
        save_total_limit=2,  # the last complete one is kept while the next is written
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=loading.choose_device() == "cpu",
        seed=spec.seed,
    )


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
