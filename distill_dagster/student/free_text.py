"""A causal language model that writes an answer, with its reasoning before it where the task wants that.

    Problem: Ana has 3 pens and buys 4. How many has she?
    Reasoning: She has 3 + 4 = 7 pens.
    Answer: 7<end of text>

The prompt ends behind the first mark ("Reasoning:", or "Answer:"), so that the untrained base is asked the same. Loss
is on what follows it alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.student import prompts
from distill_dagster.student.causal import CausalModel
from distill_dagster.student.types import TaskSettings, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec

_IGNORE_INDEX = -100


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
        """As `CausalModel`; labels, where the task has any, are words like others."""
        super().__init__(spec, settings, models_folder, dtype)
        self.labels = []

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Model inputs with `length` in tokens: prompt and target, of which `target` tokens are learned.

        A target longer than `answer_tokens` is cut, and then does not teach where to end.
        """
        items = []
        for row in rows:
            words = row.target or row.answer_label
            mark = REASONING_MARK if words.startswith(REASONING_MARK) else ANSWER_MARK
            [start] = self._starts([row.text], mark)
            target = prompts.encode_answer(self.tokenizer, words.removeprefix(mark).strip(), f"\n{mark}")
            target = [*target, self.end][: self.spec.answer_tokens]
            ids = start + target
            items.append({"ids": ids, "length": len(ids), "target": len(target), "weight": row.weight})
        return items

    def _starts(self, texts: list[str], mark: str) -> list[list[int]]:
        return prompts.encode_prompts(self.tokenizer, texts, self.settings, self.spec.max_tokens, f"\n{mark}")

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch, padded on the left; `answers` holds the target tokens in their columns."""
        import torch

        padded = self._padded([item["ids"] for item in items])
        answers = torch.full(padded["input_ids"].shape, _IGNORE_INDEX)
        for row, item in enumerate(items):
            answers[row, -item["target"] :] = padded["input_ids"][row, -item["target"] :]
        return padded | {"answers": answers, "weight": torch.tensor([float(item["weight"]) for item in items])}

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean negative log-likelihood of every row's target tokens, shape (rows,), without its weight."""
        import torch

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        hidden = self._hidden(**inputs, use_cache=False).last_hidden_state[:, :-1]
        answers = batch["answers"][:, 1:]
        learned = answers != _IGNORE_INDEX
        logits = self._logits(hidden[learned])  # of the target's places alone: the whole vocabulary costs much
        each = torch.nn.functional.cross_entropy(logits, answers[learned], reduction="none")
        rows = learned.nonzero()[:, 0]
        total = torch.zeros(len(answers), device=each.device, dtype=each.dtype).index_add(0, rows, each)
        return total / learned.sum(1)

    def validate(self, rows: list[TrainRow], batch_size: int = 16) -> dict[str, float]:
        """Mean negative log-likelihood of the targets, per token and then per row."""
        import torch

        items = sorted(self.encode(rows), key=lambda item: item["length"])
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                batch = self.collate(items[start : start + batch_size])
                total += float(self.loss({name: value.to(self.device) for name, value in batch.items()}).sum())
        return {"loss": round(total / len(rows), 6)}

    def write(self, texts: list[str]) -> list[str]:
        """What the model writes for a batch of texts, with the mark that the prompt ended with; greedy."""
        import torch

        mark = REASONING_MARK if self.settings.reasoning else ANSWER_MARK
        padded = self._padded(self._starts(texts, mark))
        width = padded["input_ids"].shape[1]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=padded["input_ids"].to(self.device),
                attention_mask=padded["attention_mask"].to(self.device),
                max_new_tokens=self.spec.answer_tokens,
                do_sample=False,
                pad_token_id=self.end,
                eos_token_id=self.end,
            )
        return [
            f"{mark} {text.strip()}" for text in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        ]
