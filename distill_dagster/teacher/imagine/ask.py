"""Ask for new prompts, round after round, until a slice has its target, and accept the new ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from distill_dagster.core.errors import TeacherError
from distill_dagster.tasks.imagined import ImaginedPrompt, ImagineHistory, ImagineRound, read_imagined
from distill_dagster.teacher.completions.ask_all import ask_all, count_unanswered
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.imagine.log import append_round, get_timestamp, lock_imagined_file
from distill_dagster.teacher.imagine.novelty import Repeat, SeenPrompts
from distill_dagster.teacher.imagine.plan import ImagineJob, Imaginer, collect_different_texts, collect_texts
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response

MAX_IDLE_ROUNDS = 2
"""After this many rounds in a row without a new prompt, the slice stays below its target."""


@dataclass(frozen=True)
class ImagineResult:
    """What a slice has after imagining, and what the asking took.

    `missing` counts the prompts below the target. `failed` counts the requests of the last round without an answer.
    """

    history: ImagineHistory
    missing: int
    rounds: int = 0
    failed: int = 0
    errors: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)

    @property
    def missing_rows(self) -> int:
        """The number of prompts that asking again may return: the missing ones, if a request had no answer."""
        return self.missing if self.failed else 0


def imagine_prompts(
    imaginer: Imaginer, path: Path, endpoint: Endpoint, store: CompletionStore, account: Account | None = None
) -> ImagineResult:
    """Ask until the slice has its target. Accepted prompts are durable in the file at `path` before they are used.

    Asking ends early after `MAX_IDLE_ROUNDS` rounds without a new prompt, after `max_rounds`, or at a budget cap.

    Raises:
        PermanentTeacherError: the teacher refuses every request.
        TeacherPausedError: the teacher asked for a long pause.
        DistillError: another process imagines for this slice and does not end.
    """
    with lock_imagined_file(path):
        return event_loop.run_in_loop(_imagine_async(imaginer, path, endpoint, store, account))


async def _imagine_async(
    imaginer: Imaginer, path: Path, endpoint: Endpoint, store: CompletionStore, account: Account | None
) -> ImagineResult:
    engine = CompletionEngine(endpoint, imaginer.teacher, store, account)
    history = read_imagined(path)  # another process may have added prompts since the slice was read
    errors: list[str] = []
    rounds = idle = failed = 0
    started = time.perf_counter()
    try:
        while rounds < imaginer.spec.max_rounds and idle < MAX_IDLE_ROUNDS:
            missing = _count_missing(imaginer, history)
            if not missing:
                break
            jobs = imaginer.plan_jobs(history, missing)
            requests = [imaginer.build_request(job, history.generation) for job in jobs]
            report = partial(engine.report_progress, "imagining prompts")
            answers = await ask_all(engine, requests, engine.answer, report=report)
            rounds += 1
            failed = count_unanswered(answers)
            errors += [str(answer) for answer in answers if isinstance(answer, TeacherError)]
            if failed == len(jobs):
                break  # the next run sends the same requests
            accepted, ended = _accept_new(imaginer, history, jobs, requests, answers)
            append_round(path, accepted, ended)
            history = read_imagined(path)
            idle = 0 if accepted else idle + 1
            if engine.over_budget or engine.pending:
                break
    finally:
        await engine.close()
    if isinstance(engine.pending, TeacherPausedError):  # what was accepted is in the file
        raise engine.pending
    return ImagineResult(
        history,
        _count_missing(imaginer, history),
        rounds,
        failed,
        tuple(errors),
        engine.build_usage(time.perf_counter() - started),
    )


def _count_missing(imaginer: Imaginer, history: ImagineHistory) -> int:
    present = len(collect_different_texts(imaginer.slice.with_imagined(history)))
    return max(0, (imaginer.slice.target or 0) - present)


def _accept_new(
    imaginer: Imaginer,
    history: ImagineHistory,
    jobs: Sequence[ImagineJob],
    requests: Sequence[Request],
    answers: Sequence[Response | TeacherError],
) -> tuple[list[ImaginedPrompt], ImagineRound]:
    """Accept the texts of a round that are new in the slice, in the order of its requests."""
    seen = SeenPrompts(imaginer.spec.near_duplicate, collect_texts(imaginer.slice, history))
    repeats: Counter[Repeat] = Counter()
    accepted: list[ImaginedPrompt] = []
    for job, request, answer in zip(jobs, requests, answers, strict=True):
        for text in imaginer.read_texts(job, answer) if isinstance(answer, Response) else []:
            if repeat := seen.find_repeat(text):
                repeats[repeat] += 1
                continue
            seen.add(text)
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
    ended = ImagineRound(
        requests=len(jobs),
        failed=count_unanswered(answers),
        duplicates=repeats["duplicate"],
        near_duplicates=repeats["near_duplicate"],
        ended_at=get_timestamp(),
    )
    return accepted, ended
