"""`then` of a student in task.yaml: phases of training that follow the objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from distill_dagster.config.base import ConfigModel

ALIGN_PACKAGES = ("trl", "datasets")
"""The packages of the extra `align`, which every phase needs."""
ALIGN_REMEDY = "Install the extra `align`: .venv/bin/pip install -c requirements/constraints.txt -e '.[align]'"


class PreferencePhaseSpec(ConfigModel):
    """Prefer the kept answer to a rejected one: direct preference optimization (Rafailov et al. 2023)."""

    kind: Literal["preference"] = Field(description="preference")
    beta: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.1, description="how strongly the student is held to what it was before this phase"
    )
    sft_weight: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0,
        description="weight of the negative log-likelihood of the kept answer in the loss (Pang et al. 2024); "
        "with 0 the kept answers may become less likely too",
    )
    pairs_per_prompt: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="most rejected answers of one prompt, the most frequent first"
    )
    epochs: Annotated[int, Field(ge=1, le=50)] = Field(default=1, description="passes over the pairs")
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, description="pairs per step")
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=5e-5, description="highest learning rate; it falls linearly to 0"
    )


class OnPolicyPhaseSpec(ConfigModel):
    """Learn from a local teacher's probabilities along the student's own answers (Agarwal et al. 2024)."""

    kind: Literal["on_policy"] = Field(description="on_policy")
    teacher: str = Field(
        description="a language model with the vocabulary of the student: a packaged name, a folder or a hub id. It "
        "gets the prompt of the student"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hugging Face id")
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = Field(
        default="reverse_kl",
        description="reverse_kl: avoid what the teacher would not write; forward_kl: cover all that it would write; "
        "jensen_shannon: half of each",
    )
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(
        default=1.0, description="of the student's samples, and of both distributions"
    )
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(default=128, description="longest sample in tokens")
    epochs: Annotated[int, Field(ge=1, le=50)] = Field(default=1, description="passes over the training prompts")
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, description="prompts per step")
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-4, description="highest learning rate; it falls linearly to 0"
    )


PhaseSpec = Annotated[PreferencePhaseSpec | OnPolicyPhaseSpec, Discriminator("kind")]
"""A phase of training. The field `kind` names it."""


def check_phase(phase: PhaseSpec, architecture: str, writes: bool) -> None:
    """Check that a student can take part in a phase.

    Args:
        writes: whether the student writes its answer token by token, instead of choosing a label.

    Raises:
        ValueError: it cannot.
    """
    if architecture == "encoder":
        raise ValueError(
            f"phase {phase.kind} needs a language model, `architecture: causal_lm`; an encoder writes nothing. "
            f"Leave `then` out"
        )
    if phase.kind == "on_policy" and not writes:
        raise ValueError(
            "phase on_policy samples what the student writes, and this student chooses a label. "
            "Use `objective: reasoning`, or leave the phase out"
        )
