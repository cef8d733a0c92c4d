"""Send many jobs to a teacher at once, with one rule for failures and budget stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from distill_dagster.core.errors import TeacherError
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.providers.attempts import BudgetError, PermanentTeacherError

Job = TypeVar("Job")
Answer = TypeVar("Answer")


async def ask_all(
    engine: CompletionEngine,
    jobs: Sequence[Job],
    ask_one: Callable[[Job], Awaitable[Answer]],
    *,
    width: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Answer | TeacherError]:
    """Ask for all jobs, `width` at a time.

    A job that fails does not end the others. After a budget stop, jobs that the store can answer still succeed; each
    of the others gets the `BudgetError`, and nothing more is sent.

    Args:
        engine: the engine that `ask_one` asks; its teacher sets the default of `width`.
        jobs: anything that `ask_one` takes.
        ask_one: returns the answer to one job, or raises a `TeacherError` if there is none.
        width: how many jobs run at the same time; by default as many as the teacher may answer at once.
        report: called with the number of finished jobs and the number of all jobs after each job.

    Returns:
        For each job, in order, its answer or its error. Jobs that were not sent have a `BudgetError`.

    Raises:
        PermanentTeacherError: the teacher refuses every request; the other jobs are cancelled.
    """
    results: dict[int, Answer | TeacherError] = {}

    async def work(queue: Iterator[tuple[int, Job]]) -> None:
        for number, job in queue:
            try:
                results[number] = await ask_one(job)
            except PermanentTeacherError:
                raise
            except TeacherError as error:
                results[number] = error
            if report is not None:
                report(len(results), len(jobs))

    queue = iter(enumerate(jobs))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(engine.width if width is None else width, len(jobs))):
            group.create_task(work(queue))
    return [results[number] for number in range(len(jobs))]


def count_unanswered(results: Sequence[object]) -> int:
    """How many results are errors: failed jobs, and jobs that a budget stop left out. Asking again may answer them."""
    return sum(isinstance(result, TeacherError) for result in results)


def require_success(
    engine: CompletionEngine,
    answered: int,
    total: int,
    min_success: float,
    *,
    items: str,
    setting: str,
    first_error: object = None,
) -> None:
    """Raise one error if too few items have an answer. A budget stop is not a failure, so it raises nothing.

    Args:
        answered: items with an answer.
        total: all items.
        min_success: the share of `total` that needs an answer.
        items: what the items are, in the plural, for the message.
        setting: the name of `min_success` in task.yaml, for the message.
        first_error: the first error, for the message.

    Raises:
        BatchPendingError: an open batch contains one of the requests.
        TeacherError: the share of answered items is below `min_success`, and no budget cap explains it.
    """
    if engine.pending is not None:
        raise engine.pending
    if not total or engine.over_budget or isinstance(first_error, BudgetError) or answered / total >= min_success:
        return
    raise TeacherError(
        f"Only {answered / total:.0%} of {total} {items} have an answer from {engine.spec.model}; {setting} is "
        f"{min_success:.0%}. First error: {first_error or 'none'}. Stored answers are not asked for again."
    )
