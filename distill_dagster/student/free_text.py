"""A causal language model that writes its answer as free text, and its reasoning first if the task has reasoning.

    Problem: Ana has 3 pens and buys 4. How many has she?
    Reasoning: She has 3 + 4 = 7 pens.
    Answer: 7<end of text>

The prompt includes the first mark ("Reasoning:" or "Answer:"), so the untrained base gets the same prompt. Only the
tokens after the prompt count for the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.student import losses, prompts
from distill_dagster.student.causal import MODEL_INPUTS, CausalModel
from distill_dagster.student.types import Prediction, StudentPrompt, TaskSettings, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec


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
        self.writes_reasoning = spec.resolve_objective(bool(labels), settings.reasoning).kind == "reasoning"

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Build model inputs: the prompt and then `target` tokens to learn. `length` is in tokens.

        A target longer than `answer_tokens` is cut. Then it has no end token to learn.
        """
        items = []
        for row in rows:
            text = row.target or row.answer_label
            mark = REASONING_MARK if text.startswith(REASONING_MARK) else ANSWER_MARK
            [start] = self._encode_prompts([row.prompt], mark)
            target = prompts.encode_answer(self.tokenizer, text.removeprefix(mark).strip(), f"\n{mark}")
            target = [*target, self.end][: self.spec.answer_tokens]
            ids = start + target
            items.append({"ids": ids, "length": len(ids), "target": len(target), "weight": row.weight})
        return items

    def _encode_prompts(self, asked: Sequence[StudentPrompt], mark: str) -> list[list[int]]:
        return prompts.encode_prompts(self.tokenizer, asked, self.settings, self.spec.max_tokens, f"\n{mark}")

    def list_sequences(self, items: list[dict[str, Any]], validation: list[TrainRow]) -> list[list[int]]:
        """The token sequences that training and validation run through the model in every epoch."""
        return [item["ids"] for item in [*items, *self.encode(validation)]]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Build a batch, padded on the left. `answers` has the target tokens in their columns."""
        import torch

        padded = self._build_inputs([item["ids"] for item in items])
        answers = torch.full(padded["input_ids"].shape, losses.IGNORE_INDEX)
        for row, item in enumerate(items):
            answers[row, -item["target"] :] = padded["input_ids"][row, -item["target"] :]
        return padded | {"answers": answers, "weight": torch.tensor([float(item["weight"]) for item in items])}

    def compute_loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The parts of every row's loss, each of shape (rows,), without the row's weight.

        `answer` is the mean negative log-likelihood of the row's target tokens.
        """
        import torch

        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        hidden = self._compute_hidden(**inputs, use_cache=False).last_hidden_state[:, :-1]
        answers = batch["answers"][:, 1:]
        is_target = answers != losses.IGNORE_INDEX
        # Only for target tokens, since logits over the whole vocabulary are expensive.
        logits = self._compute_logits(hidden[is_target])
        token_losses = torch.nn.functional.cross_entropy(logits, answers[is_target], reduction="none")
        rows = is_target.nonzero()[:, 0]
        total = torch.zeros(len(answers), device=token_losses.device, dtype=token_losses.dtype)
        return {"answer": total.index_add(0, rows, token_losses) / is_target.sum(1)}

    def compute_validation_scores(self, rows: list[TrainRow], batch_size: int = 16) -> dict[str, float]:
        """Mean negative log-likelihood of the targets, averaged over tokens and then over rows."""
        import torch

        items = sorted(self.encode(rows), key=lambda item: item["length"])
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                batch = self.collate(items[start : start + batch_size])
                parts = self.compute_loss({name: value.to(self.device) for name, value in batch.items()})
                total += float(losses.sum_parts(parts).sum())
        return {"loss": round(total / len(rows), 6)}

    def predict_batch(self, asked: Sequence[StudentPrompt]) -> list[Prediction]:
        """Return one prediction per prompt, in order. The raw text begins with the mark at the end of the prompt."""
        return [Prediction(text, {}, text) for text in self._generate(asked)]

    def get_saved_settings(self) -> dict[str, Any]:
        """Settings that labels.json keeps for this architecture only."""
        return {"reasoning": self.writes_reasoning}

    def _generate(self, asked: Sequence[StudentPrompt]) -> list[str]:
        import torch

        mark = REASONING_MARK if self.writes_reasoning else ANSWER_MARK
        padded = self._pad(self._encode_prompts(asked, mark))
        width = padded["input_ids"].shape[1]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=padded["input_ids"].to(self.device),
                attention_mask=padded["attention_mask"].to(self.device),
                max_new_tokens=self.spec.answer_tokens,
                do_sample=False,  # greedy
                pad_token_id=self.end,
                eos_token_id=self.end,
            )
        return [
            f"{mark} {text.strip()}" for text in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        ]
