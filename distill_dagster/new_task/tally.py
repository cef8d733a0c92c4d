"""What happened to the rows of a new task's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from distill_dagster.core.errors import InputError, Problem


@dataclass
class Tally:
    """Counts and notes that every step of planning a task adds to.

    Attributes:
        skip_invalid: rows that cannot be used are counted. Otherwise they are refused.
        left_out: rows that are in no part, by reason.
        notes: what a person should know or do.
    """

    skip_invalid: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Refuse rows that cannot be used, or count them.

        Raises:
            InputError: there are problems, and `skip_invalid` is not set.
        """
        if problems and not self.skip_invalid:
            raise InputError(problems)
        self.left_out["invalid rows"] += len(problems)
