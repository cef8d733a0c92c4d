"""What both phases share: TRL's settings, progress, and a model that is afterwards as it was before."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.config.phases import ALIGN_REMEDY
from distill_dagster.core import models, progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student import loading
from distill_dagster.student.batches import WHOLE_STEP, MicroBatches
from distill_dagster.student.types import PhaseLog

if TYPE_CHECKING:
    from distill_dagster.config.phases import PhaseSpec
    from distill_dagster.student.causal import CausalModel

REFERENCE_ADAPTER = "ref"
"""The adapter that TRL adds as a frozen copy of the student before the phase."""


@dataclass(frozen=True)
class PhaseRun:
    """What a phase runs with besides its student and its data.

    `what` is the name of the training in progress reports, `run_name` that of the phase in MLflow. `micro_batches` says
    how the objective's steps were cut: those of the phase are cut in the same way. TensorBoard files are written to
    `log_folder`; without a folder the figures are in the log only.
    """

    log: PhaseLog
    what: str
    micro_batches: MicroBatches = WHOLE_STEP
    log_folder: Path | None = None
    run_name: str | None = None


def require_trl() -> None:
    """Check that TRL can be imported.

    Raises:
        DistillError: it cannot. The message names the extra to install.
    """
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise DistillError(
            f"`then` of a student needs the package trl, which cannot be imported ({error}). {ALIGN_REMEDY}"
        ) from None


def train_phase(
    student: CausalModel,
    phase: PhaseSpec,
    rows: list[dict[str, Any]],
    build_trainer: Callable[[dict[str, Any], Any], Any],
    run: PhaseRun,
    rows_at_once: int | None = None,
) -> None:
    """Run one phase on rows of token ids and add its figures to the log.

    Args:
        build_trainer: builds a TRL trainer from keyword arguments of its config and a dataset of the rows.
        rows_at_once: a step computes at most as many at once, and adds up their gradients. None: all.
    """
    import datasets
    import torch
    import transformers

    spec, log = student.spec, run.log
    batch_size = min(phase.batch_size, len(rows))
    most = max(1, rows_at_once or batch_size)
    at_once = max(size for size in range(1, batch_size + 1) if batch_size % size == 0 and size <= most)
    # TRL leaves out the prompts that fill no batch; they come up in another epoch.
    steps_per_epoch = len(rows) // batch_size if phase.kind == "on_policy" else math.ceil(len(rows) / batch_size)
    steps = phase.epochs * steps_per_epoch
    is_mixed = spec.method == "full" and loading.get_torch_dtype(spec.dtype) == torch.bfloat16

    class _Watcher(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            loss = log.losses[-1][1] if log.losses else None
            progress.report_progress(f"{phase.kind} phase of {run.what}", state.global_step, steps, loss=loss)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                log.losses.append((state.global_step, float(logs["loss"])))
                for name in set(log.metrics) & set(logs):
                    log.metrics[name].append(float(logs[name]))

    start = time.perf_counter()
    with TemporaryDirectory() as scratch, models.silence_transformers(), _hide_bars(), _keep_model(student.model):
        settings: dict[str, Any] = {
            "output_dir": scratch,
            "num_train_epochs": phase.epochs,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": batch_size // at_once,
            "learning_rate": phase.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": round(spec.warmup_ratio * steps),
            "max_grad_norm": 1.0,
            "logging_steps": max(1, steps // 100),
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": [],
            "run_name": run.run_name,
            "disable_tqdm": True,
            "bf16": is_mixed,  # an adapter is in float32, its base in the student's number format
            "fp16": spec.dtype == "float16",  # scales the loss, as `trainer.build_arguments` does
            "activation_checkpointing": False,
            "use_cpu": loading.choose_device() == "cpu",
            "seed": spec.seed,
        }
        weights = [(p, p.data) for p in student.model.parameters() if p.requires_grad]
        trainer = build_trainer(settings, datasets.Dataset.from_list(rows))
        for parameter, data in weights:  # TRL rounds an adapter of 4-bit weights to bfloat16
            parameter.data = data
        trainer.add_callback(_Watcher())
        if run.log_folder is not None:
            from distill_dagster.student.training_logs import build_log_callbacks

            # A phase starts over, so that only what its last run logged counts.
            for callback in build_log_callbacks(run.log_folder, first_step=1):
                trainer.add_callback(callback)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        log.steps = trainer.state.global_step
    log.seconds = round(time.perf_counter() - start, 3)


@contextmanager
def _hide_bars() -> Iterator[None]:
    """Show no progress bars of TRL and of its datasets within this block."""
    import datasets

    name, were_hidden = "TQDM_DISABLE", datasets.are_progress_bars_disabled()
    before = os.environ.get(name)
    os.environ[name] = "1"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        if not were_hidden:
            datasets.enable_progress_bars()


@contextmanager
def _keep_model(model: Any) -> Iterator[None]:
    """Undo within this block what TRL changes in a model besides its weights.

    It sets the padding token, replaces the forward pass of the base, sets dropout to 0 and adds an adapter.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    configs = [base.config.get_text_config(), base.generation_config]
    padding = [config.pad_token_id for config in configs]
    tags = list(getattr(base, "model_tags", None) or [])
    forward, is_training = base.__dict__.get("forward"), model.training
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        if REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
            model.delete_adapter(REFERENCE_ADAPTER)
        for config, pad in zip(configs, padding, strict=True):
            config.pad_token_id = pad
        if forward is None:
            base.__dict__.pop("forward", None)
        else:
            base.forward = forward
        base.model_tags = tags
        for module, p in dropouts:
            module.p = p
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(is_training)
