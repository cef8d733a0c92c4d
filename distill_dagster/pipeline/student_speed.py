"""Time a system's answers to golden items, and the memory that answering takes."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from distill_dagster.evaluation.speed import LoadFigures, compute_percentiles, measure_load
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.predict import StudentPredictor
from distill_dagster.student.types import Predictor, StudentPrompt

WARM_UP_CALLS = 3
"""Calls to a system before its latency is measured."""
FIRST_TOKEN_ITEMS = 8
"""Items whose first token is timed."""


@dataclass(frozen=True)
class AloneFigures:
    """Answers one at a time: the seconds of each, and for a system that writes how fast it does.

    `first_token_s` is the median of seconds until the first token, `tokens_per_s` counts tokens of answers. Both are
    None for a system that does not write.
    """

    seconds: list[float]
    first_token_s: float | None = None
    tokens_per_s: float | None = None


def time_alone(predictor: Predictor, prompts: Sequence[StudentPrompt]) -> AloneFigures:
    """Time answers one at a time, after a warm-up."""
    student = predictor.student if isinstance(predictor, StudentPredictor) else None
    for prompt in (list(prompts) * WARM_UP_CALLS)[:WARM_UP_CALLS]:
        predictor.predict([prompt])
    if not isinstance(student, FreeTextStudent):
        return AloneFigures([_time_answer(predictor, prompt) for prompt in prompts])
    seconds, tokens = [], 0
    for prompt in prompts:
        started = time.perf_counter()
        [answer] = student.write_answers([prompt])
        seconds.append(time.perf_counter() - started)
        tokens += answer.tokens
    if not seconds:
        return AloneFigures(seconds)
    first = [_time_first_token(student, prompt) for prompt in prompts[:FIRST_TOKEN_ITEMS]]
    return AloneFigures(seconds, compute_percentiles(first)[0], tokens / sum(seconds))


def time_load(predictor: Predictor, prompts: Sequence[StudentPrompt]) -> LoadFigures | None:
    """Time answers to several callers at once. None if there are fewer prompts than callers."""
    return measure_load(predictor.predict, prompts)


def _time_answer(predictor: Predictor, prompt: StudentPrompt) -> float:
    started = time.perf_counter()
    predictor.predict([prompt])
    return time.perf_counter() - started


def _time_first_token(student: FreeTextStudent, prompt: StudentPrompt) -> float:
    """Seconds until the first token: writing ends with it."""
    started = time.perf_counter()
    student.write_answers([prompt], lambda _: False)
    return time.perf_counter() - started


@contextmanager
def track_peak_memory() -> Iterator[dict[str, int]]:
    """Track by how many bytes memory grows at most within the block: on the GPU if there is one, else of this process.

    Memory of the process is looked at 20 times per second. What earlier systems left to the allocator is given back
    before, where the C library can do so. Otherwise it would be reused without growth, and the peak look too small.
    """
    import psutil
    import torch

    gc.collect()
    peak = {"bytes": 0}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        yield peak
        peak["bytes"] = torch.cuda.max_memory_allocated() - start
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        is_done = False
        while not is_done:  # once more at the end
            is_done = done.wait(0.05)
            peak["bytes"] = max(peak["bytes"], process.memory_info().rss - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
