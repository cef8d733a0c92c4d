"""Compute costs: of an answer by price or machine time, of a distillation, and when that has paid for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill_dagster.config import TeacherSpec

TRAFFIC = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Requests in a day for which a report says what a day costs."""


@dataclass(frozen=True)
class TeacherUse:
    """What one teacher took to answer some prompts. None means unknown, never zero.

    Attributes:
        prompts: number of prompts that it was asked about.
        prompt_tokens: tokens per prompt, summed over its samples.
        completion_tokens: tokens of the answers per prompt.
        counted_with: the tokenizer that counted these tokens; None if the provider or the recording reported them.
        usd: what was billed per prompt, or what a recording says that it cost.
        seconds: time of the machine per prompt: that of a request, divided by how many were under way.
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
class CostLine:
    """What went into a distillation: one line of its bill. None means unknown.

    Attributes:
        source: the model that was asked, or the student that was trained.
        purpose: what for: "slices", "golden", "judge", …, or "training".
        requests: number of requests; of free teachers of prompts; 0 for a training.
        tokens: tokens of these requests and their answers.
        usd: their cost.
        is_billed: whether a provider bills it. Otherwise it is time of the machine, or the price of a recording.
    """

    source: str
    purpose: str
    requests: int
    tokens: int | None
    usd: float | None
    is_billed: bool


@dataclass(frozen=True)
class DayCost:
    """What a day costs at some traffic, and when the distillation has paid for itself. None means unknown.

    Attributes:
        requests: requests in a day.
        teacher_usd: USD of the teacher's answers.
        student_usd: USD of the student's answers, if the machine is paid only while it answers.
        rented_usd: USD of the student's answers, if its machines are rented around the clock for it alone.
        machines: the number of these machines; None also if they cost nothing.
        days: days until the distillation has paid for itself, if the machine is paid only while it answers. None also
            if that never happens.
        rented_days: the same for rented machines.
    """

    requests: int
    teacher_usd: float | None
    student_usd: float | None
    rented_usd: float | None
    machines: int | None
    days: float | None
    rented_days: float | None


@dataclass(frozen=True)
class DistillationCost:
    """What a distillation took. None means unknown.

    Attributes:
        answers: number of prompts that a teacher answered: slices, golden and dev.
        answers_usd: their cost. For a paid teacher, all that the ledger has for the task.
        training_s: seconds that the training of the student took on this machine.
        training_usd: the cost of that time.
        teacher_usd_per_1k: USD for 1,000 answers of the teacher.
        student_usd_per_1k: USD for 1,000 answers of the student, if the machine is paid only while it answers.
        machine_usd_per_hour: the price of the machine that the student answers on.
        requests_per_day: the traffic to expect.
        bill: the lines that add up to `usd`.
    """

    answers: int
    answers_usd: float | None
    training_s: float | None
    training_usd: float | None
    teacher_usd_per_1k: float | None
    student_usd_per_1k: float | None
    machine_usd_per_hour: float | None = None
    requests_per_day: int | None = None
    bill: tuple[CostLine, ...] = ()

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

    @property
    def day(self) -> DayCost | None:
        """What a day costs at the traffic to expect. None if it is not set."""
        return None if self.requests_per_day is None else self.compute_day(self.requests_per_day)

    @property
    def rental_requests_per_day(self) -> int | None:
        """From how many requests in a day a machine rented around the clock costs less than the teacher.

        None if a cost is unknown, or if an answer of the student costs no less than one of the teacher.
        """
        if self.break_even is None or self.machine_usd_per_hour is None or self.teacher_usd_per_1k is None:
            return None
        return math.floor(24 * self.machine_usd_per_hour / (self.teacher_usd_per_1k / 1000)) + 1

    def compute_day(self, requests: int) -> DayCost:
        """What a day with so many requests costs."""
        teacher = None if self.teacher_usd_per_1k is None else requests * self.teacher_usd_per_1k / 1000
        student = None if self.student_usd_per_1k is None else requests * self.student_usd_per_1k / 1000
        rented = machines = None
        if student is not None and self.machine_usd_per_hour is not None:
            machine = 24 * self.machine_usd_per_hour
            machines = max(1, math.ceil(student / machine)) if machine else None
            rented = (machines or 0) * machine
        days = self._compute_days(teacher, student), self._compute_days(teacher, rented)
        return DayCost(requests, teacher, student, rented, machines, *days)

    def list_days(self) -> list[DayCost]:
        """What a day costs at each of `TRAFFIC` and at the traffic to expect, the smallest first."""
        known = [self.requests_per_day] if self.requests_per_day is not None else []
        return [self.compute_day(requests) for requests in sorted({*TRAFFIC, *known})]

    def build_curves(self) -> dict[str, list[tuple[float, float]]]:
        """Points (requests, USD spent so far) of each way to answer, up to twice the break-even. Empty without one.

        The student's line starts at what the distillation cost. Its second line, at the traffic to expect, is that of
        machines rented around the clock.
        """
        if self.break_even is None or self.usd is None:
            return {}
        assert self.teacher_usd_per_1k is not None
        assert self.student_usd_per_1k is not None
        per_request = {"teacher": (0.0, self.teacher_usd_per_1k / 1000)}
        per_request["student"] = (self.usd, self.student_usd_per_1k / 1000)
        day, most = self.day, 2 * self.break_even
        if day is not None and day.rented_usd is not None:
            per_request["student, rented machine"] = (self.usd, day.rented_usd / day.requests)
            most = max(most, math.ceil(2 * (day.rented_days or 0) * day.requests))
        steps = [most * step / 4 for step in range(5)]
        return {name: [(x, start + x * slope) for x in steps] for name, (start, slope) in per_request.items()}

    def to_json(self) -> dict[str, Any]:
        day = self.day
        return asdict(self) | {
            "usd": self.usd,
            "break_even_requests": self.break_even,
            "break_even_days": day.days if day is not None else None,
            "break_even_days_rented": day.rented_days if day is not None else None,
            "rental_requests_per_day": self.rental_requests_per_day,
            "days": [asdict(day) for day in self.list_days()],
        }

    def _compute_days(self, teacher_usd: float | None, student_usd: float | None) -> float | None:
        if self.usd is None or teacher_usd is None or student_usd is None or student_usd >= teacher_usd:
            return None
        return self.usd / (teacher_usd - student_usd)


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
