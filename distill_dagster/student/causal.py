"""Causal language models as students: their common base class, and the student that chooses a label."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.student import loading, losses, prompts
from distill_dagster.student.frozen_layers import FrozenLayers, compute_frozen_layers
from distill_dagster.student.label_predictions import LabelPredictions
from distill_dagster.student.label_trie import LabelTrie
from distill_dagster.student.rationales import RationaleTask
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec


MAX_EAGER_TOKENS = 512
"""The longest text for which plain attention is faster in training on a processor. Its memory grows with the square."""

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "states")
"""The parts of a batch that the model reads. `states` is missing if the frozen layers are computed."""


class CausalModel:
    """A base model with its tokenizer. Adapters may wrap `model` later."""

    def __init__(
        self, spec: StudentSpec, settings: TaskSettings, models_folder: Path, dtype: str | None = None
    ) -> None:
        """Load the base in `dtype`, by default the spec's.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        self.spec, self.settings = spec, settings
        self.base = loading.load_base(spec, models_folder, "AutoModelForCausalLM", dtype)
        self.model: Any = self.base.model
        self.tokenizer = self.base.tokenizer
        generation = getattr(self.model, "generation_config", None)
        self.renderer = prompts.make_renderer(spec, settings, self.tokenizer, generation)
        loading.remove_generation_settings(self.model)
        self.end = self.renderer.end
        self.frozen: FrozenLayers | None = None

    def add_adapter(self) -> None:
        """Make the model trainable by the spec's method: an untrained adapter, or all weights."""
        self.model = loading.make_trainable(self.model, self.spec, "CAUSAL_LM")

    def load_adapter(self, folder: Path, merge: bool) -> None:
        """Load the adapter from a folder.

        Raises:
            ModelError: the folder has no adapter of this model.
        """
        self.model = loading.attach_adapter(self.model, self.spec, folder, merge).eval()

    def to_dtype(self, dtype: Any) -> None:
        self.model.to(dtype)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter to a folder."""
        loading.save_trained(self.model, self.spec, folder)

    @property
    def device(self) -> Any:
        return self.model.device

    @property
    def trained_module(self) -> Any:
        """The torch module whose weights with `requires_grad` are trained and checkpointed."""
        return self.model

    def _build_inputs(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Padded inputs of the model on the CPU, with the `states` of its frozen layers if they are known."""
        states = self.frozen.find_states(sequences) if self.frozen is not None else None
        return self._pad(sequences) | ({"states": states} if states is not None else {})

    def _pad(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        import torch

        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.end)
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, width - len(sequence) :] = torch.tensor(sequence)
            mask[row, width - len(sequence) :] = 1
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    def encode_written(self, prompt: StudentPrompt, mark: str, text: str, has_answer: bool = True) -> dict[str, Any]:
        """Token ids of a prompt that asks with a mark and of the text that follows, and how many tokens to learn.

        A text longer than `answer_tokens` is cut. Then it has no end token to learn. `prompt_cut` and `target_cut` say
        what is cut, `no_target` that there is no text. `has_answer` is that of `PromptRenderer.encode_prompts`.
        """
        [start] = self.renderer.encode_prompts([prompt], f"\n{mark}", has_answer)
        target = self.renderer.encode_answer(text, f"\n{mark}") if text.strip() else []
        learned = [*target, self.end][: self.spec.answer_tokens]
        cut = {"prompt_cut": start.is_cut, "target_cut": len(learned) <= len(target), "no_target": not target}
        return {"ids": start.ids + learned, "target": len(learned), **cut}

    def collate_written(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Inputs of sequences that end with `target` tokens to learn, padded on the left, and `answers`.

        `answers` has these tokens in their columns.
        """
        import torch

        padded = self._build_inputs([item["ids"] for item in items])
        answers = torch.full(padded["input_ids"].shape, losses.IGNORE_INDEX)
        for row, item in enumerate(items):
            answers[row, -item["target"] :] = padded["input_ids"][row, -item["target"] :]
        return padded | {"answers": answers}

    def compute_target_logits(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits before every token to learn, (tokens, vocabulary), and the row of each of these tokens, (tokens,).

        Only for these tokens, since logits over the whole vocabulary are expensive.
        """
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        hidden = self._compute_hidden(**inputs, use_cache=False).last_hidden_state[:, :-1]
        is_target = batch["answers"][:, 1:] != losses.IGNORE_INDEX
        return self._compute_logits(hidden[is_target]), is_target.nonzero()[:, 0]

    def compute_written_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean negative log-likelihood of the tokens to learn of every row, shape (rows,)."""

        return self.compute_token_loss(*self.compute_target_logits(batch), batch)

    def compute_token_loss(self, logits: torch.Tensor, rows: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """As `compute_written_loss`, of what `compute_target_logits` returned."""
        import torch

        answers = batch["answers"][batch["answers"] != losses.IGNORE_INDEX]
        token_losses = torch.nn.functional.cross_entropy(logits, answers, reduction="none")
        return losses.average_by_row(token_losses, rows, len(batch["answers"]))

    def choose_attention(self, longest: int) -> None:
        """Train with plain attention on a processor if no text has more tokens than `MAX_EAGER_TOKENS`.

        There the backward pass of torch's fused attention takes longer, above all in bfloat16.
        """
        if self.device.type == "cpu" and longest <= MAX_EAGER_TOKENS:
            self.base.model.set_attn_implementation("eager")

    def reuse_frozen_layers(self, sequences: list[list[int]]) -> None:
        """Run the layers below the trained weights once for these token sequences. Training reuses their outputs."""
        forward = partial(self._compute_hidden, use_cache=False)
        self.frozen = compute_frozen_layers(self.model, sequences, self._pad, forward)

    def _compute_hidden(self, states: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Output of the model below the language head. Logits are expensive, so they are computed only where needed.

        With the `states` of the frozen layers for these inputs, only the layers above compute.
        """
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        with loading.compute_in_spec_dtype(self.spec):
            if states is None or self.frozen is None:
                return model.base_model(**inputs)
            with self.frozen.skip(states):
                return model.base_model(**inputs)

    def _compute_logits(self, hidden: torch.Tensor, tokens: tuple[int, ...] | None = None) -> torch.Tensor:
        """Logits of hidden states (positions, dimensions), for the whole vocabulary or for these tokens only."""
        import torch

        config, head = self.model.config, self.model.get_output_embeddings()
        if tokens is not None and type(head) is torch.nn.Linear and head.bias is None:
            logits = hidden.float() @ head.weight[list(tokens)].float().T
        else:
            logits = head(hidden.to(head.weight.dtype)).float()
            logits = logits if tokens is None else logits[:, list(tokens)]
        # Cohere, Granite and Gemma scale or cap the logits after their heads. Each step copies the whole vocabulary.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits if scale == 1 else logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


class CausalStudent(LabelPredictions, CausalModel):
    """A causal model that chooses one of the labels of a task."""

    def __init__(
        self,
        spec: StudentSpec,
        labels: list[LabelSpec],
        settings: TaskSettings,
        models_folder: Path,
        dtype: str | None = None,
    ) -> None:
        """As `CausalModel`."""
        super().__init__(spec, settings, models_folder, dtype)
        self.labels = [label.name for label in labels]
        self.objective = spec.resolve_objective(True, settings.reasoning)
        self.soft_weight, self.temperature = losses.get_soft_settings(self.objective)
        self.rationales = RationaleTask.from_objective(self, self.objective)
        self.trie = LabelTrie([self.renderer.encode_answer(label) for label in self.labels], self.end)

    def describe_prompt(self) -> dict[str, Any]:
        """How this student is asked, with a sample (`PromptRenderer.describe`)."""
        return self.renderer.describe(prompts.LABEL_CUE, self.labels[0])

    def encode(self, rows: list[TrainRow]) -> list[dict[str, Any]]:
        """Build model inputs: the prompt, then the row's label without the end token. `length` is in tokens."""
        starts = self.renderer.encode_prompts([row.prompt for row in rows])
        soft = losses.build_soft_targets(rows, self.labels, self.temperature)
        items = []
        for row, start, target in zip(rows, starts, soft, strict=True):
            label = self.labels.index(row.answer_label)
            ids = start.ids + list(self.trie.paths[label][:-1])
            item = {"ids": ids, "length": len(ids), "label": label, "soft": target, "weight": row.weight}
            item["temperature"] = losses.get_row_temperature(row, self.temperature)
            items.append(item | {"target": len(self.trie.paths[label]), "prompt_cut": start.is_cut})
        if self.rationales is not None:
            self.rationales.add_targets(items, rows)
        return items

    def list_sequences(self, items: list[dict[str, Any]], validation: list[TrainRow]) -> list[list[int]]:
        """The token sequences that training and validation run through the model in every epoch."""
        sequences = [item["ids"] for item in items]
        sequences += self.rationales.list_sequences(items) if self.rationales is not None else []
        if validation and self.trie.has_one_choice:  # otherwise validation needs the keys and values of all layers
            sequences += [one.ids for one in self.renderer.encode_prompts([row.prompt for row in validation])]
        return sequences

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Build a batch, padded on the left. Answers end in the last column, so logits are needed only there."""
        import torch

        paths = [self.trie.paths[item["label"]] for item in items]
        answers = torch.full((len(items), max(map(len, paths))), losses.IGNORE_INDEX)
        for row, path in enumerate(paths):
            answers[row, -len(path) :] = torch.tensor(path)
        return self._build_inputs([item["ids"] for item in items]) | {
            "answers": answers,
            "label": torch.tensor([item["label"] for item in items]),
            "soft": torch.stack([item["soft"] for item in items]),
            "temperature": torch.tensor([item["temperature"] for item in items]),
            "weight": torch.tensor([float(item["weight"]) for item in items]),
            **(self.rationales.collate(items) if self.rationales is not None else {}),
            **losses.collate_teacher(items),
        }

    def compute_loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The parts of every row's loss, each of shape (rows,). Their sum is the row's loss, without the row's weight.

        `answer` is (1 - weight) * the negative log-likelihood of the row's label over the whole vocabulary, where
        `weight` is that of the teacher's probabilities, of labels or of tokens.
        `label_tokens` is there if soft_weight is 1: see `_compute_label_token_loss`.
        `soft_label` is soft_weight * the soft loss at the branches on the path of that label. By the chain rule, the
        divergence of two distributions over labels is the sum of their divergences at all branches. Each is weighted by
        the teacher's probability of reaching the branch. Branches off the path are left out: they need more forward
        passes.
        """
        import torch

        answers = batch["answers"]
        logits = self._compute_column_logits(batch)
        hard = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), answers.flatten(), ignore_index=losses.IGNORE_INDEX, reduction="none"
        ).view(answers.shape)
        share = self.objective.weight if self.objective.kind == "token_kd" else self.soft_weight
        parts = {"answer": (1 - share) * hard.sum(1)} if share < 1 else {}
        if self.soft_weight > 0:
            parts["soft_label"] = self.soft_weight * self._compute_soft_loss(logits, batch)
        if self.soft_weight == 1:
            parts["label_tokens"] = self._compute_label_token_loss(logits, hard, batch)
        if self.objective.kind == "token_kd":
            is_answer = answers != losses.IGNORE_INDEX
            divergence = losses.compute_teacher_loss(self.objective, logits[is_answer], batch)
            total = torch.zeros(len(answers), device=divergence.device)
            parts["token_kd"] = total.index_add(0, is_answer.nonzero()[:, 0], divergence)
        return parts | (self.rationales.compute_loss(batch) if self.rationales is not None else {})

    def _compute_column_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        """Logits before every column of the answers, shape (rows, columns, vocabulary)."""
        shape = batch["answers"].shape
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        hidden = self._compute_hidden(**inputs, use_cache=False).last_hidden_state[:, -shape[1] :]
        return self._compute_logits(hidden.flatten(0, 1)).view(*shape, -1)

    def compute_answer_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        """Logits before every token of the answers, row after row: (tokens, vocabulary)."""
        return self._compute_column_logits(batch)[batch["answers"] != losses.IGNORE_INDEX]

    def _compute_soft_loss(self, logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        import torch

        total = torch.zeros(len(logits), device=logits.device)
        for index, rows, columns in self._find_branches(logits, batch):
            student_logits = logits[rows, columns][:, list(self.trie.branches[index].children)]
            child_probs = self.trie.sum_by_child(batch["soft"][rows], index)
            reach_prob = child_probs.sum(1)
            target = child_probs / reach_prob.clamp(min=1e-12)[:, None]
            loss = losses.compute_soft_loss(student_logits, target, batch["temperature"][rows])
            total = total.index_add(0, torch.tensor(rows, device=total.device), reach_prob * loss)
        return total

    def _find_branches(self, logits: torch.Tensor, batch: dict[str, Any]) -> Iterator[tuple[int, list[int], list[int]]]:
        """Each branch on the path of a row's label: its number, those rows, and the column before it of each row."""
        labels = batch["label"].tolist()
        for index, branch in enumerate(self.trie.branches):
            members = {label for group in branch.labels for label in group}
            rows = [row for row, label in enumerate(labels) if label in members]
            columns = [logits.shape[1] - len(self.trie.paths[labels[row]]) + len(branch.prefix) for row in rows]
            if rows:
                yield index, rows, columns

    def _compute_label_token_loss(
        self, logits: torch.Tensor, hard: torch.Tensor, batch: dict[str, Any]
    ) -> torch.Tensor:
        """Negative log-likelihood that each token on the path of a row's label is one of a label's, shape (rows,).

        The soft loss alone compares labels with each other. A program that lets the student write then need not get a
        label, nor an end.

        Args:
            hard: the negative log-likelihood of each token on the path, shape (rows, columns).
        """
        by_token = hard.clone()  # of a token that is no choice, such as the end, this is the likelihood of the only one
        for index, rows, columns in self._find_branches(logits, batch):
            found = logits[rows, columns]
            children = found[:, list(self.trie.branches[index].children)]
            by_token[rows, columns] = found.logsumexp(-1) - children.logsumexp(-1)
        return by_token.sum(1)

    def count_prompt_tokens(self, asked: Sequence[StudentPrompt]) -> list[int]:
        """How many tokens of each prompt the model reads."""
        return [len(one.ids) for one in self.renderer.encode_prompts(asked)]

    def compute_log_probs(self, asked: Sequence[StudentPrompt]) -> torch.Tensor:
        """Log-probabilities of the labels for a batch of prompts, shape (prompts, labels), on the CPU.

        This takes one forward pass over the prompts. Labels that share their first tokens take one more short pass for
        each shared prefix, on the cached keys and values of the prompts.
        """
        import torch

        sequences = [one.ids for one in self.renderer.encode_prompts(asked)]
        needs_cache = not self.trie.has_one_choice
        built = self._pad(sequences) if needs_cache else self._build_inputs(sequences)
        inputs = {name: value.to(self.device) for name, value in built.items()}
        states: dict[tuple[int, ...], torch.Tensor] = {}
        if len({len(s) for s in sequences}) == 1:  # without padding no mask is needed, and attention is faster
            inputs = {name: inputs[name] for name in ("input_ids", "states") if name in inputs}
        with torch.inference_mode():
            out = self._compute_hidden(**inputs, use_cache=needs_cache)
            states[()] = out.last_hidden_state[:, -1]
            if needs_cache:
                self._add_probed_states(inputs, out.past_key_values, states)
            logits = [self._compute_logits(states[branch.prefix], branch.children) for branch in self.trie.branches]
            return self.trie.compute_log_probs(logits).cpu()

    def _add_probed_states(
        self, inputs: dict[str, torch.Tensor], cache: Any, states: dict[tuple[int, ...], torch.Tensor]
    ) -> None:
        """Add the hidden state after every prefix of the probes. Every probe continues the prompts in the cache.

        A cache that can be cut is cut back after each probe. One with a running state (linear attention) is copied.
        """
        import torch

        is_cut = getattr(cache, "is_croppable", False)
        if is_cut:  # otherwise a layer with a sliding window forgets what a probe pushes out of it
            cache.activate_past_recording()
        rows, width = inputs["input_ids"].shape
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = torch.ones((rows, width), dtype=torch.long, device=self.device)
        for probe in self.trie.find_probes():
            ids = torch.tensor(probe, device=self.device).expand(rows, -1)
            out = self._compute_hidden(
                input_ids=ids,
                attention_mask=torch.cat([mask, torch.ones_like(ids)], dim=1),
                position_ids=mask.sum(1, keepdim=True) + torch.arange(len(probe), device=self.device),
                past_key_values=cache if is_cut else copy.deepcopy(cache),
                use_cache=True,
            )
            for end in range(1, len(probe) + 1):
                states.setdefault(probe[:end], out.last_hidden_state[:, end - 1])
            if is_cut:
                cache.crop(-len(probe))
