"""Batch mode: requests go to the provider's batch API, which answers within a day at a lower price.

A batch is noted in the completion store's database before it is sent, with the requests in it, and again with the
provider's id after. A process that is killed in between leaves a note without an id: whoever comes next looks among
the provider's batches for the one that carries our name, and adopts it or submits anew. So none is lost and none is
sent twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill_dagster.config import TeacherSpec
from distill_dagster.core import progress, redaction
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.teacher.completions.batch_store import BatchStore, Submission
from distill_dagster.teacher.completions.ledger import Account, Reservation, Settlement
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import BudgetError
from distill_dagster.teacher.providers.client import Endpoint, parse_response, redact_error, redact_response
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.prices import TokenPrice, compute_worst_case, find_price

SUBMISSION_KEY = "distill_submission"
"""The key of a batch's metadata under which our name of it stands."""
BATCH_PROVIDERS = ("openai", "azure", "hosted_vllm", "litellm_proxy")
"""Those with OpenAI's batch API whose batches litellm can list too, which surviving a kill needs."""
MAX_BATCH_REQUESTS, MAX_BATCH_BYTES = 50_000, 100 * 1024 * 1024
"""Of one batch: as many requests as OpenAI takes, and half of the bytes."""
MAX_POLL_FACTOR = 10
"""Polling slows down to so many times its first pause."""
PAGE_SIZE = 100
RESUBMIT_PAUSE_S = 0.05
_MISSING_REASONS = {
    "completed": "the batch ended without an answer to this",
    "expired": "the batch expired before this was answered; the next run asks again",
    "cancelled": "the batch was cancelled before this was answered; the next run asks again",
}


class BatchPendingError(TeacherError):
    """Batches are under way and not ready. Nothing is lost: whoever looks later finds their answers."""


@dataclass(frozen=True)
class CollectedBatch:
    """A batch that ended: how many answers came, and how many did not."""

    submission: Submission
    status: str
    answers: int
    failed: int

    def __str__(self) -> str:
        told = f"{self.answers} answers" + (f", {self.failed} without one" if self.failed else "")
        return f"{self.submission.origin}: batch {self.submission.batch_id} {self.status}: {told}"


@dataclass(frozen=True)
class _ResultLine:
    """One line of a batch's result: an answer, or why there is none."""

    key: str
    response: Response | None
    error: str


def collect_batches(
    endpoint: Endpoint, spec: TeacherSpec, store: CompletionStore, task: str
) -> tuple[list[CollectedBatch], list[Submission]]:
    """Collect a task's batches that ended, submitting nothing; and those that are under way.

    Raises:
        TeacherError: the provider cannot be asked.
    """
    batches = BatchRunner(endpoint, spec, store)
    if not batches.notes.open(endpoint.identity, task):
        return [], []
    return event_loop.run_in_loop(batches.collect(task)), batches.notes.open(endpoint.identity, task)


def forget_batch(store: CompletionStore, submission: str) -> None:
    """Wait for a batch no more. Its worst case counts as spent, since the provider may answer and bill it."""
    notes = BatchStore(store)
    store.commit({}, [Settlement(_build_ledger_id(submission, key), "lost") for key in notes.keys(submission)])
    notes.forget(submission)


