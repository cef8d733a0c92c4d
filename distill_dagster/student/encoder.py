"""An encoder student: mean-pooled sentence embeddings (Reimers and Gurevych 2019) under a linear head.

The head of an untrained student is the embeddings of the label descriptions. So it is exactly the base, which predicts
the label with the nearest description. Training has two steps (LP-FT, Kumar et al. 2022): the head becomes the linear
probe of the frozen embeddings, then head and adapter are fine-tuned together.

Sentence encoders are trained with the mean of all tokens, so the head reads the mean and not the vector of the first
token. PEFT saves the encoder's adapter. The head is saved next to it in head.safetensors: `weight` (labels, dimensions)
and `bias` (labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models
from distill_dagster.student import loading, losses
from distill_dagster.student.frozen_layers import FrozenLayers, compute_frozen_layers
from distill_dagster.student.label_predictions import LabelPredictions
from distill_dagster.student.layer_matching import LayerMatcher, build_layer_matcher
from distill_dagster.student.linear_probe import (
    COSINE_TEMPERATURE,
    LinearHead,
    ProbeRows,
    build_probe_rows,
    fit_linear_probe,
    fit_start_head,
    format_descriptions,
    limit_rows,
)
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainedStudent, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec

HEAD_FILE = "head.safetensors"

MODEL_INPUTS = ("input_ids", "attention_mask", "states")
"""The parts of a batch that the encoder reads. `states` is missing if the frozen layers are computed."""


def mean_pool(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean of the last hidden states over real tokens: float32 (texts, dimensions), each row of length 1."""
    import torch

    hidden, mask = hidden.float(), attention_mask[..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class EncoderStudent(LabelPredictions):
    """An encoder, its tokenizer and the head over a task's labels."""

    def __init__(
        self,
        spec: StudentSpec,
        labels: list[LabelSpec],
        settings: TaskSettings,
        models_folder: Path,
        dtype: str | None = None,
    ) -> None:
        """Load the encoder in `dtype`, by default the spec's. The head starts as the label descriptions.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        import torch

        self.spec, self.settings = spec, settings
        self.labels = [label.name for label in labels]
        self.objective = spec.resolve_objective(True, settings.reasoning)
        self.soft_weight, self.temperature = losses.get_soft_settings(self.objective)
        self.base = loading.load_base(spec, models_folder, "AutoModel", dtype)
        self.tokenizer = self.base.tokenizer
        self.frozen: FrozenLayers | None = None
        self.matcher: LayerMatcher | None = None
        # Trainer needs one module with all trained weights.
        self.model = torch.nn.ModuleDict({"encoder": self.base.model})
        self._descriptions = format_descriptions(labels)
        self.start_head()

    def start_head(self) -> None:
        """Make the head the embeddings of the label descriptions, as the encoder computes them now."""
        import torch

        with torch.no_grad():
            embeddings = self.embed(self._descriptions)
            head = torch.nn.Linear(embeddings.shape[1], len(self.labels))
            head.weight.copy_(embeddings / COSINE_TEMPERATURE)
            head.bias.zero_()
        self.model["head"] = head.to(self.device)
        self.model.eval()

    def match_layers(self, models_folder: Path, assistant: TrainedStudent | None) -> None:
        """Load what an objective of matching layers imitates. Other objectives load nothing.

        Args:
            assistant: the student that teaches this one.

        Raises:
            DistillError: the layers cannot be matched.
            ModelError: the model cannot be found or loaded.
        """
        if self.objective.kind == "hidden_state" or self.objective.kind == "attention":
            self.matcher = build_layer_matcher(self.spec, self.objective, self.base, models_folder, assistant)

    def reuse_frozen_layers(self, sequences: list[list[int]]) -> None:
        """Run the layers below the trained weights once for these token sequences. Training reuses their outputs.

        Objectives of matching layers read the outputs of all layers, so nothing is reused.
        """
        if self.matcher is not None:
            return
        side = self.tokenizer.padding_side
        self.frozen = compute_frozen_layers(self.model["encoder"], sequences, self._pad, self._compute_hidden, side)

    def list_sequences(self, items: list[dict[str, Any]], validation: list[TrainRow]) -> list[list[int]]:
        """The token sequences that training and validation run through the model in every epoch."""
        return [item["ids"] for item in items] + self._tokenize([row.prompt.text for row in validation])

    @property
    def device(self) -> Any:
        return self.model["encoder"].device

    @property
    def trained_module(self) -> Any:
        """The torch module whose weights with `requires_grad` are trained and checkpointed."""
        import torch

        if self.matcher is None or not self.matcher.projection:
            return self.model
        return torch.nn.ModuleDict({"student": self.model, "projection": self.matcher.projection})

    def add_adapter(self) -> None:
        """Make all but the pooler trainable by the spec's method. Mean pooling does not use the pooler."""
        self.model["encoder"] = loading.make_trainable(
            self.model["encoder"], self.spec, "FEATURE_EXTRACTION", exclude=loading.POOLER
        )

    def fit_head(self, rows: list[TrainRow], validation: list[TrainRow]) -> float:
        """Make the head the linear probe of the embeddings as they are now. Return its penalty.

        The penalty is chosen on the validation rows or, without any, by cross-validation. The probe's loss is that of
        fine-tuning at temperature 1.
        """
        anchors = self.model["head"].weight.detach().cpu().numpy() * COSINE_TEMPERATURE
        fitted = self._embed_rows(limit_rows(rows))
        probe = fit_linear_probe(fitted, anchors, self._embed_rows(validation) if validation else None)
        self._set_head(probe)
        self._start = fit_start_head(fitted, anchors, probe)
        assert probe.penalty is not None
        return probe.penalty

    def start_fine_tuning(self) -> None:
        """Replace the linear probe by the head that fine-tuning starts from, which has a stronger penalty."""
        self._set_head(self._start)

    def _set_head(self, head: LinearHead) -> None:
        import torch

        with torch.no_grad():
            self.model["head"].weight.copy_(torch.from_numpy(head.weight))
            self.model["head"].bias.copy_(torch.from_numpy(head.bias))

    def _embed_rows(self, rows: list[TrainRow], batch_size: int = 64) -> ProbeRows:
        """The rows with their embeddings. Texts of similar length share a batch."""
        import numpy as np
        import torch

        vectors = np.zeros((len(rows), self.model["head"].in_features), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt.text))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                vectors[part] = self.embed([rows[i].prompt.text for i in part]).cpu().numpy()
        return build_probe_rows(rows, vectors, self.labels, self.soft_weight)

    def load_adapter(self, folder: Path, merge: bool) -> None:
        """Load the adapter and the head from a folder.

        Raises:
            ModelError: the folder has no adapter of this model.
        """
        from safetensors.torch import load_file

        self.model["encoder"] = loading.attach_adapter(self.model["encoder"], self.spec, folder, merge)
        with models.convert_load_errors(str(folder)):
            saved = load_file(folder / HEAD_FILE)
        head = self.model["head"]
        if saved["weight"].shape != head.weight.shape:
            raise models.ModelError(f"{folder} was trained for other labels. Train the student again.")
        head.load_state_dict(saved)
        self.model.eval()

    def to_dtype(self, dtype: Any) -> None:
        self.model["encoder"].to(dtype)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter and the head to a folder."""
        from safetensors.torch import save_file

        loading.save_trained(self.model["encoder"], self.spec, folder)
        head = {name: value.detach().cpu().contiguous() for name, value in self.model["head"].state_dict().items()}
        save_file(head, folder / HEAD_FILE)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # the tokenizer refuses an empty list: seed_only has no validation rows
            return []
        return list(self.tokenizer(texts, truncation=True, max_length=self.spec.max_tokens)["input_ids"])

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Build model inputs. `length` is in tokens."""
        texts = [row.prompt.text for row in rows]
        tokens, most = self._tokenize(texts), self.spec.max_tokens
        longer = self.tokenizer(texts, truncation=True, max_length=most + 1)["input_ids"]
        soft = losses.build_soft_targets(rows, self.labels, self.temperature)
        return [
            {
                "ids": ids,
                "length": len(ids),
                "label": self.labels.index(row.answer_label),
                "soft": target,
                "temperature": losses.get_row_temperature(row, self.temperature),
                "weight": row.weight,
                "prompt_cut": len(whole) > most,
            }
            for row, ids, whole, target in zip(rows, tokens, longer, soft, strict=True)
        ]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Build a padded batch."""
        import torch

        return self._build_inputs([item["ids"] for item in items]) | {
            "label": torch.tensor([item["label"] for item in items]),
            "soft": torch.stack([item["soft"] for item in items]),
            "temperature": torch.tensor([item["temperature"] for item in items]),
            "weight": torch.tensor([float(item["weight"]) for item in items]),
        }

    def _build_inputs(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        """Padded inputs of the model on the CPU, with the `states` of its frozen layers if they are known."""
        states = self.frozen.find_states(sequences) if self.frozen is not None else None
        return self._pad(sequences) | ({"states": states} if states is not None else {})

    def _pad(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad({"input_ids": [list(ids) for ids in sequences]}, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    def _compute_hidden(self, states: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Output of the encoder. With the `states` of the frozen layers, only the layers above compute."""
        encoder = self.model["encoder"]
        if states is None or self.frozen is None:
            return encoder(**inputs)
        with self.frozen.skip(states):
            return encoder(**inputs)

    def _compute_embeddings(self, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        return mean_pool(self._compute_hidden(**inputs).last_hidden_state, batch["attention_mask"])

    def compute_loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The parts of every row's loss, each of shape (rows,). Their sum is the row's loss, without the row's weight.

        `soft_label` is soft_weight * the soft loss, `answer` (1 - soft_weight) * the cross-entropy. `hidden_state` or
        `attention` is the loss of the objective of that name.
        """
        import torch

        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        with loading.compute_in_spec_dtype(self.spec):
            found = self._compute_hidden(**inputs, **(self.matcher.outputs if self.matcher is not None else {}))
        logits = self.model["head"](mean_pool(found.last_hidden_state, batch["attention_mask"]))
        weight, parts = self.soft_weight, {}
        if weight > 0:
            parts["soft_label"] = weight * losses.compute_soft_loss(logits, batch["soft"], batch["temperature"])
        if weight < 1:
            hard = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            parts["answer"] = (1 - weight) * hard
        if self.matcher is not None:
            parts[self.matcher.kind] = self.matcher.compute_loss(found, batch)
        return parts

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings of a batch of texts, shape (texts, dimensions), each of length 1."""
        built = self._build_inputs(self._tokenize(texts))
        return self._compute_embeddings({name: value.to(self.device) for name, value in built.items()})

    def count_prompt_tokens(self, asked: Sequence[StudentPrompt]) -> list[int]:
        """How many tokens of each prompt the encoder reads."""
        return [len(ids) for ids in self._tokenize([prompt.text for prompt in asked])]

    def compute_log_probs(self, asked: Sequence[StudentPrompt]) -> torch.Tensor:
        """Log-probabilities of the labels for a batch of prompts, shape (prompts, labels), on the CPU."""
        import torch

        with torch.inference_mode():
            return self.model["head"](self.embed([prompt.text for prompt in asked])).log_softmax(-1).cpu()
