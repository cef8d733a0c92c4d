"""What a listener is told about the runs of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

RunEventKind = Literal["start", "waiting", "resumed", "done", "pending", "failed"]


@dataclass(frozen=True)
class RunEvent:
    """One event of one run.

    A run starts; it waits while another process has what it needs, and resumes; and at its end it is done, pending
    until a provider batch ends, or failed.
    """

    kind: RunEventKind
    artifacts: tuple[str, ...] = ()
    """The artifacts that the run makes, in order."""
    why: str = ""
    """What it waits for."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why artifacts were not made, or did not pass their checks, by artifact."""
    took_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that artifacts took, by artifact, as far as they are known."""
    step: int = 0
    """The number of its first artifact among all artifacts that the command makes."""
    steps: int = 0
    """The number of all artifacts that the command makes, as far as it is known by now."""

    def __str__(self) -> str:
        reasons = (f"{name}: {why}" for name, why in self.reasons.items())
        return "; ".join(filter(None, [f"{self.kind} {', '.join(self.artifacts)}".strip(), self.why, *reasons]))


RunListener = Callable[[RunEvent], None]
