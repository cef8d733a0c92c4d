"""Compute costs: of an answer by price or machine time, of a distillation, and when that has paid for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill_dagster.config import TeacherSpec


@dataclass(frozen=True)
class TeacherUse:
    """What one teacher took to answer some prompts. None means unknown, never zero.

    Attributes:
        prompts: number of prompts that it was asked about.
        prompt_tokens: tokens per prompt, summed over its samples.
        completion_tokens: tokens of the answers per prompt.
        counted_with: the tokenizer that counted these tokens; None if the provider or the recording reported them.
        usd: what was billed per prompt, or what a recording says that it cost.
        seconds: time per prompt, over the prompts that were asked one by one.
    """

    prompts: int
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    counted_with: str | None = None
    usd: float | None = None
    seconds: float | None = None

    def compute_cost(self, spec: TeacherSpec, machine_usd_per_hour: float | None) -> float | None:
        """USD per prompt, or None if it is unknown.

        An embedded teacher takes time of the machine. A recorded one costs its tokens at its declared price, and
        without a price what the recording says. Any other costs what was billed.
        """
        if spec.is_embedded:
            return compute_machine_cost(self.seconds, machine_usd_per_hour)
        if spec.is_replay and spec.price is not None:
            if self.prompt_tokens is None or self.completion_tokens is None:
                return None
            price = spec.price
            return (self.prompt_tokens * price.input_usd + self.completion_tokens * price.output_usd) / 1e6
        return self.usd


@dataclass(frozen=True)
class DistillationCost:
    """What a distillation took. None means unknown.

    Attributes:
        answers: number of prompts that a teacher answered: slices, golden and dev.
        answers_usd: their cost. For a paid teacher, all that the ledger has for the task.
        training_s: seconds that the training of the student took on this machine.
        training_usd: the cost of that time.
        teacher_usd_per_1k: USD for 1,000 answers of the teacher.
        student_usd_per_1k: USD for 1,000 answers of the student.
    """

    answers: int
    answers_usd: float | None
    training_s: float | None
    training_usd: float | None
    teacher_usd_per_1k: float | None
    student_usd_per_1k: float | None

    @property
    def usd(self) -> float | None:
        """The whole distillation in USD."""
        if self.answers_usd is None or self.training_usd is None:
            return None
        return self.answers_usd + self.training_usd

    @property
    def break_even(self) -> int | None:
        """The number of requests after which the student has saved what the distillation cost.

        None if a cost is unknown, or if an answer of the student costs no less than one of the teacher.
        """
        if self.usd is None or self.teacher_usd_per_1k is None or self.student_usd_per_1k is None:
            return None
        saved = (self.teacher_usd_per_1k - self.student_usd_per_1k) / 1000
        return math.ceil(self.usd / saved) if saved > 0 else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"usd": self.usd, "break_even_requests": self.break_even}


def compute_machine_cost(seconds: float | None, usd_per_hour: float | None) -> float | None:
    """US dollars for so much time of a rented machine, or None if a part is unknown."""
    if seconds is None or usd_per_hour is None:
        return None
    return seconds / 3600 * usd_per_hour


def compute_teacher_cost(
    uses: Mapping[str, TeacherUse], teachers: Mapping[str, TeacherSpec], usd_per_hour: float | None
) -> float | None:
    """US dollars per prompt of all teachers together: in a cascade a later one answers only a part of the prompts.

    Args:
        uses: what each teacher took, by its name. The first was asked about every prompt.
        teachers: its settings, by the same name.
    """
    costs = {name: use.compute_cost(teachers[name], usd_per_hour) for name, use in uses.items() if name in teachers}
    return _average_over_prompts(uses, costs)


def compute_teacher_tokens(uses: Mapping[str, TeacherUse]) -> float | None:
    """Tokens per prompt of all teachers together: of requests and answers. None if those of one are unknown."""
    tokens: dict[str, float | None] = {}
    for name, use in uses.items():
        known = use.prompt_tokens is not None and use.completion_tokens is not None
        tokens[name] = (use.prompt_tokens or 0.0) + (use.completion_tokens or 0.0) if known else None
    return _average_over_prompts(uses, tokens)


def _average_over_prompts(uses: Mapping[str, TeacherUse], amounts: Mapping[str, float | None]) -> float | None:
    """The amount per prompt, from each teacher's amount per prompt that it was asked about."""
    total = 0.0
    for name, use in uses.items():
        amount = amounts.get(name)
        if amount is None:
            return None
        total += amount * use.prompts
    return total / max(use.prompts for use in uses.values()) if uses else None
