"""What happens during a training besides learning: progress, the training log, validation, checkpoints.

Import this module inside functions: it loads torch and transformers.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from distill_dagster.core import progress
from distill_dagster.student import checkpoints
from distill_dagster.student.best_epoch import BestEpoch
from distill_dagster.student.trainer import StudentTrainer
from distill_dagster.student.types import TrainingLog, TrainRow, ValidationListener

PART_PREFIX = "loss_"


class TrainingWatcher(transformers.TrainerCallback):
    """Fills a training log, measures the loss on validation rows after each epoch, and completes checkpoints."""

    trainer: StudentTrainer
    """Set after the trainer was made, which needs its callbacks."""

    def __init__(
        self,
        log: TrainingLog,
        validation: list[TrainRow],
        best: BestEpoch | None,
        steps_per_epoch: int,
        save_every: int | None,
        what: str,
        on_validation: ValidationListener | None = None,
    ) -> None:
        """Args:
        save_every: steps between two checkpoints; None: there are none.
        what: the name of the training in progress reports.
        on_validation: gets each epoch's scores. An exception that it raises ends the training.
        """
        self.log, self.validation, self.best = log, validation, best
        self.steps_per_epoch, self.save_every, self.what = steps_per_epoch, save_every, what
        self.saved_step, self.on_validation = 0, on_validation
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, with those before a kill that a checkpoint knows of."""
        return self.log.seconds_before + time.perf_counter() - self._started

    def resume(self, checkpoint: Path) -> None:
        """Become the watcher that saved this checkpoint."""
        saved = checkpoints.read_progress(checkpoint)
        self.log.losses = [(int(step), epoch, loss) for step, epoch, loss in saved["losses"]]
        self.log.loss_parts = {name: [(int(s), v) for s, v in part] for name, part in saved["loss_parts"].items()}
        self.log.validation = saved["validation"]
        self.log.resumed_at = [*saved["resumed_at"], saved["step"]]
        self.saved_step, self.log.seconds_before = saved["step"], saved["seconds"]
        if self.best is not None:
            self.best.load(checkpoint, self.log.validation)
        self.trainer.restore_loss_sums(saved["loss_sums"], saved["logged_step"])

    def validate(self, epoch: int) -> bool:
        """Log the scores on validation. Return whether training should stop."""
        if not self.validation:
            return False
        scores = self.trainer.compute_validation_scores(self.validation)
        self.log.validation.append({"epoch": epoch, **scores})
        self.trainer.log({f"eval_{name}": score for name, score in scores.items()})
        if self.on_validation is not None:
            self.on_validation(epoch, scores)
        return self.best is not None and self.best.add_epoch(epoch, scores["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = self.log.losses[-1][2] if self.log.losses else None
        progress.report_progress(f"training {self.what}", state.global_step, state.max_steps, loss=loss)
        # At the end of an epoch the checkpoint comes after validation, or a resumed training would leave it out.
        if state.global_step % self.steps_per_epoch:
            control.should_save = self._is_due(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.log.losses.append((state.global_step, round(float(state.epoch), 4), float(logs["loss"])))
            for name in (name for name in logs if name.startswith(PART_PREFIX)):
                part = self.log.loss_parts.setdefault(name.removeprefix(PART_PREFIX), [])
                part.append((state.global_step, float(logs[name])))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.validate(round(float(state.epoch))):
            control.should_training_stop = True
        control.should_save = not control.should_training_stop and self._is_due(state.global_step)

    def _is_due(self, step: int) -> bool:
        return self.save_every is not None and step - self.saved_step >= self.save_every

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sums, logged_step = self.trainer.collect_loss_sums()  # waits for all ranks
        self.saved_step = state.global_step
        if not args.should_save:
            return
        if self.best is not None:
            self.best.save(checkpoint)
        kept = {name: getattr(self.log, name) for name in ("losses", "loss_parts", "validation", "resumed_at")}
        figures: dict[str, Any] = {"step": state.global_step, "seconds": self.seconds}
        figures["micro_batches"] = asdict(self.trainer.micro_batches)
        checkpoints.write_progress(checkpoint, kept | figures | {"loss_sums": sums, "logged_step": logged_step})
