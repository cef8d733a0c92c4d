"""Measure how fast a system answers: alone, with several callers at once, and in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import polars as pl

Asked = TypeVar("Asked")

CALLERS = 8
"""Callers at once where a student is measured under load."""
LOAD_LIMIT_S = 1.0
"""Seconds after which a measurement under load ends."""


@dataclass(frozen=True)
class LoadFigures:
    """Answers to several callers at once, each of whom waits for its answer before it asks again.

    Attributes:
        callers: number of callers; of a teacher the mean number of requests under way.
        requests: number of requests that were timed.
        requests_per_s: requests that are answered in a second.
        p50: median seconds until an answer.
        p95: seconds within which 95 % of the answers arrive.
    """

    callers: float
    requests: int
    requests_per_s: float
    p50: float
    p95: float


@dataclass(frozen=True)
class Speed:
    """How fast a system answers. None means not measured.

    Attributes:
        requests_per_s: requests that are answered in a second, if all are known in advance and share batches.
        load: with several callers at once.
        first_token_s: median seconds until the first token of an answer, one request at a time. Only of a system that
            writes its answers.
        tokens_per_s: tokens of answers in a second, one request at a time. Only of a system that writes its answers.
    """

    requests_per_s: float | None = None
    load: LoadFigures | None = None
    first_token_s: float | None = None
    tokens_per_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Speed:
        """The speed that `to_json` returned."""
        load = value.get("load")
        return cls(**{**value, "load": LoadFigures(**load) if load else None})


def measure_load(
    answer: Callable[[list[Asked]], Any],
    asked: Sequence[Asked],
    callers: int = CALLERS,
    limit_s: float = LOAD_LIMIT_S,
) -> LoadFigures | None:
    """Time answers to `callers` callers at once: the requests that wait are answered together, as a server does.

    All of them get their answers at the same moment and ask again. So every round is one batch, in the order of
    arrival, and each of its requests takes as long as the batch.

    Args:
        answer: returns one answer per request.
        asked: the requests. Those of an incomplete last round are left out.
        limit_s: after so many seconds no further round begins.

    Returns:
        None if there are fewer requests than callers.
    """
    seconds: list[float] = []
    for start in range(0, len(asked) - callers + 1, callers):
        began = time.perf_counter()
        answer(list(asked[start : start + callers]))
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > limit_s:
            break
    if not seconds:
        return None
    p50, p95 = compute_percentiles(seconds)
    return LoadFigures(callers, callers * len(seconds), callers * len(seconds) / sum(seconds), p50, p95)


def measure_teacher_latency(completions: pl.DataFrame) -> dict[str, float]:
    """Seconds that a teacher's answer to a prompt took, over all its requests, by prompt id.

    Only of prompts whose requests were all answered, one at a time. A failed request has no seconds.
    """
    import polars as pl

    is_timed = (pl.col("in_flight") == 1) & pl.col("latency_s").is_not_null()
    prompts = completions.group_by("prompt_id").agg(
        pl.col("latency_s").sum(), is_timed.fill_null(False).all().alias("timed")
    )
    return dict(prompts.filter(pl.col("timed")).select("prompt_id", "latency_s").iter_rows())


def measure_teacher_load(completions: pl.DataFrame) -> LoadFigures | None:
    """How long the client waited for a teacher's answers while it had several requests under way.

    A prompt takes as long as all its requests. Requests per second are prompts: by Little's law the mean number under
    way divided by the mean seconds of a prompt.

    Args:
        completions: a table with the schema `COMPLETIONS`.

    Returns:
        None if no prompt was asked with several requests under way, as with a recording.
    """
    import polars as pl

    prompts = (
        completions.filter(pl.col("latency_s").is_not_null().all().over("prompt_id"))
        .group_by("prompt_id")
        .agg(pl.col("in_flight").mean(), pl.col("latency_s").sum(), pl.col("in_flight").min().alias("fewest"))
        .filter(pl.col("fewest") > 1)
    )
    if prompts.is_empty():
        return None
    callers, seconds = float(prompts["in_flight"].mean()), prompts["latency_s"].to_list()  # type: ignore[arg-type]
    p50, p95 = compute_percentiles(seconds)
    return LoadFigures(callers, prompts.height, callers * len(seconds) / sum(seconds), p50, p95)


def measure_teacher_tokens_per_s(completions: pl.DataFrame) -> float | None:
    """Tokens of answers in a second, of the requests that were asked one at a time. None if that is unknown."""
    import polars as pl

    is_timed = (pl.col("in_flight") == 1) & pl.col("latency_s").is_not_null()
    alone = completions.filter(is_timed & (pl.col("completion_tokens") > 1))
    seconds = float(alone["latency_s"].sum())
    return float(alone["completion_tokens"].sum()) / seconds if seconds else None


def compute_percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 95th percentile, interpolated between neighbours."""
    import numpy as np

    p50, p95 = np.percentile(seconds, [50, 95])
    return float(p50), float(p95)
