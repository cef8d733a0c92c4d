"""The training loop of students: `transformers.Trainer`, whose steps compute the losses of `student`.

Import this module inside functions: it loads torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate.utils import gather_object

from distill_dagster.student import checkpoints, loading
from distill_dagster.student.batches import Item, LengthBatchSampler, MicroBatches
from distill_dagster.student.layer_rates import build_layer_groups
from distill_dagster.student.types import TrainRow
from distill_dagster.student.validation import compute_validation_scores

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec
    from distill_dagster.student.train import Student

Batch = dict[str, Any]
"""Rows that are computed at once, from `student.collate`."""


class StepLoader(torch.utils.data.DataLoader[Any]):
    """Loads one optimizer step after another, in the order of a `LengthBatchSampler`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose steps come next. `transformers.Trainer` calls this."""
        assert isinstance(self.batch_sampler, LengthBatchSampler)
        self.batch_sampler.set_epoch(epoch)


class StudentTrainer(transformers.Trainer):
    """Trains the weights of `student.trained_module` that have `requires_grad`.

    One item of the data loader is one optimizer step: a list of micro batches. So a step is the same however it is cut
    into micro batches, and divided among ranks: its loss is the mean over its rows.
    """

    def __init__(
        self,
        student: Student,
        items: Sequence[Item],
        batches: LengthBatchSampler,
        micro_batches: MicroBatches,
        arguments: transformers.TrainingArguments,
        callbacks: list[transformers.TrainerCallback],
    ) -> None:
        """`micro_batches` says which rows are computed at once. It changes memory and speed, not the loss."""
        super().__init__(
            model=student.trained_module,
            args=arguments,
            train_dataset=items,
            callbacks=callbacks,
        )
        self.remove_callback(transformers.PrinterCallback)
        self.student, self.items, self.batches, self.micro_batches = student, items, batches, micro_batches
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._logged_step = 0
        if arguments.world_size > 1:
            # This class sums the gradients of ranks. DistributedDataParallel would do it too, in a copy of all of them.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def train(self, *args: Any, **named: Any) -> Any:
        """Train as `transformers.Trainer` does. All ranks start with the weights of the first one."""
        if self.args.world_size > 1:
            for weight in checkpoints.list_trained_weights(self.student.trained_module).values():
                torch.distributed.broadcast(weight.data, src=0)
        return super().train(*args, **named)

    def get_train_dataloader(self) -> Any:
        return StepLoader(self.items, batch_sampler=self.batches, collate_fn=self._cut_step)

    def _cut_step(self, items: list[Item]) -> list[Batch]:
        return [self.student.collate(part) for part in self.micro_batches.cut(items)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of `transformers.Trainer`, with a rate of its own for each layer if the spec has a decay."""
        spec = self.student.spec
        if getattr(self, "optimizer", None) is None and spec.layer_decay < 1:
            trained = [weight for weight in self.model.parameters() if weight.requires_grad]
            groups = build_layer_groups(self.student.base.model, trained, spec.learning_rate, spec.layer_decay)
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(groups, **settings)
        return super().create_optimizer(model)

    def training_step(self, model: Any, inputs: list[Batch], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of one optimizer step. Return its loss: the weighted mean over the rows of all ranks."""
        model.train()
        rows = self._sum_over_ranks(torch.tensor(float(sum(len(batch["weight"]) for batch in inputs))))
        total = torch.zeros((), device=self.args.device)
        for batch in inputs:
            batch = self._prepare_inputs(batch)
            parts = self.student.compute_loss(batch)
            weighted = {name: (part * batch["weight"]).sum() / rows for name, part in parts.items()}
            loss = torch.stack(list(weighted.values())).sum()
            self.accelerator.backward(loss)
            total += loss.detach()
            for name, value in weighted.items():
                self._loss_sums[name] = self._loss_sums.get(name, torch.zeros_like(total)) + value.detach()
        if not inputs:  # float16 learns the scale of its loss in a backward pass, also on a rank without rows
            self.accelerator.backward(torch.zeros((), device=self.args.device, requires_grad=True))
        self._sum_gradients_over_ranks()
        return total

    def _sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        value = value.to(self.args.device)
        return self.accelerator.reduce(value, "sum") if self.args.world_size > 1 else value

    def _sum_gradients_over_ranks(self) -> None:
        """Give every rank the gradients of the whole step. A weight that no row of a rank uses counts as 0 there."""
        if self.args.world_size == 1:
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures with the mean of every part of the loss since the last entry, as `loss_<part>`."""
        if "loss" in logs:
            sums, logged_step = self.collect_loss_sums()
            parts = {name: value / (self.state.global_step - logged_step) for name, value in sums.items()}
            logs["loss"] = sum(parts.values())
            logs |= {f"loss_{name}": value for name, value in parts.items()}
            self._loss_sums, self._logged_step = {}, self.state.global_step
        super().log(logs, start_time)

    def collect_loss_sums(self) -> tuple[dict[str, float], int]:
        """The sum over steps of each part of the loss, of all ranks, and the step after which they begin."""
        own = {name: float(value) for name, value in self._loss_sums.items()}
        sums: dict[str, float] = {}
        for of_rank in gather_object([own]) if self.args.world_size > 1 else [own]:
            for name, value in of_rank.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums, self._logged_step

    def restore_loss_sums(self, sums: dict[str, float], logged_step: int) -> None:
        """Go on from what `collect_loss_sums` returned."""
        own = sums if self.args.process_index == 0 else {}
        self._loss_sums = {name: torch.tensor(value, device=self.args.device) for name, value in own.items()}
        self._logged_step = logged_step

    def compute_validation_scores(self, rows: list[TrainRow]) -> dict[str, float]:
        """The student's mean scores on rows that it does not learn from. Ranks share the rows."""
        own = rows[self.args.process_index :: self.args.world_size]
        scores = compute_validation_scores(self.student, own) if own else {}
        if self.args.world_size == 1:
            return scores
        shares = gather_object([(len(own), scores)])
        return {name: round(sum(n * of[name] for n, of in shares if n) / len(rows), 6) for name in shares[0][1]}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights only: the base does not change."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            weights = checkpoints.list_trained_weights(self.student.trained_module)
            checkpoints.write_weights(folder / checkpoints.WEIGHTS_FILE, dict(weights))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = checkpoints.read_weights(Path(resume_from_checkpoint) / checkpoints.WEIGHTS_FILE)
        checkpoints.set_weights(self.student.trained_module, weights)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the estimate of transformers reads the inputs of one micro batch only."""
        return 0


def build_arguments(
    spec: StudentSpec, folder: Path, epochs: int, steps_per_epoch: int, run_name: str | None = None
) -> transformers.TrainingArguments:
    """The arguments of a `StudentTrainer`. Checkpoints are written to `folder`. `run_name` is for MLflow."""
    steps = epochs * steps_per_epoch
    arguments = transformers.TrainingArguments(
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
        run_name=run_name,
        fp16=spec.dtype == "float16",  # scales the loss (Micikevicius et al. 2018), so that small gradients are not 0
        use_cpu=loading.choose_device() == "cpu",
        seed=spec.seed,
    )
    return loading.use_one_gpu(arguments)