class BatchRunner:
    """The batches of one teacher: submitting, looking after, and collecting them."""

    def __init__(
        self,
        endpoint: Endpoint,
        spec: TeacherSpec,
        store: CompletionStore,
        account: Account | None = None,
        price: TokenPrice | None = None,
    ) -> None:
        """`account` is who pays, and `price` what is reserved by: the one for online requests, which is no less."""
        self.endpoint, self.spec, self.store = endpoint, spec, store
        self.account, self.price = account or Account("", "", ""), price
        self.notes = BatchStore(store)
        self.submitted = 0

    async def run(self, requests: Sequence[Request], origin: str) -> dict[str, str]:
        """Submit what neither the store nor an open batch has, and wait for all of it for `batch.wait_s` at most.

        Args:
            origin: `task/asset[partition]`, for which it is asked.

        Returns:
            By request_key, why a request has no answer. All others have theirs in the store.

        Raises:
            PendingError: the batches are not ready yet.
            TeacherError: the provider has no batch API, or refuses.
        """
        self._provider()
        wanted, errors = {request.key: request for request in requests}, dict[str, str]()
        until = time.monotonic() + self.spec.batch.wait_s
        while True:
            await self.collect()
            stored = self.store.known(wanted)
            # Failures of a batch that nobody waited for are told now, and asked again the next time.
            errors |= self.notes.take_errors(key for key in wanted if key not in stored)
            rest = {key: request for key, request in wanted.items() if key not in stored and key not in errors}
            if not rest:
                return errors
            for part in _split_into_batches({key: self._line(request) for key, request in rest.items()}):
                if claimed := self.notes.claim(part, self.endpoint.identity, origin):
                    submission, keys = claimed
                    keys, over = self._reserve(submission, [rest[key] for key in keys])
                    if keys:
                        await self._submit(submission, [part[key] for key in keys])
                        self.submitted += len(keys)
                    if over:
                        what = "Raise it, in task.yaml or of the command, and run again: what was submitted is kept."
                        raise BudgetError(f"{over}. {what}")
            await self._wait(list(rest), until)
            await asyncio.sleep(RESUBMIT_PAUSE_S)  # what somebody asks online just now is in no batch

    def _reserve(self, submission: Submission, requests: list[Request]) -> tuple[list[str], str]:
        """Reserve the worst case of each; those that may be submitted, and why others may not.

        The others are given free, and so are those that somebody asks online just now: their answer is waited for.
        """
        exact = self.account.budget.any
        wanted = [
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
        verdicts = dict(zip((one.key for one in wanted), self.store.commit({}, (), wanted), strict=True))
        granted = [key for key, verdict in verdicts.items() if verdict.kind == "granted"]
        self.notes.release(submission.submission, verdicts.keys() - set(granted))
        if not granted:
            self.notes.forget(submission.submission)
        refused = [verdict for verdict in verdicts.values() if verdict.kind in ("over", "full")]
        why = next((verdict.why for verdict in refused if verdict.why), "the budget is reserved by requests under way")
        return granted, why if refused else ""

    def _forget(self, submission: Submission) -> None:
        """It was never submitted: nothing of it is paid for."""
        keys = self.notes.keys(submission.submission)
        self.store.commit({}, [Settlement(_build_ledger_id(submission.submission, key), "released") for key in keys])
        self.notes.forget(submission.submission)

    async def collect(self, task: str | None = None) -> list[CollectedBatch]:
        """Look once at every open batch, of one task or of all; the answers of those that ended go into the store.

        Raises:
            TeacherError: the provider cannot be asked.
        """
        await self._adopt()
        looked: list[CollectedBatch] = []
        for submission in self.notes.open(self.endpoint.identity, task):
            if submission.batch_id is not None:
                _, done = await self._look(submission)
                looked += [done] if done else []
        return looked

    async def _adopt(self) -> None:
        """Find out what became of batches whose process died before it knew their id."""
        left = [s for s in self.notes.open(self.endpoint.identity) if s.batch_id is None and not s.submitting]
        if not left:
            return
        there = await self._named()
        for submission in left:
            if batch_id := there.get(submission.submission):
                self.notes.submitted(submission.submission, batch_id)
            else:
                self._forget(submission)

    async def _named(self) -> dict[str, str]:
        """The provider's ids of batches, by our names of them."""
        import litellm

        found: dict[str, str] = {}
        after: str | None = None
        while True:
            page = await self._call(litellm.alist_batches, after=after, limit=PAGE_SIZE)
            batches = list(page.data if hasattr(page, "data") else page["data"])
            for batch in batches:
                if name := (batch.metadata or {}).get(SUBMISSION_KEY):
                    found[name] = batch.id
            if len(batches) < PAGE_SIZE or batches[-1].id == after:
                return found
            after = batches[-1].id

    async def _submit(self, submission: Submission, lines: list[str]) -> None:
        try:
            batch_id = await self._created(submission.submission, lines)
        except BaseException:  # refused, cut off or interrupted: it may have reached the provider all the same
            self.notes.abandon(submission.submission)
            await self._adopt()
            if any(one.submission == submission.submission for one in self.notes.open()):
                return
            raise
        self.notes.submitted(submission.submission, batch_id)

    async def _created(self, name: str, lines: list[str]) -> str:
        import litellm

        content = "".join(f"{line}\n" for line in lines).encode()
        file = await self._call(litellm.acreate_file, file=(f"{name}.jsonl", content), purpose="batch")
        batch = await self._call(
            litellm.acreate_batch,
            completion_window="24h",
            endpoint=self._url,
            input_file_id=file.id,
            metadata={SUBMISSION_KEY: name},
        )
        return str(batch.id)

    async def _wait(self, keys: list[str], until: float) -> None:
        """Until no open batch holds any of these requests."""
        pause = self.spec.batch.poll_s
        while held := self.notes.holding(keys):
            done, total = 0, len(keys)
            for submission in self.notes.open(self.endpoint.identity):
                if submission.submission not in held:
                    continue
                if submission.batch_id is not None:
                    answered, _ = await self._look(submission)
                    done += answered
                elif not submission.submitting:
                    return  # its process died: `run` looks for it
            if not (held := self.notes.holding(keys)):
                return
            progress.report_progress("waiting for the batch", min(done, total), total)
            if time.monotonic() + pause > until:
                batches = "1 batch" if len(held) == 1 else f"{len(held)} batches"
                raise BatchPendingError(
                    f"{batches} of {self.spec.model} under way; {done} of {total} requests are answered so far. "
                    f"Nothing is lost: `distill batches` shows and collects them, and the next run goes on with them."
                )
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, MAX_POLL_FACTOR * self.spec.batch.poll_s)

    async def _look(self, submission: Submission) -> tuple[int, CollectedBatch | None]:
        """How many of its requests are answered; and, if it ended, what was collected."""
        import litellm

        batch = await self._call(litellm.aretrieve_batch, batch_id=submission.batch_id)
        counts = batch.request_counts
        answered = int(counts.completed if counts is not None else 0)
        if batch.status == "failed":
            told = [str(error.message) for error in (batch.errors.data if batch.errors else None) or []]
            why = "the batch was refused: " + ("; ".join(told[:3]) or "no reason was given")
            return answered, self._store(submission, "failed", [], redact_error(why, self.endpoint))
        if batch.status not in _MISSING_REASONS:
            return answered, None
        lines: list[_ResultLine] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = await self._call(litellm.afile_content, file_id=file_id)
                lines += self._lines(content.content)
        return answered, self._store(submission, batch.status, lines, _MISSING_REASONS[batch.status])

    def _store(self, submission: Submission, status: str, lines: list[_ResultLine], missing: str) -> CollectedBatch:
        """Answers first, then the note: an answer is durable before its batch counts as collected."""
        keys, errors = set(self.notes.keys(submission.submission)), dict[str, str]()
        answers: dict[str, Response] = {}
        for line in (line for line in lines if line.key in keys):
            if line.response is not None:
                answers[line.key] = line.response
            else:
                errors[line.key] = redact_error(line.error, self.endpoint)
        ended = [self._ended(submission, key, answers.get(key)) for key in sorted(keys)]
        self.store.commit(answers, ended)
        stored = self.store.known(keys)
        errors = {key: errors.get(key, missing) for key in keys if key not in stored}
        self.notes.collected(submission.submission, errors)
        return CollectedBatch(submission, status, len(answers), len(errors))

    def _ended(self, submission: Submission, key: str, response: Response | None) -> Settlement:
        """What a request of a batch came to: a line that failed or expired is not paid for."""
        name = _build_ledger_id(submission.submission, key)
        if response is None:
            return Settlement(name, "released")
        prompt, answer = response.prompt_tokens or 0, response.completion_tokens or 0
        usd = response.cost_usd
        if usd is None and (price := self.price or find_price(self.spec)) is not None:
            usd = price.of(prompt, answer)  # the cap holds, whatever the batch's own price is
        return Settlement(name, "settled", prompt + answer, usd)

    def _lines(self, content: bytes) -> Iterator[_ResultLine]:
        for text in content.decode("utf-8", "replace").splitlines():
            if not text.strip():
                continue
            try:
                value = json.loads(text)
                key, response = str(value["custom_id"]), value.get("response") or {}
                body, status = response.get("body") or {}, int(response.get("status_code") or 0)
                error = value.get("error") or body.get("error")
                if error or status != 200:
                    said = error.get("message") or error.get("code") if isinstance(error, dict) else error
                    yield _ResultLine(key, None, f"{said or 'no reason was given'} (status {status})")
                else:
                    yield self._answer(key, body)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                continue  # a line that cannot be read answers nothing: its request is told to have no answer

    def _answer(self, key: str, body: dict[str, Any]) -> _ResultLine:
        found = redact_response(parse_response(body, 0.0, 0), redaction.list_credentials())
        cost = compute_batch_cost(self.spec, found.prompt_tokens, found.completion_tokens)
        response = replace(found, cost_usd=cost, mode="batch")
        if self.spec.soft_labels == "logprobs" and response.text and not response.positions:
            return _ResultLine(key, None, "no token log-probabilities came; set `soft_labels: votes` in task.yaml")
        return _ResultLine(key, response, "")

    def _line(self, request: Request) -> str:
        """One line of a batch file: the request as the provider's own API takes it."""
        import litellm

        model = litellm.get_llm_provider(self.spec.model)[0]
        body: dict[str, Any] = {"model": model} | request.build_body()
        if "seed" not in (litellm.get_supported_openai_params(self.endpoint.model) or ["seed"]):
            body.pop("seed", None)
        line = {"custom_id": request.key, "method": "POST", "url": self._url, "body": body}
        return json.dumps(line, ensure_ascii=False)

    @property
    def _url(self) -> str:
        return "/v1/completions" if self.spec.api == "text" else "/v1/chat/completions"

    def _provider(self) -> str:
        """The teacher's provider as litellm calls it.

        Raises:
            TeacherError: it has no batch API that litellm speaks.
        """
        import litellm

        try:
            provider = str(litellm.get_llm_provider(self.spec.model)[1])
        except Exception:
            provider = self.spec.model.partition("/")[0]
        if provider not in BATCH_PROVIDERS:
            raise TeacherError(
                f"There is no batch API for {self.spec.model}: batch mode is for {', '.join(BATCH_PROVIDERS)}. Set "
                f"`mode: online` in task.yaml."
            )
        return provider

    async def _call(self, call: Any, **arguments: Any) -> Any:
        """One call of litellm's, with the teacher's address and key, retried where the provider is overloaded.

        Raises:
            TeacherError: it failed; the message holds no key.
        """
        import litellm
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        litellm.suppress_debug_info = True
        where: dict[str, Any] = {"custom_llm_provider": self._provider(), "timeout": self.spec.timeout_s}
        where["max_retries"] = 0
        if self.endpoint.api_base:
            where["api_base"] = self.endpoint.api_base
        if self.endpoint.api_key:
            where["api_key"] = self.endpoint.api_key
        # Creating a batch is not repeated here: a cut connection may have made it. `_submit` looks.
        attempts = 1 if call is litellm.acreate_batch else self.spec.max_retries + 1
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_retryable),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            reraise=True,
        )
        try:
            return await retrying(call, **arguments, **where)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise TeacherError(redact_error(f"The batch API of {self.spec.model}: {what}", self.endpoint)) from None


