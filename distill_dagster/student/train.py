"""Train a student. All architectures and methods share one loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.config.objective import WRITING_OBJECTIVES
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_folder
from distill_dagster.core.processes import measure_peak_mb
from distill_dagster.kinds.base import REASONING_MARK
from distill_dagster.student import loading, losses
from distill_dagster.student.batches import Item, LengthBatchSampler, MicroBatches
from distill_dagster.student.best_epoch import BestEpoch
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.checkpoints import Checkpoints, compute_training_key, get_step, read_micro_batches
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.memory import check_model_fits, choose_micro_batches
from distill_dagster.student.phases.on_policy import check_on_policy_teacher
from distill_dagster.student.phases.run import run_phases
from distill_dagster.student.phases.trl_trainer import require_trl
from distill_dagster.student.ranks import (
    LaunchRanks,
    count_ranks,
    gather_from_ranks,
    get_rank,
    get_world_size,
    is_first_rank,
    join_ranks,
    train_on_ranks,
    wait_for_ranks,
)
from distill_dagster.student.rationales import leave_out_long_reasoning
from distill_dagster.student.token_counts import (
    count_learned_tokens,
    leave_out_empty_targets,
    measure_padding,
    require_whole_targets,
)
from distill_dagster.student.token_log_probs import add_teacher_log_probs, find_teacher_model
from distill_dagster.student.types import (
    TRAINING_LOG_FILE,
    PreferencePair,
    TaskSettings,
    TrainedStudent,
    TrainingLog,
    TrainRow,
    ValidationListener,
)
from distill_dagster.student.validation import compute_validation_scores

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec, StudentSpec

LABELS_FILE = "labels.json"
PROMPT_FILE = "prompt.json"
"""How a causal student is asked, with a sample, so that another program can check that it asks the same."""
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
    assistant: TrainedStudent | None = None,
    captured: Path | None = None,
    launch: LaunchRanks | None = None,
) -> TrainingLog:
    """Train a student and write what was trained to the folder `out`, which is created if needed.

    `out` gets adapter_model.safetensors and adapter_config.json or, with `method: full`, model.safetensors and
    config.json; the tokenizer, labels.json, training_log.json and, for an encoder, head.safetensors. A causal student
    has its chat template and prompt.json. On one machine, the same rows, settings and seed give the same weights.

    Args:
        validation: rows whose loss is measured after each epoch. With the spec's `patience`, the epoch with the lowest
            loss is kept, and training stops after that many epochs without a lower one.
        epochs: the most epochs; replaces the epochs of the spec.
        what: the name of the training in progress reports.
        pairs: what a preference phase in the spec's `then` learns from.
        work: the folder of this training's checkpoints and TensorBoard files, which belongs to it alone. If there is a
            checkpoint of the same rows, settings and base, training goes on from there, and the weights are those that
            it would have had without the interruption. Checkpoints stay, so that no training is lost before its `out`
            is stored: then `checkpoints.delete_checkpoints`. Without a folder nothing of this is written.
        on_validation: gets the scores after each epoch. An exception that it raises ends the training.
        assistant: the student that teaches this one, for objectives that read a teacher's model.
        captured: the folder where a teacher's log-probabilities are kept, for all trainings.
        launch: starts several ranks, for example on other machines. By default `ranks.count_ranks` says how many start
            on this one. A student with `then` or `on_validation` is trained by this process.

    Raises:
        DistillError: there are no rows, a row's answer is not a label or is cut, `then` needs a package that is not
            installed, or the training does not fit in memory.
        ModelError: the base cannot be found or loaded.
    """
    names = [label.name for label in labels]
    _check_rows(rows, validation, names)
    loading.check_training_dtype(spec)
    if spec.then:
        require_trl()
    if launch is None and (ranks := count_ranks()) > 1:
        launch = partial(train_on_ranks, ranks)
    if launch is not None and on_validation is None and not spec.then:
        given = (spec, labels, settings, rows, validation, out, models_folder, epochs, what)
        return launch(given, {"work": work, "assistant": assistant, "captured": captured})
    join_ranks()
    loading.load_libraries()
    check_model_fits(spec, models_folder, ranks=get_world_size())
    wait_for_ranks()  # no rank loads its model before all have measured the free memory
    _forget_peak()
    dtype = loading.get_training_dtype(spec)
    student = choose_student_class(spec, labels)(spec, labels, settings, models_folder, dtype)
    if spec.starts_trained:
        if assistant is None:
            raise DistillError(
                "`shrink.start: teacher` begins with a trained student, and there is none to begin with."
            )
        loading.start_from_trained(student.base, spec, assistant, models_folder)
        if isinstance(student, EncoderStudent):
            student.start_head()
    log = TrainingLog(epochs=epochs or spec.epochs, method=spec.method, objective=student.objective.model_dump())
    rows, log.long_reasoning = leave_out_long_reasoning(student.objective, student.tokenizer, rows)
    validation, _ = leave_out_long_reasoning(student.objective, student.tokenizer, validation, needs_rows=False)
    if isinstance(student, FreeTextStudent):
        rows, log.rows_without_target = leave_out_empty_targets(rows)
        validation, _ = leave_out_empty_targets(validation, needs_rows=False)
        if student.writes_reasoning:
            log.rows_without_reasoning = sum(not (row.target or "").startswith(REASONING_MARK) for row in rows)
    log.rows, log.rows_with_soft_labels = len(rows), sum(map(losses.has_probabilities, rows))
    if log.long_reasoning:
        learned = {row.prompt_id for row in rows}
        pairs = [pair for pair in pairs if pair.kept.prompt_id in learned]
    if isinstance(student, EncoderStudent):
        student.match_layers(models_folder, assistant)
        start = time.perf_counter()
        log.probe_penalty = student.fit_head(rows, validation)
        log.probe_seconds = round(time.perf_counter() - start, 3)
    of_base = {id(parameter) for parameter in student.base.model.parameters()}
    student.add_adapter()
    log.dtype = str(loading.get_torch_dtype(spec.dtype)).removeprefix("torch.")
    trained = [parameter for parameter in student.trained_module.parameters() if parameter.requires_grad]
    log.trainable_parameters = sum(p.numel() for p in trained)
    added = (p for p in student.model.parameters() if p.requires_grad and id(p) not in of_base)
    log.total_parameters = student.base.parameters + sum(p.numel() for p in added)
    items = student.encode(rows)
    _count_tokens(student, items, log)
    taught_by = ""
    if student.objective.kind == "token_kd" and not isinstance(student, EncoderStudent):
        teacher = find_teacher_model(student, student.objective, labels, models_folder, assistant)
        log.rows_captured = add_teacher_log_probs(student, items, rows, teacher, student.objective, captured)
        taught_by = teacher.identity
        if spec.starts_trained and assistant is not None:
            taught_by += hash_folder(assistant[1])
    elif assistant is not None:
        taught_by = hash_folder(assistant[1])
    saved = _open_checkpoints(work, student, labels, rows, validation, log.epochs, taught_by)
    for phase in spec.then:
        if phase.kind == "on_policy" and not isinstance(student, EncoderStudent):
            check_on_policy_teacher(student, phase, models_folder)
    micro_batches = _fit(student, items, validation, log, saved, what, on_validation)
    if spec.then:
        assert not isinstance(student, EncoderStudent), "an encoder has no phases, see config.phases.check_phase"
        measure = partial(compute_validation_scores, student, validation) if validation else dict
        log.phases = run_phases(student, rows, pairs, models_folder, measure, what, micro_batches, saved)
    wait_for_ranks()
    if is_first_rank():
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


def _count_tokens(student: Student, items: list[Item], log: TrainingLog) -> None:
    counts = count_learned_tokens(items)
    require_whole_targets(counts, student.spec.max_cut_targets, student.spec.answer_tokens)
    log.target_tokens, log.prompts_cut = counts.target_tokens, counts.prompts_cut
    log.targets_cut = counts.targets_cut
    log.prompt = None if isinstance(student, EncoderStudent) else student.renderer.style


def _open_checkpoints(
    work: Path | None,
    student: Student,
    labels: list[LabelSpec],
    rows: list[TrainRow],
    validation: list[TrainRow],
    epochs: int,
    taught_by: str,
) -> Checkpoints | None:
    if work is None:
        return None
    base = student.base.sha256
    key = compute_training_key(student.spec, base, labels, student.settings, rows, validation, epochs, taught_by)
    saved = Checkpoints(work, key)
    if is_first_rank():
        saved.clean()
    wait_for_ranks()
    return saved


def _fit(
    student: Student,
    items: list[Item],
    validation: list[TrainRow],
    log: TrainingLog,
    saved: Checkpoints | None,
    what: str,
    on_validation: ValidationListener | None,
) -> MicroBatches:
    """Train the student's weights on encoded rows, from the latest of the saved checkpoints on, and fill the log.

    Returns how its steps were cut into what is computed at once.
    """
    from distill_dagster.student.trainer import StudentTrainer, build_arguments
    from distill_dagster.student.training_logs import build_log_callbacks
    from distill_dagster.student.training_watcher import TrainingWatcher

    spec = student.spec
    mean_weight = sum(item["weight"] for item in items) / len(items) or 1.0
    for item in items:  # scale to a mean of 1, so that weights do not change the learning rate
        item["weight"] /= mean_weight
    rank, ranks = get_rank(), get_world_size()
    batches = LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed, rank, ranks)
    best = BestEpoch(student.trained_module, spec.patience) if validation and spec.patience is not None else None
    save_every = spec.checkpoint.every_steps if saved is not None else None
    if log.prompt:
        what = f"{what} with {log.prompt} prompts"
    with TemporaryDirectory() as scratch, models.silence_transformers():
        watcher = TrainingWatcher(log, validation, best, len(batches), save_every, what, on_validation)
        folder = saved.folder if saved is not None else Path(scratch)
        checkpoint = saved.find_latest() if saved is not None else None
        run_name = saved.run_name if saved is not None else None
        arguments = build_arguments(spec, folder, log.epochs, len(batches), run_name)
        callbacks: list[Any] = [watcher]
        if saved is not None and is_first_rank():
            callbacks += build_log_callbacks(
                saved.tensorboard, first_step=get_step(checkpoint) + 1 if checkpoint else 0
            )
        if not isinstance(student, EncoderStudent):
            student.choose_attention(max(item["length"] for item in items))
        student.reuse_frozen_layers(student.list_sequences(items, validation))
        log.reused_layers = len(student.frozen.layers) if student.frozen is not None else 0
        before = read_micro_batches(checkpoint) if checkpoint is not None else None
        chosen = gather_from_ranks(choose_micro_batches(student, items, arguments.world_size, saved=before))
        micro_batches = min(chosen, key=lambda one: one.tokens or math.inf)
        log.micro_batch = str(micro_batches)
        log.padding_share = measure_padding(items, batches, micro_batches)
        trainer = watcher.trainer = StudentTrainer(student, items, batches, micro_batches, arguments, callbacks)
        if checkpoint is not None:
            watcher.resume(checkpoint)
        elif isinstance(student, EncoderStudent):
            watcher.validate(0)  # a new adapter changes nothing, so this is the linear probe
        if isinstance(student, EncoderStudent):
            student.start_fine_tuning()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        del watcher.trainer  # the two refer to each other, which keeps the model in memory
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
    return micro_batches


def _forget_peak() -> None:
    """Let the peak of a GPU's memory be that of what follows, not of an earlier training in this process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


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
    if not isinstance(student, EncoderStudent):
        _write_json(out / PROMPT_FILE, student.describe_prompt())
    _write_json(out / TRAINING_LOG_FILE, log.to_dict())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
