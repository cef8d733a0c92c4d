"""Asking a teacher for a table of prompts: stored answers are not asked again, new ones are stored before use."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import polars as pl

from distill_dagster.core.errors import TeacherError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.kinds import ParsedAnswer, get_kind
from distill_dagster.kinds.stated_probabilities import build_distribution
from distill_dagster.teacher.asking import soft_labels
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt, read_asked_prompts
from distill_dagster.teacher.asking.label_answers import read_label, read_soft_label, skip_thinking
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.asking.response_columns import (
    CHUNK_ROWS,
    COMPLETIONS_ORDER,
    CompletionRows,
    build_response_columns,
    round_soft_labels,
    sum_attempts,
)
from distill_dagster.teacher.completions.ask_all import ask_all, require_success
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import PermanentTeacherError, UnusableAnswerError
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.finish_reasons import BROKEN_OFF

RESOLVE_SHARE = 0.02
"""Labels with the same beginning are asked for again if their common share of the mass is larger."""
RESOLVE_DEPTH = 6
"""How many times an answer is asked for again to tell such labels apart."""
SMOKE_FROM_FACTOR = 8
"""A smoke test takes place if there are at least this many times `smoke_rows` requests."""
FREEZE_JOBS = 1000
"""From so many rows on, it pays to keep the garbage collector from what was there before."""
MAX_ERROR_CHARS = 200
"""Characters of an unusable answer in an error message."""


@dataclass(frozen=True)
class AskResult:
    """The completions of a table of prompts, and what they took."""

    completions: pl.DataFrame
    usage: Usage

    @property
    def missing_rows(self) -> int:
        """The number of prompts with a sample that was not received. Asking again may return it.

        A truncated or filtered answer was received. It is stored, and asking again would return the same.
        """
        return self.completions.filter(pl.col("status") == "failed")["prompt_id"].n_unique()

    @property
    def usable_prompts(self) -> int:
        """The number of prompts with at least one usable sample."""
        return self.completions.filter(pl.col("status") == "ok")["prompt_id"].n_unique()


class AskJob(NamedTuple):
    """One sample of one prompt to ask for."""

    prompt_id: str
    slice: str
    prompt: AskedPrompt
    sample: int


class Asker:
    """Asks one teacher for one table of prompts. Each table needs an asker of its own."""

    def __init__(
        self,
        requests: RequestBuilder,
        store: CompletionStore,
        account: Account | None = None,
        name: str | None = None,
        origin: str = "",
    ) -> None:
        """Prepare to ask the teacher that `requests` is for.

        Args:
            account: who pays; without one there is no cap.
            name: the value of the column `teacher`; by default the model.
            origin: `task/asset[partition]` for the notes on batches.
        """
        self.requests, self.task, self.spec, self.origin = requests, requests.task, requests.spec, origin
        self.name = name or self.spec.model
        self.replayed = requests.endpoint.recorded is not None
        self.engine = CompletionEngine(requests.endpoint, self.spec, store, account)
        self._rows = CompletionRows(
            "replay" if self.replayed else self.spec.mode,
            {
                "teacher": self.name,
                "answer_kind": get_kind(self.task).answer_kind,
                "template_version": requests.templates.version,
            },
        )
        self._done = self._all_jobs = self._stored_jobs = 0
        self._sends_logprobs, self._without_logprobs = False, 0
        # Most answers are the bare name of a label, so there are few different ones.
        self._read_label = lru_cache(maxsize=4096)(partial(read_label, labels=self.task.label_names))

    async def ask(
        self, prompts: pl.DataFrame, samples: Callable[[str], list[int]] | None = None, sequential: int = 0
    ) -> AskResult:
        """Ask for every sample of every prompt, sample by sample, so that requests with the same prefix are neighbors.

        Args:
            prompts: a table with the schema PROMPTS.
            samples: the sample indexes to ask for, by prompt_id; by default all of them.
            sequential: asks the first `sequential` prompts one by one, which measures the latency of one request.

        Raises:
            TeacherError: the teacher refuses every request, the smoke test failed, or fewer than `min_success` of the
                prompts have an answer. A budget stop raises nothing: the rows that were not asked are `failed`.
        """
        started = time.perf_counter()
        jobs = self._plan_jobs(prompts, samples, sequential)
        self._all_jobs = len(jobs)
        sequential_ids = set(prompts["prompt_id"].head(sequential))
        try:
            jobs = await self._answer_from_store(jobs)
            jobs = await self._run_smoke_test(jobs)
            if self.spec.mode == "batch":
                await self.engine.submit_batches(
                    [self.requests.build(job.prompt, job.sample) for job in jobs], self.origin
                )
            await ask_all(self.engine, [job for job in jobs if job.prompt_id in sequential_ids], self._ask_job, width=1)
            await ask_all(self.engine, [job for job in jobs if job.prompt_id not in sequential_ids], self._ask_job)
        finally:
            await self.engine.close()
        result = AskResult(self._rows.build(), self.engine.build_usage(time.perf_counter() - started))
        errors = result.completions["error"].drop_nulls().head(1)
        require_success(
            self.engine,
            result.usable_prompts,
            prompts["prompt_id"].n_unique(),
            self.spec.min_success,
            items="prompts",
            setting="teacher.min_success",
            first_error=errors.item() if len(errors) else None,
        )
        return result

    def _plan_jobs(
        self, prompts: pl.DataFrame, samples: Callable[[str], list[int]] | None, sequential: int
    ) -> list[AskJob]:
        """All jobs in the order in which they are asked: sequential prompts first, then sample by sample."""
        by_id = read_asked_prompts(prompts, refusals=self.requests.free_text is not None)
        self.requests.choice.prepare([prompt.text for prompt in by_id.values()])
        slices = dict(zip(prompts["prompt_id"], prompts["slice"], strict=True))
        wanted = {
            id_: samples(id_) if samples else self.requests.list_samples(prompt.text) for id_, prompt in by_id.items()
        }
        ids, numbers = list(by_id), sorted({number for chosen in wanted.values() for number in chosen})
        return [
            AskJob(id_, slices[id_], by_id[id_], number)
            for part in (ids[:sequential], ids[sequential:])
            for number in numbers
            for id_ in part
            if number in wanted[id_]
        ]

    async def _answer_from_store(self, jobs: list[AskJob]) -> list[AskJob]:
        """Answer the jobs whose answers are stored, and return the others."""
        remaining: list[AskJob] = []
        # Unfreezing makes all garbage of this time old, and old garbage waits for a collection of everything. A server
        # that asks row by row would grow by 20 KB with each.
        with _freeze_garbage_collector() if len(jobs) >= FREEZE_JOBS else nullcontext():
            for start in range(0, len(jobs), CHUNK_ROWS):
                chunk = [(job, self.requests.build(job.prompt, job.sample)) for job in jobs[start : start + CHUNK_ROWS]]
                stored = self.engine.preload(request.key for _, request in chunk)
                for job, request in chunk:
                    if request.key in stored:
                        self._stored_jobs += 1
                        await self._ask_row(job, request)
                    else:
                        remaining.append(job)
        return remaining

    async def _run_smoke_test(self, jobs: list[AskJob]) -> list[AskJob]:
        """Ask for a few rows before many, once per teacher and template, and return the other jobs.

        A budget stop decides nothing: the smoke test neither passes nor fails, and runs again the next time.

        Raises:
            TeacherError: too few of the answers are usable.
        """
        rows = self.spec.smoke_rows
        if self.replayed or self.spec.has_no_server or not rows or len(jobs) < SMOKE_FROM_FACTOR * rows:
            return jobs
        asked = [self.requests.endpoint.identity, self.requests.templates.version, self.task.kind]
        asked += [self.spec.soft_labels] if self.requests.stated is not None else []  # they share a template
        key = hash_content(asked)
        if self.engine.store.has_passed_smoke(key):
            return jobs
        first: dict[str, AskJob] = {}
        for job in jobs:
            if len(first) < rows:
                first.setdefault(job.prompt_id, job)
        sent = list(first.values())
        answers = [row for row in await ask_all(self.engine, sent, self._ask_row) if isinstance(row, dict)]
        remaining = [job for job in jobs if first.get(job.prompt_id) is not job]
        if self.engine.over_budget or self.engine.pending:
            return remaining
        unusable = [row for row in answers if row["status"] != "ok" or not self._is_complete(row)]
        if len(unusable) > len(sent) // 8:
            example = unusable[0].get("error") or repr((unusable[0].get("raw_text") or "")[:MAX_ERROR_CHARS])
            raise TeacherError(
                f"The smoke test of {count_noun(len(sent), 'row')} returned "
                f"{count_noun(len(sent) - len(unusable), 'usable answer')} from {self.spec.model}, so the other "
                f"{count_noun(len(remaining), 'request')} were not sent. One unusable answer: "
                f"{example}. Fix the teacher's settings or the template, or set teacher.smoke_rows: 0 to skip the test."
            )
        self.engine.store.note_passed_smoke(key)
        return remaining

    async def _ask_job(self, job: AskJob) -> None:
        await self._ask_row(job)

    async def _ask_row(self, job: AskJob, request: Request | None = None) -> dict[str, Any]:
        """Ask for one job and add its row to the table; `request` is its request, if it was built before."""
        row = await self.ask_sample(job.prompt, job.sample, request)
        row["prompt_id"], row["sample_index"], row["slice"] = job.prompt_id, job.sample, job.slice
        self._rows.add(row)
        self._done += 1
        self.engine.report_progress("asking the teacher", self._done, self._all_jobs, self._stored_jobs)
        return row

    async def ask_sample(self, prompt: AskedPrompt, sample: int, request: Request | None = None) -> dict[str, Any]:
        """Ask for one sample of one prompt, and return the answer's columns of its completions row.

        An answer that is received and unusable (empty, of a wrong form) is asked for again, up to `reasks` times. So is
        one without the soft labels that it was to state. The row is that of the last answer, with the tokens, cost and
        seconds of all.
        """
        request = request or self.requests.build(prompt, sample)
        rows: list[dict[str, Any]] = []
        # A recording never changes, and a batch would take another day.
        reasks = 0 if self.replayed or self.spec.mode == "batch" else self.spec.reasks
        for attempt in range(reasks + 1):
            rows.append(await self._ask_once(prompt, sample, replace(request, attempt=attempt) if attempt else request))
            if rows[-1]["status"] != "ok" or self._is_complete(rows[-1]) or self.spec.soft_labels == "logprobs":
                break
        return rows[-1] if len(rows) == 1 or rows[-1]["status"] == "failed" else sum_attempts(rows)

    def _is_complete(self, row: dict[str, Any]) -> bool:
        """Whether a row has an answer, with the soft labels that it was to state."""
        return row["answer"] is not None and (self.requests.stated is None or row["soft_labels"] is not None)

    async def _ask_once(self, prompt: AskedPrompt, sample: int, request: Request) -> dict[str, Any]:
        """Ask once. Whatever comes, it costs no other row: what cannot be used fails with its reason and its body."""
        responses: list[Response] = []
        try:
            responses.append(await self.engine.answer(request, self._refuse_without_logprobs))
            return await self._read_response(prompt, sample, request, responses)
        except PermanentTeacherError:
            raise
        except UnusableAnswerError as error:
            responses, why = [error.answer], f"the answer to {prompt.quoted} cannot be used: {error}"
        except TeacherError as error:
            return {"request_key": request.key, "status": "failed", "error": str(error), "params": request.params}
        except Exception as error:
            if not responses:  # not the answer's fault
                raise
            why = f"the answer to {prompt.quoted} cannot be read: {type(error).__name__}: {error}"
        return build_response_columns(request, responses) | {"status": "failed", "error": why, "latency_s": None}

    async def _read_response(
        self, prompt: AskedPrompt, sample: int, request: Request, responses: list[Response]
    ) -> dict[str, Any]:
        """The columns of the row of a response. Further responses that it needs go to `responses`."""
        response = responses[0]
        if response.finish_reason == BROKEN_OFF:  # recorded, or stored by an earlier version
            error = "the provider broke the answer off"
            return build_response_columns(request, responses) | {"status": "truncated", "error": error}
        if self.requests.free_text is not None:
            columns = build_response_columns(request, responses)
            columns |= self.requests.free_text.read_response(prompt, request, response)
            shares = self._read_recorded_shares(response, columns.get("answer"))
            return columns | {"soft_labels": round_soft_labels(shares)}
        if self.requests.stated is not None:
            return build_response_columns(request, responses) | self.requests.stated.read_response(response)
        shares, label = await self._read_shares(prompt, sample, response, responses)
        columns = build_response_columns(request, responses)
        if response.finish_reason == "refusal":
            error = f"the teacher refused: {response.text[:MAX_ERROR_CHARS]}"
            return columns | {"status": "refused", "reasoning": response.reasoning, "error": error}
        if response.finish_reason == "content_filter":
            return columns | {"status": "filtered", "reasoning": response.reasoning}
        return (
            columns
            | vars(label)
            | {"reasoning": response.reasoning or label.reasoning, "soft_labels": round_soft_labels(shares)}
        )

    def _refuse_without_logprobs(self, response: Response) -> None:
        """Refuse, and do not store, a response without the log-probabilities that were asked for.

        If two answers have none and no answer has any, the next would have none either and would be paid for too, so
        nothing more is sent. After a fix of the server, the same request can be sent again.
        """
        if self.spec.soft_labels != "logprobs" or response.finish_reason in ("refusal", "content_filter"):
            return
        self._sends_logprobs |= bool(response.positions)
        if response.positions or not response.text:
            return
        self._without_logprobs += 1
        why = f"{self.spec.model} sent no token log-probabilities."
        why += " Set `soft_labels: votes` in task.yaml, or make the server send them."
        if self._sends_logprobs or self._without_logprobs == 1:
            raise UnusableAnswerError(why, response)
        raise PermanentTeacherError(why)

    def _read_recorded_shares(self, response: Response, answer: str | None) -> dict[str, float] | None:
        """The distribution over labels that a recording states next to its answer (canonical JSON), if it does."""
        if response.soft_labels is None or answer is None or not self.task.has_labels:
            return None
        return build_distribution(response.soft_labels, self.task.label_names, json.loads(answer))

    async def _read_shares(
        self, prompt: AskedPrompt, sample: int, response: Response, responses: list[Response]
    ) -> tuple[dict[str, float] | None, ParsedAnswer]:
        """The distribution over labels in a response, if there is one, and its label.

        Further responses, which tell labels with the same beginning apart, go to `responses`.
        """
        if self.spec.soft_labels != "logprobs":
            label = self._read_label(response.text, cut=response.finish_reason == "length")
            return self._read_recorded_shares(response, label.answer), label
        labels = self.task.label_names
        positions, thinking = skip_thinking(response.positions)
        if positions is None:
            return None, read_soft_label(thinking, None, None)
        mass = soft_labels.compute_label_mass(positions, labels, ended=response.finish_reason == "stop")
        if mass.total < mass.least and not self.spec.boost_labels:  # which makes every label likely
            return None, read_soft_label(thinking, None, mass)
        resolved: set[str] = set()
        for depth in range(RESOLVE_DEPTH if self.spec.resolve_labels else 0):
            least = RESOLVE_SHARE * mass.total
            unresolved = [text for text, share in mass.shared.items() if share > least and text not in resolved]
            if not unresolved:
                break
            for spelled in unresolved:
                request = self.requests.build(prompt, sample, spelled)
                more = await self.engine.answer(request, self._refuse_without_logprobs)
                responses.append(more)
                resolved.add(spelled)
                inner = soft_labels.compute_label_mass(more.positions, labels, spelled, more.finish_reason == "stop")
                if depth < RESOLVE_DEPTH - 1 or not inner.shared:
                    mass.resolve(spelled, inner)
        shares = soft_labels.divide_shared(mass, labels)
        if self.spec.calibration != "none" and sum(shares.values()) > 0:
            shares = soft_labels.fill_missing_mass(shares, positions[0])
        normalized = soft_labels.normalize_mass(shares)
        return normalized, read_soft_label(thinking, normalized, mass)


@contextmanager
def _freeze_garbage_collector() -> Iterator[None]:
    """Exclude all existing objects from garbage collection, which many short-lived rows would trigger often.

    Where the caller has excluded some already, they stay so, and nothing is done here.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def merge_results(results: list[AskResult]) -> AskResult:
    """The results of several teachers as one."""
    if len(results) == 1:
        return results[0]
    completions = pl.concat([result.completions for result in results]).sort(COMPLETIONS_ORDER)
    return AskResult(completions, sum((result.usage for result in results), Usage()))


def run_ask(asker: Asker, prompts: pl.DataFrame, **kwargs: Any) -> AskResult:
    """`Asker.ask` from synchronous code."""
    return event_loop.run_in_loop(asker.ask(prompts, **kwargs))
