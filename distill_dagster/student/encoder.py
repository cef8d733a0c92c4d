"""An encoder: with a classification head as a student, by its embeddings as a base and a cheap baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.student import loading, losses
from distill_dagster.student.types import TaskSettings, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.spec import StudentSpec


class EncoderStudent:
    """An encoder with a classification head; `model` may be wrapped in adapters later."""

    task_type = "SEQ_CLS"

    def __init__(self, spec: StudentSpec, labels: list[str], settings: TaskSettings, models_folder: Path,
                 dtype: str | None = None) -> None:
        """Load the encoder in `dtype`, by default that of the spec, and put a new head on it.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        self.spec, self.labels, self.settings = spec, labels, settings
        auto_class = "AutoModelForSequenceClassification"
        self.base = loading.load_base(spec, models_folder, auto_class, dtype, num_labels=len(labels))
        self.model: Any = self.base.model
        self.tokenizer = self.base.tokenizer

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, truncation=True, max_length=self.spec.max_tokens)["input_ids"])

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Model inputs with `length` in tokens."""
        tokens = self._tokens([row.text for row in rows])
        soft = losses.soft_targets(rows, self.labels, self.spec.temperature)
        return [
            {"ids": ids, "length": len(ids), "label": self.labels.index(row.answer_label), "soft": target,
             "weight": row.weight}
            for row, ids, target in zip(rows, tokens, soft, strict=True)
        ]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return self._padded([item["ids"] for item in items]) | {
            "label": torch.tensor([item["label"] for item in items]),
            "soft": torch.stack([item["soft"] for item in items]),
            "weight": torch.tensor([float(item["weight"]) for item in items]),
        }

    def _padded(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    def loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """soft_weight * soft loss + (1 - soft_weight) * cross-entropy of every row, shape (rows,), without weight."""
        import torch

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits.float()
        share = self.spec.soft_weight
        soft = losses.soft_loss(logits, batch["soft"], self.spec.temperature)
        return share * soft + (1 - share) * torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")

    def log_probs(self, model: Any, texts: list[str]) -> torch.Tensor:
        """Log-probabilities of the labels for a batch of texts, shape (texts, labels), on the CPU."""
        import torch

        inputs = {name: value.to(model.device) for name, value in self._padded(self._tokens(texts)).items()}
        with torch.inference_mode():
            return model(**inputs).logits.float().log_softmax(-1).cpu()
