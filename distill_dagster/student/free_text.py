"""A causal language model that writes its answer as free text, and its reasoning first if the task has reasoning.

    Problem: Ana has 3 pens and buys 4. How many has she?
    Reasoning: She has 3 + 4 = 7 pens.
    Answer: 7<end of text>

A plain prompt includes the first mark ("Reasoning:" or "Answer:"), so the untrained base gets the same prompt. In a
chat the student writes "Reasoning:" itself, and an answer without reasoning has no mark. Only the tokens after the
prompt count for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config.objective import writes_reasoning
from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.student import losses
from distill_dagster.student.causal import CausalModel
from distill_dagster.student.greedy import write_greedily
from distill_dagster.student.prompts import ANSWER_CUE, REASONING_CUE
from distill_dagster.student.rationales import RationaleTask
from distill_dagster.student.types import Prediction, StudentPrompt, TaskSettings, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec


@dataclass(frozen=True)
class WrittenAnswer:
    """What a student wrote, in how many tokens with the end token, and whether it was cut before its end."""

    text: str
    tokens: int
    is_cut: bool


class FreeTextStudent(CausalModel):
    """A causal model that writes answers."""

    labels: list[str]

    def __init__(
        self,
        spec: StudentSpec,
        labels: list[LabelSpec],
        settings: TaskSettings,
        models_folder: Path,
        dtype: str | None = None,
    ) -> None:
        """As `CausalModel`. Labels, if the task has any, are written like any other text."""
        super().__init__(spec, settings, models_folder, dtype)
        self.labels = []
        self.objective = spec.resolve_objective(bool(labels), settings.reasoning)
        self.writes_reasoning = writes_reasoning(self.objective, bool(labels), settings.reasoning)
        self.rationales = RationaleTask.from_objective(self, self.objective)

    def describe_prompt(self) -> dict[str, Any]:
        """How this student is asked, with a sample (`PromptRenderer.describe`)."""
        return self.renderer.describe(self.cue, "An answer.")

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Build model inputs: the prompt and then `target` tokens to learn. `length` is in tokens."""
        items = self._encode_answers(rows)
        if self.rationales is not None:
            self.rationales.add_targets(items, rows)
        return items

    def _encode_answers(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        items = []
        for row in rows:
            text = row.target or row.answer_label
            mark = REASONING_MARK if text.startswith(REASONING_MARK) else ANSWER_MARK
            item = self.encode_written(row.prompt, mark, text.removeprefix(mark).strip())
            items.append(item | {"length": len(item["ids"]), "weight": row.weight})
        return items

    def list_sequences(self, items: list[dict[str, Any]], validation: list[TrainRow]) -> list[list[int]]:
        """The token sequences that training and validation run through the model in every epoch."""
        sequences = [item["ids"] for item in [*items, *self._encode_answers(validation)]]
        return sequences + (self.rationales.list_sequences(items) if self.rationales is not None else [])

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Build a batch, padded on the left. `answers` has the target tokens in their columns."""
        import torch

        weights = torch.tensor([float(item["weight"]) for item in items])
        rationales = self.rationales.collate(items) if self.rationales is not None else {}
        return self.collate_written(items) | {"weight": weights} | rationales | losses.collate_teacher(items)

    def compute_answer_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        """Logits before every token of the answers, row after row: (tokens, vocabulary)."""
        return self.compute_target_logits(batch)[0]

    def compute_loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The parts of every row's loss, each of shape (rows,), without the row's weight.

        `answer` is the mean negative log-likelihood of the row's target tokens, and `rationale` that of its reasoning.
        """
        logits, rows = self.compute_target_logits(batch)
        parts = {"answer": self.compute_token_loss(logits, rows, batch)}
        if self.objective.kind == "token_kd" and "teacher_tokens" in batch:
            divergence = losses.compute_teacher_loss(self.objective, logits, batch)
            parts["answer"] = (1 - self.objective.weight) * parts["answer"]
            parts["token_kd"] = losses.average_by_row(divergence, rows, len(batch["answers"]))
        return parts | (self.rationales.compute_loss(batch) if self.rationales is not None else {})

    def compute_validation_scores(self, rows: list[TrainRow], batch_size: int = 16) -> dict[str, float]:
        """Mean negative log-likelihood of the targets, averaged over tokens and then over rows."""
        import torch

        items = sorted(self._encode_answers(rows), key=lambda item: item["length"])
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                batch = self.collate(items[start : start + batch_size])
                batch = {name: value.to(self.device) for name, value in batch.items()}
                total += float(self.compute_written_loss(batch).sum())
        return {"loss": round(total / len(rows), 6)}

    def predict_batch(self, asked: Sequence[StudentPrompt]) -> list[Prediction]:
        """Return one prediction per prompt, in order. With plain prompts the raw text begins with the prompt's mark."""
        return [Prediction(answer.text, {}, answer.text, answer.is_cut) for answer in self.write_answers(asked)]

    def get_saved_settings(self) -> dict[str, Any]:
        """Settings that labels.json keeps for this architecture only."""
        return {"reasoning": self.writes_reasoning}

    @property
    def cue(self) -> str:
        """The end of a plain prompt, which says what is asked for."""
        return REASONING_CUE if self.writes_reasoning else ANSWER_CUE

    def write_answers(
        self, asked: Sequence[StudentPrompt], listen: Callable[[str], bool] | None = None
    ) -> list[WrittenAnswer]:
        """Write an answer to every prompt, in order, with the most probable token at each step.

        Args:
            listen: is called with the first answer's text so far after each step, and ends the writing by returning
                False.
        """
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        padded = self._pad([one.ids for one in self.renderer.encode_prompts(asked, self.cue)])
        width = padded["input_ids"].shape[1]
        decode = partial(self.renderer.decode_answer, cue=self.cue)

        class _Listener(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                ended = listen is not None and not listen(decode(input_ids[0, width:].tolist()))
                return torch.full((len(input_ids),), ended, device=input_ids.device)

        inputs = {name: padded[name].to(self.device) for name in ("input_ids", "attention_mask")}
        criteria = StoppingCriteriaList([_Listener()]) if listen is not None else None
        with torch.inference_mode():
            written = write_greedily(
                self.model, inputs, self.spec.answer_tokens, self.renderer.stops, self.end, criteria
            )
        return [WrittenAnswer(decode(ids), len(ids), not self._has_ended(ids)) for ids in written]

    def _has_ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.renderer.stops

    def count_prompt_tokens(self, asked: Sequence[StudentPrompt]) -> list[int]:
        """How many tokens of each prompt the model reads."""
        return [len(one.ids) for one in self.renderer.encode_prompts(asked, self.cue)]
