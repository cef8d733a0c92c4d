"""The second task of the objective `multitask`: to write the teacher's reasoning, without the answer.

    Problem: Ana has 3 pens and buys 4. How many has she?
    Reasoning: She has 3 + 4 = 7 pens.<end of text>

Every row is learned twice with the same weights: behind the prompt that asks for the answer, and behind this one. The
loss of a row is loss(answer) + rationale_weight * loss(rationale), as in Hsieh et al. 2023, "Distilling
Step-by-Step!". Prediction asks for the answer only, so it costs what the objective `answer` costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.kinds.base import REASONING_MARK

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from distill_dagster.config.objective import MultitaskObjectiveSpec, Objective
    from distill_dagster.student.causal import CausalModel
    from distill_dagster.student.types import TrainRow

PREFIX = "rationale_"
"""Begins the names of what a batch holds for this task."""


class RationaleTask:
    """Encodes the teacher's reasoning as targets of a student, and computes their loss."""

    def __init__(self, student: CausalModel, objective: MultitaskObjectiveSpec) -> None:
        self.student, self.weight = student, objective.rationale_weight

    @classmethod
    def from_objective(cls, student: CausalModel, objective: Objective) -> RationaleTask | None:
        """The task, if a student's objective has it."""
        return cls(student, objective) if objective.kind == "multitask" else None

    def add_targets(self, items: list[dict[str, Any]], rows: list[TrainRow]) -> None:
        """Add the reasoning of each row to its item as `rationale`. A row without reasoning teaches the answer only."""
        for item, row in zip(items, rows, strict=True):
            if row.reasoning and (text := row.reasoning.strip()):
                item["rationale"] = self.student.encode_written(row.prompt, REASONING_MARK, text, has_answer=False)
                item["length"] += len(item["rationale"]["ids"])

    def list_sequences(self, items: list[dict[str, Any]]) -> list[list[int]]:
        """The token sequences that this task runs through the model in every epoch."""
        return [item["rationale"]["ids"] for item in items if "rationale" in item]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What a batch holds for this task; nothing if no row has reasoning. `rationale_rows` are their rows."""
        import torch

        rows = [row for row, item in enumerate(items) if "rationale" in item]
        if not rows:
            return {}
        batch = self.student.collate_written([items[row]["rationale"] for row in rows]) | {"rows": torch.tensor(rows)}
        return {PREFIX + name: value for name, value in batch.items()}

    def compute_loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The part `rationale` of every row's loss, shape (rows,); 0 for a row without reasoning."""
        import torch

        own = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
        total = torch.zeros(len(batch["weight"]), device=batch["weight"].device)
        if own:
            total = total.index_add(0, own["rows"], self.weight * self.student.compute_written_loss(own))
        return {"rationale": total}


def leave_out_long_reasoning(
    objective: Objective, tokenizer: PreTrainedTokenizerBase, rows: list[TrainRow], needs_rows: bool = True
) -> tuple[list[TrainRow], int]:
    """The rows without reasoning that is longer than `max_reasoning_tokens`, and how many rows had such.

    With the objective `reasoning` the whole row is left out, since a text that is cut teaches to stop in the middle.
    With `multitask` the row still teaches its answer.

    Args:
        needs_rows: whether it is an error if no row is left. A training without validation rows is none.

    Raises:
        DistillError: the reasoning of every row is longer.
    """
    most = getattr(objective, "max_reasoning_tokens", None)
    if most is None:
        return rows, 0
    lengths = [len(tokenizer(row.reasoning or "", add_special_tokens=False)["input_ids"]) for row in rows]
    if objective.kind == "multitask":
        kept = [
            replace(row, reasoning=None) if length > most else row for row, length in zip(rows, lengths, strict=True)
        ]
    else:
        kept = [row for row, length in zip(rows, lengths, strict=True) if length <= most]
    if needs_rows and rows and not kept:
        raise DistillError(
            f"The reasoning of every row is longer than {most} tokens; the shortest has {min(lengths)}. "
            f"Raise `objective.max_reasoning_tokens`."
        )
    return kept, sum(length > most for length in lengths)
