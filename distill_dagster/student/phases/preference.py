"""Direct preference optimization of a trained student (Rafailov et al. 2023), with TRL's DPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill_dagster.student import loading
from distill_dagster.student.phases.encoding import encode_row
from distill_dagster.student.phases.trl_trainer import PhaseRun, train_phase
from distill_dagster.student.types import PreferencePair

if TYPE_CHECKING:
    from distill_dagster.config.phases import PreferencePhaseSpec
    from distill_dagster.student.causal import CausalModel

METRICS = ("rewards/accuracies", "rewards/margins")
LOSS_PARTS = {"sigmoid": "loss_preference", "sft": "loss_answer"}
"""The parts of the loss, as TRL names them, and the names in the log."""


def train_on_pairs(
    student: CausalModel,
    phase: PreferencePhaseSpec,
    pairs: Sequence[PreferencePair],
    run: PhaseRun,
) -> None:
    """Make the kept answers of pairs more likely than the rejected ones.

    The reference is the student as it is before this phase: TRL copies its adapter, or computes the reference's
    log-probabilities first if all weights are trained. A pair is left out and counted if its two answers follow
    different prompts, are the same tokens, or are longer than `answer_tokens`.
    """
    selected = select_pairs(pairs, phase.pairs_per_prompt)
    rows = encode_pairs(student, selected)
    run.log.rows, run.log.left_out = len(rows), len(selected) - len(rows)
    terms = {"sigmoid": 1.0, "sft": phase.sft_weight} if phase.sft_weight else {"sigmoid": 1.0}
    names = [LOSS_PARTS[term] for term in terms] if len(terms) > 1 else []
    run.log.metrics = {name: [] for name in (*METRICS, *names)}
    if not rows:
        return

    def build_trainer(settings: dict[str, Any], dataset: Any) -> Any:
        import torch
        from trl import DPOConfig, DPOTrainer

        class _Trainer(DPOTrainer):
            def __init__(self, *args: Any, **more: Any) -> None:
                super().__init__(*args, **more)
                if names:
                    # TRL logs the weighted sum only. Its derivative by a weight is the part, so the backward pass gives
                    # the parts too.
                    self.loss_weights = [
                        torch.tensor(weight, requires_grad=True, device=self.accelerator.device)
                        for weight in terms.values()
                    ]

            def log(self, logs: dict[str, float], *args: Any) -> None:
                if names and "loss" in logs:
                    logs |= dict(zip(names, split_loss(logs["loss"], self.loss_weights), strict=True))
                super().log(logs, *args)

            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset  # it has token ids

        arguments = DPOConfig(
            **settings,
            beta=phase.beta,
            loss_type=list(terms),
            loss_weights=list(terms.values()),
            max_length=None,  # the student cut the prompts
            precompute_ref_log_probs=not hasattr(student.model, "peft_config"),
        )
        return _Trainer(
            model=student.model,
            args=loading.use_one_gpu(arguments),
            train_dataset=dataset,
            processing_class=student.tokenizer,
        )

    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    answers_at_once = run.micro_batches.count_rows(longest, 2 * min(phase.batch_size, student.spec.batch_size))
    train_phase(student, phase, rows, build_trainer, run, answers_at_once // 2)


def split_loss(loss: float, weights: Sequence[Any]) -> list[float]:
    """The parts of a mean loss, weighted, which add up to it. The gradients of the weights are reset.

    Args:
        weights: scalar tensors. The gradient of each is the sum of its part over the steps of the mean. A scaled loss
            scales all of them alike.
    """
    sums = [float(weight.detach() * weight.grad) for weight in weights]
    for weight in weights:
        weight.grad = None
    total = sum(sums) or 1.0  # both parts of a student that is sure of all pairs are 0
    return [loss * part / total for part in sums]


def select_pairs(pairs: Sequence[PreferencePair], per_prompt: int) -> list[PreferencePair]:
    """The first `per_prompt` pairs of every prompt, in order."""
    counts: dict[str, int] = {}
    selected = []
    for pair in pairs:
        counts[pair.kept.prompt_id] = counts.get(pair.kept.prompt_id, 0) + 1
        if counts[pair.kept.prompt_id] <= per_prompt:
            selected.append(pair)
    return selected


def encode_pairs(student: CausalModel, pairs: Sequence[PreferencePair]) -> list[dict[str, list[int]]]:
    """Token ids of prompt, kept and rejected answer of every pair that can be learned from."""
    rows = []
    for pair in pairs:
        prompt, kept = encode_row(student, pair.kept)
        other, rejected = encode_row(student, pair.rejected)
        if prompt == other and kept and rejected and kept != rejected:
            rows.append({"prompt_ids": prompt, "chosen_ids": kept, "rejected_ids": rejected})
    return rows
