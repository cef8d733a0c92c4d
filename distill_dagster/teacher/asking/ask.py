"""Asking the teacher for a table of prompts: what is stored is not asked, what is asked is stored before it is used."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import polars as pl

from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.kinds import get_kind
from distill_dagster.kinds.classification import parse_label
from distill_dagster.tables.schemas import COMPLETIONS, conform_to_schema
from distill_dagster.teacher.asking import soft_labels
from distill_dagster.teacher.asking.free_text import AskedPrompt, get_asked_text, read_asked_prompts
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.asking.response_columns import (
    build_completions,
    build_response_columns,
    round_soft_labels,
    sum_attempts,
)
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import PermanentTeacherError
from distill_dagster.teacher.providers.exchange import Request, Response

RESOLVE_SHARE = 0.02
"""Labels that share their beginning are told apart only where they hold more than this share of the mass."""
RESOLVE_DEPTH = 6
COMPLETIONS_ORDER = ("prompt_id", "teacher", "sample_index")
CHUNK_ROWS = 500
"""Requests that are looked up in the store together, and rows that are made into columns together."""
SMOKE_FROM_FACTOR = 8
"""So many times the smoke's rows are worth a smoke."""


@dataclass(frozen=True)
class AskResult:
    """Completions of a table of prompts, and what they took."""

    completions: pl.DataFrame
    calls: int
    cached: int
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens of the requests that were sent, without those that the store answered."""
    spent_usd: float | None = 0.0
    """What those requests cost; None where a price is unknown."""
    stopped: str | None = None
    """Why nothing more was sent, where a cap was reached: what came until then stands in the table."""

    @property
    def missing_rows(self) -> int:
        """Prompts of which a sample was not received: asking again may bring it.

        An answer that was cut or filtered was received; it is stored, and asking again would bring the same.
        """
        return self.completions.filter(pl.col("status") == "failed")["prompt_id"].n_unique()

    @property
    def usable_prompts(self) -> int:
        """Prompts with at least one usable sample."""
        return self.completions.filter(pl.col("status") == "ok")["prompt_id"].n_unique()


class Asker:
    """Everything that asking needs, for one task."""

    def __init__(
        self,
        requests: RequestBuilder,
        store: CompletionStore,
        account: Account | None = None,
        name: str | None = None,
        origin: str = "",
    ) -> None:
        """`name` is what stands in the column `teacher`; `origin` is for whom it asks, `task/asset[partition]`, in the
        notes on batches."""
        self.requests, self.task, self.spec, self.origin = requests, requests.task, requests.spec, origin
        self.name = name or self.spec.model
        self.replayed = requests.endpoint.recorded is not None
        self.engine = CompletionEngine(requests.endpoint, self.spec, store, account)
        self._to_ask = 0
        # Most answers are the bare name of a label, and few of them differ.
        self._label = lru_cache(maxsize=4096)(partial(parse_label, labels=self.task.label_names))

    def _refuse(self, response: Response) -> None:
        """Not stored: once the server is mended, the same request has to be asked again."""
        if self.spec.soft_labels == "logprobs" and response.text and not response.positions:
            raise PermanentTeacherError(  # the next answer would have none either, and would be paid for too
                f"{self.spec.model} sent no token log-probabilities. Set `soft_labels: votes` in task.yaml, or let the "
                f"server send them."
            )

    async def sample(self, asked: str | AskedPrompt, sample: int, request: Request | None = None) -> dict[str, Any]:
        """One sample of one prompt as the answer's columns of a completions row; `request` saves making it again.

        An answer that came and cannot be used (empty, of a wrong form) is asked for anew, `reasks` times: the row is
        the last answer's, with what all of them took.
        """
        request = request or self.requests.make(asked, sample)
        rows: list[dict[str, Any]] = []
        # What was recorded stays as it is, and a batch would take another day.
        anew = 0 if self.replayed or self.spec.mode == "batch" else self.spec.reasks
        for attempt in range(anew + 1):
            rows.append(await self._sample(asked, sample, replace(request, attempt=attempt) if attempt else request))
            if rows[-1]["status"] != "ok" or rows[-1]["answer"] is not None or self.spec.soft_labels == "logprobs":
                break
        return rows[-1] if len(rows) == 1 or rows[-1]["status"] == "failed" else sum_attempts(rows)

    async def _sample(self, asked: str | AskedPrompt, sample: int, request: Request) -> dict[str, Any]:
        text = get_asked_text(asked)
        try:
            response = await self.engine.answer(request, self._refuse)
            responses = [response]
            soft = await self._soft_labels(text, sample, response, responses)
        except PermanentTeacherError:
            raise
        except TeacherError as error:
            return {"request_key": request.key, "status": "failed", "error": str(error), "params": request.params}
        if (writer := self.requests.writer) is not None:
            prompt = AskedPrompt(asked) if isinstance(asked, str) else asked
            return build_response_columns(request, responses) | writer.read(prompt, request, response)
        answer = max(soft, key=lambda label: soft[label]) if soft else None
        if self.spec.soft_labels == "votes":
            answer = self._label(response.text)
        # A request for a distribution stops after the tokens that decide it: that is no truncation.
        cut = response.finish_reason == "length" and self.spec.soft_labels == "votes" and answer is None
        status = "filtered" if response.finish_reason == "content_filter" else "truncated" if cut else "ok"
        return build_response_columns(request, responses) | {
            "status": status,
            "reasoning": response.reasoning,
            "answer": to_canonical_json(answer) if answer is not None else None,
            "soft_labels": round_soft_labels(soft),
        }

    async def _soft_labels(
        self, text: str, sample: int, response: Response, responses: list[Response]
    ) -> dict[str, float] | None:
        if self.spec.soft_labels != "logprobs":
            return None
        labels = self.task.label_names
        mass = soft_labels.compute_label_mass(response.positions, labels, ended=response.finish_reason == "stop")
        resolved: set[str] = set()
        for depth in range(RESOLVE_DEPTH if self.spec.resolve_labels else 0):
            least = RESOLVE_SHARE * mass.total
            split = [s for s, share in mass.shared.items() if share > least and s not in resolved]
            if not split:
                break
            for spelled in split:
                more = await self.engine.answer(self.requests.make(text, sample, spelled), self._refuse)
                responses.append(more)
                resolved.add(spelled)
                inner = soft_labels.compute_label_mass(more.positions, labels, spelled, more.finish_reason == "stop")
                if depth < RESOLVE_DEPTH - 1 or not inner.shared:
                    mass.resolve(spelled, inner)
        divided = soft_labels.divide_shared(mass, labels)
        if self.spec.calibration != "none" and sum(divided.values()) > 0:
            divided = soft_labels.fill_missing_mass(divided, response.positions[0])
        return soft_labels.normalize_mass(divided)

    async def ask(
        self, prompts: pl.DataFrame, samples: Callable[[str], list[int]] | None = None, lone: int = 0
    ) -> AskResult:
        """Ask for every sample of every prompt, sample by sample: prompts that share a prefix follow each other.

        Args:
            prompts: a prompts table.
            samples: which samples a prompt wants; by default all of them.
            lone: the first `lone` prompts are asked one by one, so that their latency is that of a lone request.

        Raises:
            TeacherError: the teacher refuses every request, or fewer than `min_success` of the prompts have an answer.
        """
        texts = read_asked_prompts(prompts, refusals=self.requests.writer is not None)
        self.requests.choice.look_up([get_asked_text(asked) for asked in texts.values()])
        slices = dict(zip(prompts["prompt_id"], prompts["slice"], strict=True))
        ids = list(texts)
        wanted = {
            i: samples(i) if samples else self.requests.samples(get_asked_text(asked)) for i, asked in texts.items()
        }
        every = sorted({s for chosen in wanted.values() for s in chosen})
        jobs = [(i, s) for part in (ids[:lone], ids[lone:]) for s in every for i in part if s in wanted[i]]
        alone = set(ids[:lone])
        mode = "replay" if self.replayed else self.spec.mode
        same = {"teacher": self.name, "answer_kind": get_kind(self.task).answer_kind}
        same["template_version"] = self.requests.templates.version
        rows: list[dict[str, Any]] = []
        tables: list[pl.DataFrame] = []
        done = 0
        started = time.perf_counter()

        async def one(id_: str, sample: int, request: Request | None = None) -> dict[str, Any]:
            nonlocal done
            row = await self.sample(texts[id_], sample, request)
            row["prompt_id"], row["sample_index"], row["slice"] = id_, sample, slices[id_]
            rows.append(row)
            if len(rows) == CHUNK_ROWS:  # columns hold the same in a fraction of the memory
                tables.append(build_completions(rows, mode, same))
                rows.clear()
            done += 1
            progress.report_progress(self._doing(), done, len(jobs))
            return row

        async def worker(left: Iterator[tuple[str, int]]) -> None:
            for id_, sample in left:
                await one(id_, sample)

        try:
            open_: list[tuple[str, int]] = []
            with _freeze_garbage_collector():
                for start in range(0, len(jobs), CHUNK_ROWS):
                    asked = [(i, s, self.requests.make(texts[i], s)) for i, s in jobs[start : start + CHUNK_ROWS]]
                    there = self.engine.preload(request.key for *_, request in asked)
                    for id_, sample, request in asked:
                        if request.key in there:
                            await one(id_, sample, request)
                        else:
                            open_.append((id_, sample))
            self._to_ask = len(open_)
            open_ = await self._smoke(open_, one) if not self.replayed else open_
            if self.spec.mode == "batch":
                await self.engine.prepare([self.requests.make(texts[i], s) for i, s in open_], self.origin)
            await worker(iter([job for job in open_ if job[0] in alone]))
            work = iter([job for job in open_ if job[0] not in alone])
            width = 1 if self.spec.embedded else self.spec.concurrency
            async with asyncio.TaskGroup() as group:
                for _ in range(min(width, len(open_))):
                    group.create_task(worker(work))
        finally:
            await self.engine.close()
        asked_ = AskResult(
            conform_to_schema(
                pl.concat([*tables, build_completions(rows, mode, same)]), COMPLETIONS, COMPLETIONS_ORDER
            ),
            self.engine.calls,
            self.engine.cached,
            time.perf_counter() - started,
            self.engine.prompt_tokens,
            self.engine.completion_tokens,
            self.engine.spent,
            self.engine.over_budget,
        )
        self._check_success(asked_, len(texts))
        return asked_

    async def _smoke(
        self, jobs: list[tuple[str, int]], one: Callable[[str, int], Awaitable[dict[str, Any]]]
    ) -> list[tuple[str, int]]:
        """Ask for a few rows before many, once per teacher and template; the jobs that are left.

        Raises:
            TeacherError: too few of the answers are usable.
        """
        rows = self.spec.smoke_rows
        if not rows or len(jobs) < SMOKE_FROM_FACTOR * rows:
            return jobs
        key = hash_content([self.requests.endpoint.identity, self.requests.templates.version, self.task.kind])
        if self.engine.store.smoked(key):
            return jobs
        first: dict[str, tuple[str, int]] = {}
        for job in jobs:
            if len(first) < rows:
                first.setdefault(job[0], job)
        answers = await asyncio.gather(*(one(*job) for job in first.values()))
        usable = sum(row["status"] == "ok" and row.get("answer") is not None for row in answers)
        if usable < len(first) - len(first) // 8:
            bad = next(row for row in answers if row["status"] != "ok" or row.get("answer") is None)
            said = bad.get("error") or repr((bad.get("raw_text") or "")[:200])
            raise TeacherError(
                f"The smoke of {len(first)} rows brought {usable} usable answers of {self.spec.model}; the other "
                f"{len(jobs) - len(first)} requests were not sent. One of the others: {said}. Mend the teacher's "
                f"settings or the template; teacher.smoke_rows: 0 goes without a smoke."
            )
        self.engine.store.smoke_passed(key)
        sent = set(first.values())
        return [job for job in jobs if job not in sent]

    def _doing(self) -> str:
        """What the progress line says: where the price is known, what was spent and what it will come to."""
        engine = self.engine
        if not engine.spent_usd or not engine.calls:
            return "asking the teacher"
        projected = engine.spent_usd / engine.calls * max(self._to_ask, engine.calls)
        return f"asking the teacher (${engine.spent_usd:.2f} of about ${projected:.2f})"

    def _check_success(self, asked: AskResult, prompts: int) -> None:
        share = asked.usable_prompts / prompts if prompts else 1.0
        if share < self.spec.min_success and not asked.stopped:
            first = asked.completions.filter(pl.col("error").is_not_null())["error"].head(1).to_list()
            raise TeacherError(
                f"Only {share:.0%} of {prompts} prompts have an answer of {self.spec.model}; min_success is "
                f"{self.spec.min_success:.0%}. First error: {first[0] if first else 'none'}. What was answered is "
                f"stored and will not be asked again."
            )


@contextmanager
def _freeze_garbage_collector() -> Iterator[None]:
    """The garbage collector leaves alone what is there now: short-lived rows would have it look at all of it often."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def merge_results(parts: list[AskResult]) -> AskResult:
    """What several teachers were asked, as one."""
    if len(parts) == 1:
        return parts[0]
    spent = [part.spent_usd for part in parts]
    return AskResult(
        pl.concat([part.completions for part in parts]).sort(COMPLETIONS_ORDER),
        sum(part.calls for part in parts),
        sum(part.cached for part in parts),
        sum(part.seconds for part in parts),
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        None if None in spent else sum(usd or 0.0 for usd in spent),
        next((part.stopped for part in parts if part.stopped), None),
    )


def run_ask(asker: Asker, prompts: pl.DataFrame, **kwargs: Any) -> AskResult:
    """`Asker.ask` from synchronous code."""
    return event_loop.run_in_loop(asker.ask(prompts, **kwargs))
