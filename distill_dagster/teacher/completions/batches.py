"""Batch mode: a provider's batch API answers within a day at a lower price, or a runner on the user's own GPU.

Before a batch is sent, the completion store's database notes it and its requests; afterwards it notes the provider's
id. If the process is killed in between, the note has no id. The next process then looks for a batch with the name of
the note at the provider, and adopts it or submits it again. So no batch is lost, and none is sent twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from distill_dagster.config import TeacherSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.teacher.completions.batch_api import NotAtProviderError
from distill_dagster.teacher.completions.batch_files import build_request_line, split_into_batches
from distill_dagster.teacher.completions.batch_results import ResultLine, assign_lines, parse_result_lines
from distill_dagster.teacher.completions.batch_services import open_batch_service
from distill_dagster.teacher.completions.batch_store import BatchStore, Submission
from distill_dagster.teacher.completions.ledger import Account, Reservation, Settlement
from distill_dagster.teacher.completions.runner_folder import RunnerFolder
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import PendingError, UnusableAnswerError
from distill_dagster.teacher.providers.client import Endpoint, redact_error
from distill_dagster.teacher.providers.exchange import Request
from distill_dagster.teacher.providers.prices import TokenPrice, compute_worst_case, find_price

MAX_POLL_FACTOR = 10
"""Polling slows down to this many times its first pause."""
RESUBMIT_PAUSE_S = 0.05
_MISSING_REASONS = {
    "completed": "the batch ended without an answer to this request",
    "expired": "the batch expired before this request was answered; the next run asks again",
    "cancelled": "the batch was cancelled before this request was answered; the next run asks again",
}


class BatchPendingError(PendingError):
    """Batches are not ready yet. Nothing is lost: a later run finds their answers."""


@dataclass(frozen=True)
class CollectedBatch:
    """A batch that ended, with the number of requests that have an answer and of those that have none."""

    submission: Submission
    status: str
    answers: int
    failed: int

    def __str__(self) -> str:
        counts = count_noun(self.answers, "answer") + (f", {self.failed} without one" if self.failed else "")
        return f"{self.submission.origin}: batch {self.submission.batch_id} {self.status}: {counts}"


def collect_batches(
    endpoint: Endpoint, spec: TeacherSpec, store: CompletionStore, task: str
) -> tuple[list[CollectedBatch], list[Submission]]:
    """Collect the batches of a task that ended. Submits nothing.

    Returns:
        The collected batches, and the submissions that are still open.

    Raises:
        TeacherError: the provider cannot be reached, or refuses.
    """
    if not BatchStore(store).list_open(endpoint.identity, task):
        return [], []
    runner = BatchRunner(endpoint, spec, store)
    return event_loop.run_in_loop(runner.collect(task)), runner.notes.list_open(endpoint.identity, task)


def forget_batch(store: CompletionStore, submission: str, endpoints: Sequence[Endpoint] = ()) -> None:
    """Give up a batch. Its worst case counts as spent, since the provider may still answer and bill it.

    Args:
        endpoints: the task's teachers. If a runner answers one of them, its files of the batch are removed.
    """
    notes = BatchStore(store)
    for endpoint in endpoints:
        if endpoint.runner_folder is not None:
            RunnerFolder(endpoint.runner_folder).remove(submission)
    store.commit({}, [Settlement(_build_ledger_id(submission, key), "lost") for key in notes.list_keys(submission)])
    notes.forget(submission)


def describe_open_batch(store: CompletionStore, key: str, model: str) -> str | None:
    """Name the open batch that contains a request, and the commands that end the wait. None if there is no batch."""
    notes = BatchStore(store)
    names = notes.find_submissions([key])
    batch = next((submission for submission in notes.list_open() if submission.submission in names), None)
    if batch is None:
        return None
    command = f"distill batches {batch.origin.partition('/')[0]}".strip()
    return (
        f"An open batch of {model} contains this request ({batch.origin or 'unknown origin'}, {batch.requests} "
        f"requests, since {batch.created_at}), so it is not sent again. Collect the batch with `{command}`, or give it "
        f"up with `{command} --forget {batch.submission}`; then run again."
    )


class BatchRunner:
    """Submits, polls and collects the batches of one teacher."""

    def __init__(
        self,
        endpoint: Endpoint,
        spec: TeacherSpec,
        store: CompletionStore,
        account: Account | None = None,
        price: TokenPrice | None = None,
    ) -> None:
        """`account` pays. `price` sets what is reserved: the online price, which is not below the batch price.

        Raises:
            TeacherError: the provider has no batch API.
        """
        self.endpoint, self.spec, self.store = endpoint, spec, store
        self.account, self.price = account or Account("", "", ""), price
        self.notes, self.service = BatchStore(store), open_batch_service(endpoint, spec)
        self.submitted = 0
        self.stopped: str | None = None
        """The budget cap that kept requests from being submitted, or None."""

    async def run(self, requests: Sequence[Request], origin: str) -> dict[str, str]:
        """Submit the requests that have no answer and are in no open batch; wait at most `batch.wait_s` for all.

        At a budget cap it submits what fits and waits for that, which may make room for more. If requests remain,
        `stopped` says which cap it was.

        Args:
            origin: `task/asset[partition]` that asks.

        Returns:
            By request_key, the reason why a request has no answer. All other requests have an answer in the store,
            or were not submitted because of `stopped`.

        Raises:
            BatchPendingError: the batches are not ready yet.
            TeacherError: the provider has no batch API, or refuses.
        """
        wanted, errors = {request.key: request for request in requests}, dict[str, str]()
        deadline = time.monotonic() + self.spec.batch.wait_s
        while True:
            await self.collect()
            stored = self.store.find_stored_keys(wanted)
            # Report each failure of an earlier batch once; the next run submits these requests again.
            errors |= self.notes.take_errors(key for key in wanted if key not in stored)
            rest = {key: request for key, request in wanted.items() if key not in stored and key not in errors}
            self.stopped = await self._submit_rest(rest, origin)
            if not rest or (self.stopped and not self.notes.find_submissions(rest)):
                return errors
            await self._wait(list(rest), deadline)
            await asyncio.sleep(RESUBMIT_PAUSE_S)  # a request that is under way online is in no batch

    async def collect(self, task: str | None = None) -> list[CollectedBatch]:
        """Look once at each open batch, of one task or of all, and store the answers of those that ended.

        Raises:
            TeacherError: the provider cannot be reached, or refuses.
        """
        await self._adopt()
        collected: list[CollectedBatch] = []
        for submission in self.notes.list_open(self.endpoint.identity, task):
            if submission.batch_id is not None:
                _, batch = await self._poll(submission)
                collected += [batch] if batch else []
        return collected

    async def _submit_rest(self, requests: dict[str, Request], origin: str) -> str | None:
        """Submit the requests that no open batch contains. Returns the budget cap that ended this, or None."""
        lines = {key: build_request_line(self.endpoint, self.spec, request) for key, request in requests.items()}
        for part in split_into_batches(lines, self.spec.batch.max_requests):
            if not (claimed := self.notes.claim(part, self.endpoint.identity, origin)):
                continue
            submission, keys = claimed
            keys, refusal = self._reserve(submission, [requests[key] for key in keys])
            if keys:
                await self._submit(submission, [part[key] for key in keys])
                self.submitted += len(keys)
            if refusal:
                remedy = "Raise the cap in task.yaml or of the command, and run again. Stored answers are kept."
                return f"{refusal}. {remedy}"
        return None

    def _reserve(self, submission: Submission, requests: list[Request]) -> tuple[list[str], str]:
        """Reserve the worst case of each request.

        It releases the requests that do not fit, and those that are under way online.

        Returns:
            The requests that may be submitted, and the reason if the budget refused others.
        """
        exact = self.account.budget.has_caps
        reservations = [
            Reservation(
                request.key,
                self.account,
                self.spec.model,
                compute_worst_case(request, self.price, exact=exact),
                0.0,
                mode="batch",
                id=_build_ledger_id(submission.submission, request.key),
            )
            for request in requests
        ]
        decided = self.store.commit({}, (), reservations)
        decisions = {reservation.key: decision for reservation, decision in zip(reservations, decided, strict=True)}
        granted = [key for key, decision in decisions.items() if decision.kind == "granted"]
        self.notes.release(submission.submission, decisions.keys() - set(granted))
        if not granted:
            self.notes.forget(submission.submission)
        refusals = [decision for decision in decisions.values() if decision.kind in ("over", "full")]
        reasons = (refusal.reason for refusal in refusals if refusal.reason)
        return granted, next(reasons, "requests under way reserve the rest of the budget") if refusals else ""

    async def _submit(self, submission: Submission, lines: list[str]) -> None:
        try:
            batch_id = await self.service.create(submission.submission, lines)
        except BaseException:  # refused, cut off or interrupted: the provider may have it all the same
            self.notes.abandon(submission.submission)
            await self._adopt()
            if any(each.submission == submission.submission for each in self.notes.list_open()):
                return
            raise
        self.notes.note_submitted(submission.submission, batch_id)

    async def _adopt(self) -> None:
        """Find out what became of the batches whose process died before it noted their id."""
        orphans = [
            submission
            for submission in self.notes.list_open(self.endpoint.identity)
            if submission.batch_id is None and not submission.is_submitting
        ]
        if not orphans:
            return
        batch_ids = await self.service.list_ids()
        for submission in orphans:
            if batch_id := batch_ids.get(submission.submission):
                self.notes.note_submitted(submission.submission, batch_id)
            else:
                self._release_unsubmitted(submission)

    def _release_unsubmitted(self, submission: Submission) -> None:
        """Release the requests of a batch that the provider never received. They cost nothing."""
        keys = self.notes.list_keys(submission.submission)
        self.store.commit({}, [Settlement(_build_ledger_id(submission.submission, key), "released") for key in keys])
        self.notes.forget(submission.submission)

    async def _wait(self, keys: list[str], deadline: float) -> None:
        """Wait until no open batch contains any of these requests.

        Raises:
            BatchPendingError: the deadline comes first.
        """
        pause = self.spec.batch.poll_s
        while names := self.notes.find_submissions(keys):
            answered = 0
            for submission in self.notes.list_open(self.endpoint.identity):
                if submission.submission not in names:
                    continue
                if submission.batch_id is not None:
                    answered += (await self._poll(submission))[0]
                elif not submission.is_submitting:
                    return  # its process died; `run` adopts it
            if not (names := self.notes.find_submissions(keys)):
                return
            progress.report_progress(self.service.waiting_for, min(answered, len(keys)), len(keys))
            if time.monotonic() + pause > deadline:
                batches = count_noun(len(names), "batch", "batches")
                requests = count_noun(len(keys), "request is", "requests are")
                raise BatchPendingError(
                    f"{batches} of {self.spec.model} under way; {answered} of {requests} answered so "
                    f"far. {self.service.remedy} Nothing is lost: `distill batches` shows and collects them, and the "
                    f"next run continues."
                )
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, MAX_POLL_FACTOR * self.spec.batch.poll_s)

    async def _poll(self, submission: Submission) -> tuple[int, CollectedBatch | None]:
        """Return how many requests of a batch are answered; collect the batch if it ended."""
        assert submission.batch_id is not None
        try:
            state = await self.service.look(submission.batch_id)
        except NotAtProviderError as error:
            if submission.submission not in {each.submission for each in self.notes.list_open(submission.teacher)}:
                return 0, None  # another process has just collected it
            command = f"distill batches {submission.origin.partition('/')[0]} --forget {submission.submission}"
            raise TeacherError(f"{error} If the batch is gone, give it up with `{command}`; then run again.") from None
        if state.status == "failed":
            missing = redact_error(
                "the batch was refused: " + ("; ".join(state.errors[:3]) or "no reason was given"), self.endpoint
            )
        elif state.status in _MISSING_REASONS:
            missing = _MISSING_REASONS[state.status]
        else:
            return state.answered, None
        lines = [line for file_id in state.files for line in await self._read_results(file_id)]
        collected = self._store(submission, state.status, lines, missing, state.answered)
        self.service.discard(submission.submission)
        return state.answered, collected

    async def _read_results(self, file_id: str) -> list[ResultLine]:
        """The lines of a result file. A file that the provider has deleted has none."""
        try:
            content = await self.service.read_file(file_id)
        except NotAtProviderError:
            return []
        return list(parse_result_lines(content, self.spec))

    def _store(
        self, submission: Submission, status: str, lines: list[ResultLine], missing: str, answered: int
    ) -> CollectedBatch:
        """Store the answers, then note the batch as collected, so that a crash in between loses nothing.

        Args:
            missing: the reason for requests that no line mentions.
            answered: how many requests the provider says it answered. More than there are lines were answered too.
        """
        keys = self.notes.list_keys(submission.submission)
        results = assign_lines(keys, lines, missing, answered)
        answers = {key: line.response for key, line in results.items() if line.response and not line.error}
        errors = {key: redact_error(line.error, self.endpoint) for key, line in results.items() if line.error}
        unusable = {
            key: UnusableAnswerError(errors[key], line.response)
            for key, line in results.items()
            if line.error and line.response
        }
        settlements = [self._settle(submission, key, line) for key, line in results.items()]
        self.store.commit(answers, settlements, unusable=unusable)
        stored = self.store.find_stored_keys(keys)
        errors = {key: error for key, error in errors.items() if key not in stored}
        self.notes.note_collected(submission.submission, errors)
        return CollectedBatch(submission, status, len(answers), len(errors))

    def _settle(self, submission: Submission, key: str, line: ResultLine) -> Settlement:
        """What a request of a batch cost: what its line says, or the worst case if it was billed, or nothing."""
        ledger_id, response = _build_ledger_id(submission.submission, key), line.response
        if response is not None and response.finish_reason == "content_filter" and response.prompt_tokens is None:
            return Settlement(ledger_id, "settled", 0, 0.0)
        if response is None or response.prompt_tokens is None or response.completion_tokens is None:
            return Settlement(ledger_id, "lost" if line.billed else "released")
        usd = response.cost_usd
        if usd is None and (price := self.price or find_price(self.spec)) is not None:
            # So that a cap holds if the batch price is unknown.
            usd = price.compute_cost(response.prompt_tokens, response.completion_tokens)
        return Settlement(ledger_id, "settled", response.prompt_tokens + response.completion_tokens, usd)


def _build_ledger_id(submission: str, key: str) -> str:
    """The ledger id of a request in a batch. Any process that collects the batch can compute it."""
    return hash_content([submission, key])[:32]
