"""Speed alone, under load and in batches; a teacher as its client saw it; memory whatever ran before."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distill_dagster.evaluation import speed
from distill_dagster.evaluation.metrics.types import SystemFacts
from distill_dagster.evaluation.speed import (
    LoadFigures,
    Speed,
    measure_load,
    measure_teacher_latency,
    measure_teacher_load,
    measure_teacher_tokens_per_s,
)
from distill_dagster.pipeline.student_speed import track_peak_memory
from distill_dagster.tables.schemas import COMPLETIONS, build_frame


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that only moves when a test says so."""
    now = {"s": 0.0}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now["s"])
    return now


def test_callers_that_wait_share_a_batch_and_each_waits_for_the_whole_batch(clock: dict[str, float]) -> None:
    batches = []

    def answer(asked: list[int]) -> None:
        batches.append(asked)
        clock["s"] += 0.1 * len(batches)

    found = measure_load(answer, list(range(11)), callers=4)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]], "the last three have no fourth caller"
    assert found is not None
    assert (found.callers, found.requests) == (4, 8)
    assert found.requests_per_s == pytest.approx(8 / 0.3)
    assert (found.p50, found.p95) == pytest.approx((0.15, 0.195))
    assert measure_load(answer, [1, 2, 3], callers=4) is None


def test_a_slow_system_is_not_measured_for_long(clock: dict[str, float]) -> None:
    def answer(_: list[int]) -> None:
        clock["s"] += 0.6

    found = measure_load(answer, list(range(800)), callers=8, limit_s=1.0)
    assert found is not None
    assert found.requests == 16


def _complete(prompt: str, sample: int, seconds: float | None, in_flight: int, tokens: int = 20) -> dict[str, Any]:
    row = dict.fromkeys(COMPLETIONS) | {"completion_id": f"{prompt}{sample}", "prompt_id": prompt, "slice": "s"}
    row |= {"teacher": "teacher", "sample_index": sample, "status": "ok", "in_flight": in_flight}
    return row | {"latency_s": seconds, "prompt_tokens": 100, "completion_tokens": tokens}


def _build(*rows: dict[str, Any]) -> pl.DataFrame:
    return build_frame(list(rows), COMPLETIONS, ("prompt_id", "sample_index"))


def test_a_teacher_is_measured_as_its_client_saw_it() -> None:
    """Four requests under way, two per prompt that take half a second each: four prompts in a second."""
    alone = [_complete("a", 0, 0.2, 1), _complete("a", 1, 0.3, 1)]
    busy = [_complete(prompt, sample, 0.5, 4) for prompt in "bcd" for sample in (0, 1)]
    mixed = [_complete("e", 0, 9.0, 1), _complete("e", 1, 9.0, 4)]
    assert measure_teacher_load(_build(*alone, *busy, *mixed)) == LoadFigures(4.0, 3, 4.0, 1.0, 1.0)
    assert measure_teacher_load(_build(*alone)) is None
    assert measure_teacher_load(_build(_complete("a", 0, 0.0, 0))) is None, "a recording is not sent"
    assert measure_teacher_tokens_per_s(_build(*alone, *busy)) == pytest.approx(40 / 0.5)
    assert measure_teacher_tokens_per_s(_build(*busy)) is None
    assert measure_teacher_tokens_per_s(_build(_complete("a", 0, 0.2, 1, tokens=1))) is None, "a label, not a text"


def test_speed_reads_what_it_wrote_and_older_records_have_none() -> None:
    found = Speed(20.0, LoadFigures(8, 16, 10.0, 0.8, 0.9), 0.1, 30.0)
    assert Speed.from_json(found.to_json()) == found
    assert SystemFacts.from_json({"model": "m", "speed": found.to_json()}).speed == found
    assert SystemFacts.from_json({"model": "m"}).speed == Speed()


def test_peak_memory_is_not_hidden_by_what_an_earlier_system_left() -> None:
    """Small blocks stay with the allocator when they are freed below one that is still used."""
    import numpy as np

    def allocate() -> list[Any]:
        return [np.ones(10_000, dtype=np.float32) for _ in range(3000)]

    kept = allocate()[-1]
    with track_peak_memory() as peak:
        blocks = allocate()
    assert len(blocks) * blocks[0].nbytes == 120_000_000
    assert peak["bytes"] == pytest.approx(120e6, rel=0.25)
    assert kept.sum() == 10_000


def test_a_request_without_an_answer_has_no_latency() -> None:
    """A timeout has no seconds and no tokens. It must not count as an answer in no time."""
    lost = dict.fromkeys(COMPLETIONS) | {"prompt_id": "lost", "slice": "s", "sample_index": 0, "status": "failed"}
    unusable = _complete("unusable", 0, None, 1, tokens=500) | {"status": "failed"}
    half = [_complete("half", 0, 0.4, 1), lost | {"prompt_id": "half", "sample_index": 1}]
    alone = [_complete("a", 0, 0.2, 1), _complete("a", 1, 0.3, 1)]
    busy = [_complete("b", 0, 0.5, 4), lost | {"prompt_id": "b", "sample_index": 1}]
    completions = _build(lost, unusable, *half, *alone, *busy)
    assert measure_teacher_latency(completions) == {"a": pytest.approx(0.5)}
    assert measure_teacher_load(completions) is None
    assert measure_teacher_tokens_per_s(completions) == pytest.approx(60 / 0.9)
