"""Match a student's layers with those of a deeper model: their hidden states, or their attention.

Jiao et al. 2020, "TinyBERT", match both in several layers, with a learned projection where the widths differ. Wang et
al. 2020, "MiniLM", match attention as the divergence of its distributions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.student import loading
from distill_dagster.student.memory import check_teacher_fits
from distill_dagster.student.shrinking import choose_layers

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import StudentSpec
    from distill_dagster.config.objective import AttentionObjectiveSpec, HiddenStateObjectiveSpec
    from distill_dagster.student.types import TrainedStudent


class LayerMatcher:
    """A frozen model whose layers a student imitates, and which of its layers each layer of the student does.

    `projection` maps the student's hidden states to the teacher's width and is trained with the student. Where the
    widths are equal there is none.
    """

    def __init__(
        self, objective: HiddenStateObjectiveSpec | AttentionObjectiveSpec, student: Any, teacher: Any
    ) -> None:
        """`student` and `teacher` are encoders that read the same tokens.

        Raises:
            DistillError: `layers` of the objective names a layer that is not there, the teacher is not deeper and
                `layers` is missing, or the number of attention heads differs.
        """
        import torch

        self.kind, self.weight = objective.kind, objective.match_weight
        configs = [model.config.get_text_config() for model in (student, teacher)]
        self.pairs = _pair_layers(objective.layers, *(config.num_hidden_layers for config in configs))
        self.teacher = teacher.eval().requires_grad_(False)
        widths = [config.hidden_size for config in configs]
        self.projection = torch.nn.ModuleDict()
        if self.kind == "attention":
            heads = [config.num_attention_heads for config in configs]
            if heads[0] != heads[1]:
                raise DistillError(
                    f"`objective: attention` needs equal numbers of attention heads. The student has {heads[0]}, its "
                    f"teacher {heads[1]}. Use `objective: hidden_state`."
                )
            for model in (student, teacher):
                model.set_attn_implementation("eager")  # the others do not return attention
            _remove_attention_dropout(student)  # attention is returned after dropout, which the teacher does not have
        elif widths[0] != widths[1]:
            layers = {str(layer): torch.nn.Linear(widths[0], widths[1]) for layer in self.pairs}
            self.projection = torch.nn.ModuleDict(layers).to(teacher.device)

    @property
    def outputs(self) -> dict[str, bool]:
        """What a forward pass of the student must return, as arguments of it."""
        return {"output_attentions": True} if self.kind == "attention" else {"output_hidden_states": True}

    def compute_loss(self, found: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of every row, shape (rows,): the weighted mean over pairs of layers and over real tokens.

        Args:
            found: output of the student's forward pass with `outputs`.
            inputs: `input_ids` and `attention_mask` of the batch.
        """
        import torch

        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            wanted = self.teacher(input_ids=ids, attention_mask=mask, **self.outputs)
        compare = self._compare_attention if self.kind == "attention" else self._compare_hidden
        by_token = torch.stack([compare(found, wanted, *pair) for pair in self.pairs.items()]).mean(0)
        return self.weight * (by_token * mask).sum(1) / mask.sum(1)

    def _compare_hidden(self, found: Any, wanted: Any, layer: int, teacher_layer: int) -> torch.Tensor:
        """Mean squared difference of normalized hidden states, shape (rows, tokens).

        Each is scaled to mean 0 and variance 1, so that no layer and no outlying dimension counts more than others.
        """
        import torch

        state, target = found.hidden_states[layer].float(), wanted.hidden_states[teacher_layer].float()
        if str(layer) in self.projection:
            state = self.projection[str(layer)](state)
        norm = torch.nn.functional.layer_norm
        return (norm(state, state.shape[-1:]) - norm(target, target.shape[-1:])).square().mean(-1)

    def _compare_attention(self, found: Any, wanted: Any, layer: int, teacher_layer: int) -> torch.Tensor:
        """Divergence of the student's attention from the teacher's, the mean over heads, shape (rows, tokens)."""
        q = found.attentions[layer - 1].float().clamp(min=1e-9)
        p = wanted.attentions[teacher_layer - 1].float().clamp(min=1e-9)
        divergence: torch.Tensor = (p * (p.log() - q.log())).sum(-1)
        return divergence.mean(1)


def _remove_attention_dropout(model: Any) -> None:
    import torch

    for module in model.modules():
        name = type(module).__name__
        if "SelfAttention" in name and isinstance(getattr(module, "dropout", None), torch.nn.Dropout):
            module.dropout.p = 0.0
        if "Attention" in name and isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def build_layer_matcher(
    spec: StudentSpec,
    objective: HiddenStateObjectiveSpec | AttentionObjectiveSpec,
    student: loading.LoadedBase,
    models_folder: Path,
    assistant: TrainedStudent | None,
) -> LayerMatcher:
    """Load the model whose layers are imitated: the assistant that teaches, else the student's base in full depth.

    Args:
        assistant: the student that teaches this one.

    Raises:
        DistillError: the two read different tokens, their layers cannot be matched, or both do not fit in memory.
        ModelError: the model cannot be found or loaded.
    """
    import torch

    deep, folder = assistant or (spec.model_copy(update={"shrink": None}), None)
    found = deep if folder is None else loading.find_trained_base(deep, folder)
    check_teacher_fits(found, models_folder)
    base = loading.load_base(found, models_folder, "AutoModel")
    if base.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise DistillError(
            f"`objective: {objective.kind}` compares tokens, and {deep.model} has other tokens than {spec.model}. Use "
            f"`objective: soft_label`."
        )
    teacher = base.model
    if folder is not None:
        teacher = loading.attach_adapter(teacher, deep, folder, merge=deep.quantization == "none")
    torch.manual_seed(spec.seed)  # of the projection's first weights
    return LayerMatcher(objective, student.model, teacher)


def _pair_layers(given: dict[int, int] | None, student: int, teacher: int) -> dict[int, int]:
    """The teacher's layer for each layer of the student, both counted from 1 at the input.

    By default those that `shrink` keeps.
    """
    if given is None:
        if student > teacher:
            raise DistillError(
                f"The student has {student} layers and its teacher {teacher}: set `objective.layers`, for example "
                f"{{{student}: {teacher}}}."
            )
        return {layer: chosen + 1 for layer, chosen in enumerate(choose_layers(teacher, student), 1)}
    for layer, of_teacher in given.items():
        if layer > student or of_teacher > teacher:
            raise DistillError(
                f"`objective.layers` has {layer}: {of_teacher}, but the student has {student} layers and its teacher "
                f"{teacher}. Layers are counted from 1."
            )
    return given
