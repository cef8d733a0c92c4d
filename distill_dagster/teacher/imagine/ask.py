"""Asking for new prompts, round after round, until a slice has its target: what of the answers is accepted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.tasks.imagined import ImaginedPrompt, ImagineHistory, ImagineRound, read_imagined
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine.log import append_round, get_timestamp, lock_imagined_file
from distill_dagster.teacher.imagine.novelty import Repeat, SeenPrompts
from distill_dagster.teacher.imagine.plan import ImagineJob, Imaginer, collect_different_texts, collect_texts
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import PermanentTeacherError
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response

MAX_IDLE_ROUNDS = 2
"""So many rounds in a row without a new prompt, and a slice is left as it is."""


@dataclass(frozen=True)
class ImagineResult:
    """What a slice has after imagining, and what that took.

    Tokens and cost are those of the requests that were sent; the cost is None where a price is unknown.
    """

    imagination: ImagineHistory
    missing: int
    rounds: int = 0
    failed: int = 0
    errors: tuple[str, ...] = ()
    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spent_usd: float | None = 0.0
    seconds: float = 0.0

    @property
    def missing_rows(self) -> int:
        """Prompts that asking again may bring: a request had no answer. A slice that was left as it is has none."""
        return self.missing if self.failed else 0


def imagine_prompts(
    imaginer: Imaginer, path: Path, endpoint: Endpoint, store: CompletionStore, account: Account | None = None
) -> ImagineResult:
    """Ask until the slice has its target; accepted prompts are durable in the file at `path` before they are used.

    A slice that brings nothing new in two rounds, or has had `max_rounds`, is left as it is.

    Raises:
        PermanentTeacherError: the teacher refuses every request.
        DistillError: another process is at this slice and does not come to an end.
    """
    with lock_imagined_file(path):
        return event_loop.run_in_loop(_imagine_async(imaginer, path, endpoint, store, account))


async def _imagine_async(
    imaginer: Imaginer, path: Path, endpoint: Endpoint, store: CompletionStore, account: Account | None
) -> ImagineResult:
    engine = CompletionEngine(endpoint, imaginer.teacher, store, account)
    imagination = read_imagined(path)  # another process may have been faster
    slice_, target = imaginer.slice, imaginer.slice.target or 0
    errors: list[str] = []
    rounds = idle = failed = 0
    started = time.perf_counter()
    try:
        while rounds < imaginer.spec.max_rounds and idle < MAX_IDLE_ROUNDS:
            missing = target - len(collect_different_texts(slice_.with_imagined(imagination)))
            if missing <= 0:
                break
            jobs = imaginer.jobs(imagination, missing)
            got = await _ask_round(imaginer, engine, jobs, imagination.generation)
            rounds += 1
            failed = sum(isinstance(answer, TeacherError) for _, answer in got)
            errors += [str(answer) for _, answer in got if isinstance(answer, TeacherError)]
            if failed == len(jobs):
                break  # the same requests are sent next time
            accepted, ended = _accept_new(imaginer, imagination, jobs, got)
            append_round(path, accepted, ended)
            imagination = read_imagined(path)
            idle = 0 if accepted else idle + 1
    finally:
        await engine.close()
    return ImagineResult(
        imagination,
        max(0, target - len(collect_different_texts(slice_.with_imagined(imagination)))),
        rounds,
        failed,
        tuple(errors),
        engine.calls,
        engine.cached,
        engine.prompt_tokens,
        engine.completion_tokens,
        engine.spent,
        time.perf_counter() - started,
    )


async def _ask_round(
    imaginer: Imaginer, engine: CompletionEngine, jobs: list[ImagineJob], generation: int
) -> list[tuple[Request, Response | TeacherError]]:
    requests = [imaginer.request(job, generation) for job in jobs]
    answers: dict[int, Response | TeacherError] = {}

    async def worker(work: Iterator[tuple[int, Request]]) -> None:
        for n, request in work:
            try:
                answers[n] = await engine.answer(request)
            except PermanentTeacherError:
                raise
            except TeacherError as error:
                answers[n] = error
            progress.report_progress("imagining prompts", len(answers), len(requests))

    work = iter(enumerate(requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(1 if imaginer.teacher.embedded else imaginer.teacher.concurrency):
            group.create_task(worker(work))
    return [(request, answers[n]) for n, request in enumerate(requests)]


def _accept_new(
    imaginer: Imaginer,
    imagination: ImagineHistory,
    jobs: list[ImagineJob],
    got: list[tuple[Request, Response | TeacherError]],
) -> tuple[list[ImaginedPrompt], ImagineRound]:
    """What of a round is new within the slice, in the order of its requests."""
    known = SeenPrompts(imaginer.spec.near_duplicate, collect_texts(imaginer.slice, imagination))
    repeats: Counter[Repeat] = Counter()
    accepted: list[ImaginedPrompt] = []
    for job, (request, answer) in zip(jobs, got, strict=True):
        for text in imaginer.listed(job, answer) if isinstance(answer, Response) else []:
            if repeat := known.repeats(text):
                repeats[repeat] += 1
                continue
            known.add(text)
            accepted.append(
                ImaginedPrompt(
                    text=text,
                    method=job.method,
                    axes=job.axes,
                    parent_prompt_id=job.parent.id if job.parent else None,
                    target_label=job.label.name if job.label else None,
                    teacher=imaginer.teacher.model,
                    template_version=imaginer.templates.version,
                    request_key=request.key,
                    imagined_at=get_timestamp(),
                )
            )
    failed = sum(isinstance(answer, TeacherError) for _, answer in got)
    ended = ImagineRound(
        requests=len(jobs),
        failed=failed,
        duplicates=repeats["duplicate"],
        near_duplicates=repeats["near_duplicate"],
        ended_at=get_timestamp(),
    )
    return accepted, ended
