"""On-policy distillation of a trained student (GKD, Agarwal et al. 2024), with TRL's DistillationTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.student import loading
from distill_dagster.student.phases.encoding import encode_row
from distill_dagster.student.phases.trl_trainer import train_phase
from distill_dagster.student.types import PhaseLog, TrainRow

if TYPE_CHECKING:
    from distill_dagster.config.phases import OnPolicyPhaseSpec
    from distill_dagster.student.causal import CausalModel

BETAS = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}
"""The interpolation between the two divergences of Agarwal et al. (2024), equation 1."""


def train_on_own_samples(
    student: CausalModel,
    phase: OnPolicyPhaseSpec,
    rows: list[TrainRow],
    models_folder: Path,
    log: PhaseLog,
    what: str,
) -> None:
    """Let the student answer the prompts of its training rows, and learn the teacher's probabilities along its answers.

    Raises:
        DistillError: the teacher has another vocabulary.
        ModelError: the teacher cannot be found or loaded.
    """
    teacher = load_teacher(student, phase, models_folder)
    prompts = sorted({tuple(encode_row(student, row)[0]) for row in rows})
    log.rows, ends = len(prompts), student.renderer.stops
    log.metrics = {"completions/mean_length": [], "completions/clipped_ratio": []}

    def build_trainer(settings: dict[str, Any], dataset: Any) -> Any:
        from trl import DistillationConfig, DistillationTrainer

        class _Trainer(DistillationTrainer):
            def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
                return prompts, None, {}  # they are token ids

        arguments = DistillationConfig(
            **settings,
            beta=BETAS[phase.divergence],
            temperature=phase.temperature,
            max_completion_length=phase.max_tokens,
            generation_kwargs={"eos_token_id": ends},
        )
        trainer = _Trainer(
            model=student.model,
            teacher_model=teacher,
            args=loading.use_one_gpu(arguments),
            train_dataset=dataset,
            processing_class=student.tokenizer,
        )
        trainer.eos_token_ids = ends
        return trainer

    train_phase(student, phase, [{"prompt": list(ids)} for ids in prompts], build_trainer, log, what)


def load_teacher(student: CausalModel, phase: OnPolicyPhaseSpec, models_folder: Path) -> Any:
    """Load the teacher of an on-policy phase in evaluation mode, in the number format that this machine computes in.

    Raises:
        DistillError: it has another vocabulary than the student.
        ModelError: it cannot be found or loaded.
    """
    import transformers

    resolved = models.resolve_model(phase.teacher, models_folder, phase.revision)
    tokenizer = models.load_pretrained(transformers.AutoTokenizer, phase.teacher, resolved)
    if tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise DistillError(
            f"`then`: the teacher {phase.teacher} has another vocabulary than {student.spec.model}, so their "
            f"probabilities cannot be compared. Use a teacher of the same family, or leave on_policy out."
        )
    dtype = loading.get_torch_dtype("auto")
    teacher = models.load_pretrained(transformers.AutoModelForCausalLM, phase.teacher, resolved, dtype=dtype)
    return teacher.to(loading.choose_device()).eval().requires_grad_(False)