def _build_ledger_id(submission: str, key: str) -> str:
    """A request's entry in the ledger: whoever collects a batch knows it, also in another process."""
    return hash_content([submission, key])[:32]


def compute_batch_cost(spec: TeacherSpec, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """USD by the declared price, else by litellm's list of prices for batches; None without either: never a guess."""
    import litellm

    model = spec.model
    if spec.price is not None and prompt_tokens is not None and completion_tokens is not None:
        return TokenPrice(spec.price.input_usd, spec.price.output_usd).of(prompt_tokens, completion_tokens)
    found = litellm.model_cost.get(model) or litellm.model_cost.get(model.partition("/")[2]) or {}
    prices = found.get("input_cost_per_token_batches"), found.get("output_cost_per_token_batches")
    if prompt_tokens is None or completion_tokens is None or prices[0] is None or prices[1] is None:
        return None
    return prompt_tokens * float(prices[0]) + completion_tokens * float(prices[1])


def _is_retryable(error: BaseException) -> bool:
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 409, 429) or int(status) >= 500


def _split_into_batches(lines: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Request lines in parts that one batch may hold."""
    part, size = dict[str, str](), 0
    for key, line in lines.items():
        length = len(line.encode()) + 1
        if part and (len(part) == MAX_BATCH_REQUESTS or size + length > MAX_BATCH_BYTES):
            yield part
            part, size = {}, 0
        part[key] = line
        size += length
    if part:
        yield part
