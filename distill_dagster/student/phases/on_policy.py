"""On-policy distillation of a trained student (GKD, Agarwal et al. 2024), with TRL's DistillationTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config import StudentSpec
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.student import loading
from distill_dagster.student.memory import check_teacher_fits
from distill_dagster.student.phases.encoding import encode_row
from distill_dagster.student.phases.trl_trainer import PhaseRun, train_phase
from distill_dagster.student.types import TrainRow

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
    run: PhaseRun,
) -> None:
    """Let the student answer the prompts of its training rows, and learn the teacher's probabilities along its answers.

    Raises:
        DistillError: the teacher has another vocabulary.
        ModelError: the teacher cannot be found or loaded.
    """
    teacher = load_teacher(student, phase, models_folder)
    prompts = sorted({tuple(encode_row(student, row)[0]) for row in rows})
    run.log.rows, ends = len(prompts), student.renderer.stops
    run.log.metrics = {"completions/mean_length": [], "completions/clipped_ratio": []}

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

    longest = max(map(len, prompts)) + phase.max_tokens
    rows_at_once = run.micro_batches.count_rows(longest, min(phase.batch_size, student.spec.batch_size))
    train_phase(student, phase, [{"prompt": list(ids)} for ids in prompts], build_trainer, run, rows_at_once)


def check_on_policy_teacher(student: CausalModel, phase: OnPolicyPhaseSpec, models_folder: Path) -> None:
    """Check the teacher of an on-policy phase without loading its weights: call it before the objective is trained.

    Raises:
        DistillError: it has another vocabulary than the student, or does not fit in memory.
        ModelError: it cannot be found.
    """
    _check_vocabulary(student, phase, models_folder)
    teacher = StudentSpec(model=phase.teacher, revision=phase.revision, architecture="causal_lm", dtype="auto")
    check_teacher_fits(teacher, models_folder)


def _check_vocabulary(student: CausalModel, phase: OnPolicyPhaseSpec, models_folder: Path) -> None:
    import transformers

    resolved = models.resolve_model(phase.teacher, models_folder, phase.revision)
    tokenizer = models.load_pretrained(transformers.AutoTokenizer, phase.teacher, resolved)
    config = models.load_pretrained(transformers.AutoConfig, phase.teacher, resolved).get_text_config()
    if tokenizer.get_vocab() != student.tokenizer.get_vocab() or config.vocab_size < _count_outputs(student.model):
        raise DistillError(
            f"`then`: the teacher {phase.teacher} has another vocabulary than {student.spec.model}, so their "
            f"probabilities cannot be compared. Use a teacher of the same family, or leave on_policy out."
        )


def load_teacher(student: CausalModel, phase: OnPolicyPhaseSpec, models_folder: Path) -> Any:
    """Load the teacher of an on-policy phase in evaluation mode, in the number format that this machine computes in.

    Outputs that the student does not have are removed. They are padding: models of one family round the size of their
    vocabulary up to different numbers.

    Raises:
        DistillError: it has another vocabulary than the student.
        ModelError: it cannot be found or loaded.
    """
    import transformers

    _check_vocabulary(student, phase, models_folder)
    resolved = models.resolve_model(phase.teacher, models_folder, phase.revision)
    dtype = loading.get_torch_dtype("auto")
    teacher = models.load_pretrained(transformers.AutoModelForCausalLM, phase.teacher, resolved, dtype=dtype)
    if _count_outputs(teacher) > _count_outputs(student.model):
        teacher.resize_token_embeddings(_count_outputs(student.model))
    return teacher.to(loading.choose_device()).eval().requires_grad_(False)


def _count_outputs(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
