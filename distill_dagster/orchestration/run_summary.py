"""The summary of one command: runs, artifacts, failures, and what it spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunSummary:
    """What one command did.

    `teacher_calls`, `cost_usd` and `reserved_usd` come from the ledger of its campaign, so they include failed
    requests. The other figures are sums over the artifacts that the command made.
    """

    runs: list[str] = field(default_factory=list)
    partitions: dict[str, list[str | None]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    """Artifacts that wait for a provider batch, directly or through an input."""
    teacher_calls: int = 0
    teacher_calls_cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    reserved_usd: float = 0.0
    model_s: float = 0.0
    wall_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "partitions": self.partitions,
            "failed": self.failed,
            "blocked": self.blocked,
            "waiting": self.waiting,
            "pending": self.pending,
            "teacher_calls": self.teacher_calls,
            "teacher_calls_cached": self.teacher_calls_cached,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
            "reserved_usd": self.reserved_usd,
            "model_s": round(self.model_s, 2),
            "wall_s": round(self.wall_s, 2),
        }
