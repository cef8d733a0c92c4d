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

from distill_dagster import progress
from distill_dagster.embedding import Embed
from distill_dagster.errors import TeacherError
from distill_dagster.hashing import canonical_json, content_hash, strings_hash
from distill_dagster.kinds import kind_of, read_answer
from distill_dagster.prompts.choice import choice_of
from distill_dagster.prompts.context import Example, draw_labels
from distill_dagster.prompts.templates import Templates
from distill_dagster.spec import Task
from distill_dagster.tables import COMPLETIONS, conform
from distill_dagster.teacher import loop, softlabels
from distill_dagster.teacher.attempts import PermanentTeacherError
from distill_dagster.teacher.client import Endpoint, Request
from distill_dagster.teacher.engine import Engine
from distill_dagster.teacher.ledger import Account
from distill_dagster.teacher.mould import HOLE, Mould, fits
from distill_dagster.teacher.store import CompletionStore, Response
from distill_dagster.teacher.written import Prompt, Writer, asked_in, text_of

RESOLVE_SHARE = 0.02
"""Labels that share their beginning are told apart only where they hold more than this share of the mass."""
RESOLVE_DEPTH = 6
ORDER = ("prompt_id", "teacher", "sample_index")
CHUNK = 500
"""Requests that are looked up in the store together, and rows that are made into columns together."""
LARGE = 8
"""So many times the smoke's rows are worth a smoke."""
MAX_DRAWS = 64
LABEL_BIAS = 20.0
"""Lifts a label from e^-20 of the likeliest token to its side, far from where single precision ends."""


@dataclass(frozen=True)
class Asked:
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
        task: Task,
        templates: Templates,
        pool: list[Example],
        endpoint: Endpoint,
        store: CompletionStore,
        embed: Embed | None = None,
        account: Account | None = None,
        name: str | None = None,
        origin: str = "",
    ) -> None:
        """`embed` finds the examples for `few_shot.nearest` alone; `name` is what stands in the column `teacher`;
        `origin` is for whom it asks, `task/asset[partition]`, in the notes on batches."""
        self.origin = origin
        self.task, self.spec, self.templates = task, task.teacher, templates
        self.name = name or task.teacher.model
        self.choice = choice_of(pool, draw_labels(task), self.spec.few_shot, embed)
        self.endpoint = endpoint
        self.kind = kind_of(task)
        self.writer = Writer(self.kind, templates, endpoint, self.spec) if task.answers_are_written else None
        self.engine = Engine(endpoint, self.spec, store, account)
        self._to_ask = 0
        self._turns: dict[tuple[str, ...], list[dict[str, str]]] = {}
        parts = ("text",) if self.spec.api == "text" else ("system", "user")
        printed = all(templates.prints(part, "text") for part in parts)
        self._alike = printed and self.choice.shared and endpoint.recorded is None
        self._moulds: dict[int, Mould] = {}
        self._samples = list(range(self.spec.requests_per_prompt))
        # Most answers are the bare name of a label, and few of them differ.
        self._label = lru_cache(maxsize=4096)(partial(softlabels.parse_label, labels=task.label_names))

    def request(self, asked: str | Prompt, sample: int, spelled: str = "") -> Request:
        """The request for one sample of one prompt; `spelled` is a beginning of a label to go on from."""
        text, turns = (asked, ()) if isinstance(asked, str) else (asked.text, asked.turns)
        if not self._alike or turns or spelled or not fits(text):
            return self._rendered(asked, sample, spelled)
        if sample not in self._moulds:
            self._moulds[sample] = Mould(self._rendered(HOLE, sample))
        return self._moulds[sample].pour(text)

    def _rendered(self, asked: str | Prompt, sample: int, spelled: str = "") -> Request:
        text = text_of(asked)
        if self.endpoint.recorded is not None:
            return self.endpoint.recorded.request(self.endpoint.identity, text, sample)
        if self.writer is not None:
            prompt = Prompt(asked) if isinstance(asked, str) else asked
            return self.writer.request(prompt, self.choice.examples(text, sample), sample)
        params: dict[str, Any] = {"temperature": self.spec.temperature, "max_tokens": self.spec.max_tokens}
        if self.spec.temperature > 0:
            params["seed"] = sample
        examples = self.choice.examples(text, sample)
        values = {
            "text": text,
            "examples": examples,
            "labels": self.task.labels,
            "instructions": self.task.instructions,
            "item": self.task.item,
        }
        if self.spec.api == "text":
            if self.spec.soft_labels == "logprobs":
                params |= {"logprobs": self.spec.top_logprobs}
            if self.spec.boost_labels:
                params |= _boosted(softlabels.next_words(self.task.label_names, spelled), sample)
            rendered = self.templates.part("text", **values)
            rendered += f" {spelled}" if spelled else ""
            return Request(self.endpoint.identity, sample, params, prompt=rendered)
        if self.spec.soft_labels == "logprobs":
            params |= {"logprobs": True, "top_logprobs": self.spec.top_logprobs}
        own = {"role": "user", "content": self.templates.part("user", **values)}
        messages = [*self._shown(examples, values), own]
        return Request(self.endpoint.identity, sample, params, messages=messages)

    def _shown(self, examples: list[Example], values: dict[str, Any]) -> list[dict[str, str]]:
        """All before the prompt's own turn: made once for those that share it, which is most of a request's work."""
        key = tuple(example.id for example in examples)
        if self.templates.uses("system", "text"):
            key = (*key, values["text"])
        if key not in self._turns:
            if len(self._turns) > MAX_DRAWS:  # the nearest examples: hardly two prompts have the same
                self._turns.clear()
            turns = [{"role": "system", "content": self.templates.part("system", **values)}]
            for example in examples:
                shown = self.templates.part("user", **(values | {"text": example.text}))
                turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": example.label}]
            self._turns[key] = turns
        return self._turns[key]

    def samples(self, text: str) -> list[int]:
        """Which samples a prompt wants: so many for each draw; of a replay teacher all that were recorded."""
        if self.endpoint.recorded is not None:
            return list(range(max(1, len(self.endpoint.recorded.find(text)))))
        return self._samples

    def _refuse(self, response: Response) -> None:
        """Not stored: once the server is mended, the same request has to be asked again."""
        if self.spec.soft_labels == "logprobs" and response.text and not response.positions:
            raise PermanentTeacherError(  # the next answer would have none either, and would be paid for too
                f"{self.spec.model} sent no token log-probabilities. Set `soft_labels: votes` in task.yaml, or let the "
                f"server send them."
            )

    async def sample(self, asked: str | Prompt, sample: int, request: Request | None = None) -> dict[str, Any]:
        """One sample of one prompt as the answer's columns of a completions row; `request` saves making it again.

        An answer that came and cannot be used (empty, of a wrong form) is asked for anew, `reasks` times: the row is
        the last answer's, with what all of them took.
        """
        request = request or self.request(asked, sample)
        rows: list[dict[str, Any]] = []
        # What was recorded stays as it is, and a batch would take another day.
        anew = 0 if self.endpoint.recorded is not None or self.spec.mode == "batch" else self.spec.reasks
        for attempt in range(anew + 1):
            rows.append(await self._sample(asked, sample, replace(request, attempt=attempt) if attempt else request))
            if rows[-1]["status"] != "ok" or rows[-1]["answer"] is not None or self.spec.soft_labels == "logprobs":
                break
        return rows[-1] if len(rows) == 1 or rows[-1]["status"] == "failed" else _together(rows)

    async def _sample(self, asked: str | Prompt, sample: int, request: Request) -> dict[str, Any]:
        text = text_of(asked)
        try:
            response = await self.engine.answer(request, self._refuse)
            responses = [response]
            soft = await self._soft_labels(text, sample, response, responses)
        except PermanentTeacherError:
            raise
        except TeacherError as error:
            return {"request_key": request.key, "status": "failed", "error": str(error), "params": request.params}
        if self.writer is not None:
            prompt = Prompt(asked) if isinstance(asked, str) else asked
            return self._told(request, responses) | self._read(prompt, request, response)
        answer = max(soft, key=lambda label: soft[label]) if soft else None
        if self.spec.soft_labels == "votes":
            answer = self._label(response.text)
        # A request for a distribution stops after the tokens that decide it: that is no truncation.
        cut = response.finish_reason == "length" and self.spec.soft_labels == "votes" and answer is None
        status = "filtered" if response.finish_reason == "content_filter" else "truncated" if cut else "ok"
        return self._told(request, responses) | {
            "status": status,
            "reasoning": response.reasoning,
            "answer": canonical_json(answer) if answer is not None else None,
            "soft_labels": _rounded(soft),
        }

    def _read(self, prompt: Prompt, request: Request, response: Response) -> dict[str, Any]:
        """Status, reasoning and answer of a written response; `error` says why a received one has no answer."""
        if response.finish_reason == "content_filter":
            return {"status": "filtered", "reasoning": response.reasoning}
        found = read_answer(
            self.kind,
            response.text,
            prompt.question,
            finish_reason=response.finish_reason,
            reasoning_content=response.reasoning,
            tool_calls=response.tool_calls or ([] if request.tools is not None and response.text.strip() else None),
            stop=self.writer.stop if self.writer is not None and self.spec.api == "text" else None,
        )
        return vars(found)

    @staticmethod
    def _told(request: Request, responses: list[Response]) -> dict[str, Any]:
        """The columns that are the same for every kind; the first response is the answer's."""
        response, *more = responses
        row: dict[str, Any] = {
            "request_key": request.key,
            "raw_text": response.text,
            "finish_reason": response.finish_reason,
            "prompt_tokens": response.prompt_tokens or 0,
            "completion_tokens": response.completion_tokens or 0,
            "cost_usd": response.cost_usd,
            "latency_s": response.latency_s if response.mode == "online" else None,
            "mode": response.mode,
            "model_reported": response.model_reported,
            "params": request.params,
            "requests": len(responses),
            "requested_at": response.received_at,
            "in_flight": response.in_flight,
        }
        for one in more:
            row["prompt_tokens"] += one.prompt_tokens or 0
            row["completion_tokens"] += one.completion_tokens or 0
            row["cost_usd"] = _sum(row["cost_usd"], one.cost_usd)
            row["latency_s"] = _sum(row["latency_s"], one.latency_s)
            row["in_flight"] = max(row["in_flight"], one.in_flight)
        return row

    async def _soft_labels(
        self, text: str, sample: int, response: Response, responses: list[Response]
    ) -> dict[str, float] | None:
        if self.spec.soft_labels != "logprobs":
            return None
        labels = self.task.label_names
        mass = softlabels.label_mass(response.positions, labels, ended=response.finish_reason == "stop")
        resolved: set[str] = set()
        for depth in range(RESOLVE_DEPTH if self.spec.resolve_labels else 0):
            total = sum(mass.labels.values()) + sum(mass.shared.values())
            split = [s for s, share in mass.shared.items() if share > RESOLVE_SHARE * total and s not in resolved]
            if not split:
                break
            for spelled in split:
                more = await self.engine.answer(self.request(text, sample, spelled), self._refuse)
                responses.append(more)
                resolved.add(spelled)
                inner = softlabels.label_mass(more.positions, labels, spelled, more.finish_reason == "stop")
                inside = sum(inner.labels.values()) + sum(inner.shared.values())
                # What follows the shared part is certain to be one of its labels: its mass is passed on whole.
                if inside > 0 and not (depth == RESOLVE_DEPTH - 1 and inner.shared):
                    whole = mass.shared.pop(spelled)
                    for label, share in inner.labels.items():
                        mass.labels[label] = mass.labels.get(label, 0.0) + whole * share / inside
                    for longer, share in inner.shared.items():
                        mass.shared[longer] = mass.shared.get(longer, 0.0) + whole * share / inside
        divided = softlabels.divide_shared(mass, labels)
        if self.spec.calibration != "none" and sum(divided.values()) > 0:
            divided = softlabels.floored(divided, response.positions[0])
        return softlabels.normalize(divided)

    async def ask(
        self, prompts: pl.DataFrame, samples: Callable[[str], list[int]] | None = None, lone: int = 0
    ) -> Asked:
        """Ask for every sample of every prompt, sample by sample: prompts that share a prefix follow each other.

        Args:
            prompts: a prompts table.
            samples: which samples a prompt wants; by default all of them.
            lone: the first `lone` prompts are asked one by one, so that their latency is that of a lone request.

        Raises:
            TeacherError: the teacher refuses every request, or fewer than `min_success` of the prompts have an answer.
        """
        texts = asked_in(prompts, refusals=self.writer is not None)
        self.choice.look_up([text_of(asked) for asked in texts.values()])
        slices = dict(zip(prompts["prompt_id"], prompts["slice"], strict=True))
        ids = list(texts)
        wanted = {i: samples(i) if samples is not None else self.samples(text_of(asked)) for i, asked in texts.items()}
        every = sorted({s for chosen in wanted.values() for s in chosen})
        jobs = [(i, s) for part in (ids[:lone], ids[lone:]) for s in every for i in part if s in wanted[i]]
        alone = set(ids[:lone])
        rows: list[dict[str, Any]] = []
        tables: list[pl.DataFrame] = []
        done = 0
        started = time.perf_counter()

        async def one(id_: str, sample: int, request: Request | None = None) -> dict[str, Any]:
            nonlocal done
            row = await self.sample(texts[id_], sample, request)
            row["prompt_id"], row["sample_index"], row["slice"] = id_, sample, slices[id_]
            rows.append(row)
            if len(rows) == CHUNK:  # columns hold the same in a fraction of the memory
                tables.append(self._table(rows))
                rows.clear()
            done += 1
            progress.report(self._doing(len(jobs)), done, len(jobs))
            return row

        async def worker(left: Iterator[tuple[str, int]]) -> None:
            for id_, sample in left:
                await one(id_, sample)

        try:
            open_: list[tuple[str, int]] = []
            with _nothing_old_collected():
                for start in range(0, len(jobs), CHUNK):
                    asked = [(i, s, self.request(texts[i], s)) for i, s in jobs[start : start + CHUNK]]
                    there = self.engine.preload(request.key for *_, request in asked)
                    for id_, sample, request in asked:
                        if request.key in there:
                            await one(id_, sample, request)
                        else:
                            open_.append((id_, sample))
            self._to_ask = len(open_)
            open_ = await self._smoke(open_, one) if self.endpoint.recorded is None else open_
            if self.spec.mode == "batch":
                await self.engine.prepare([self.request(texts[i], s) for i, s in open_], self.origin)
            await worker(iter([job for job in open_ if job[0] in alone]))
            work = iter([job for job in open_ if job[0] not in alone])
            width = 1 if self.spec.embedded else self.spec.concurrency
            async with asyncio.TaskGroup() as group:
                for _ in range(min(width, len(open_))):
                    group.create_task(worker(work))
        finally:
            await self.engine.close()
        asked_ = Asked(
            conform(pl.concat([*tables, self._table(rows)]), COMPLETIONS, ORDER),
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
        if not rows or len(jobs) < LARGE * rows:
            return jobs
        key = content_hash([self.endpoint.identity, self.templates.version, self.task.kind])
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
        return [job for job in jobs if job not in set(first.values())]

    def _doing(self, total: int) -> str:
        """What the progress line says: where the price is known, what was spent and what it will come to."""
        engine = self.engine
        if not engine.spent_usd or not engine.calls:
            return "asking the teacher"
        projected = engine.spent_usd / engine.calls * max(self._to_ask, engine.calls)
        return f"asking the teacher (${engine.spent_usd:.2f} of about ${projected:.2f})"

    def _table(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """Rows as a table of completions, with what is the same for all of them."""
        own = "replay" if self.endpoint.recorded is not None else self.spec.mode
        same = {"teacher": self.name, "answer_kind": self.kind.answer_kind, "template_version": self.templates.version}
        every = [row["params"] for row in rows]  # most rows share theirs; held, so that no two ids are equal
        texts: dict[tuple[int, int | None], str] = {}
        for row, params in zip(rows, every, strict=True):
            requests = row.get("requests")
            if (id(params), requests) not in texts:
                told = params if requests is None else params | {"requests": requests}
                texts[id(params), requests] = canonical_json(told)
            row["params"] = texts[id(params), requests]
            row["completion_id"] = strings_hash(row["prompt_id"], row["request_key"])[:32]
        table = pl.DataFrame(rows, schema=COMPLETIONS)
        return table.with_columns(pl.col("mode").fill_null(own), *(pl.lit(v).alias(name) for name, v in same.items()))

    def _check_success(self, asked: Asked, prompts: int) -> None:
        share = asked.usable_prompts / prompts if prompts else 1.0
        if share < self.spec.min_success and not asked.stopped:
            first = asked.completions.filter(pl.col("error").is_not_null())["error"].head(1).to_list()
            raise TeacherError(
                f"Only {share:.0%} of {prompts} prompts have an answer of {self.spec.model}; min_success is "
                f"{self.spec.min_success:.0%}. First error: {first[0] if first else 'none'}. What was answered is "
                f"stored and will not be asked again."
            )


@contextmanager
def _nothing_old_collected() -> Iterator[None]:
    """The garbage collector leaves alone what is there now: short-lived rows would have it look at all of it often."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row, with the tokens, the cost and the seconds of all."""
    last = dict(rows[-1])
    for name in ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "requests"):
        last[name] = _sum(*(row[name] for row in rows))
    return last


def _sum(*values: float | None) -> float | None:
    """None where one of them is unknown."""
    return None if None in values else sum(value for value in values if value is not None)


def together(parts: list[Asked]) -> Asked:
    """What several teachers were asked, as one."""
    if len(parts) == 1:
        return parts[0]
    spent = [part.spent_usd for part in parts]
    return Asked(
        pl.concat([part.completions for part in parts]).sort(ORDER),
        sum(part.calls for part in parts),
        sum(part.cached for part in parts),
        sum(part.seconds for part in parts),
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        None if None in spent else sum(usd or 0.0 for usd in spent),
        next((part.stopped for part in parts if part.stopped), None),
    )


def _boosted(words: list[str], sample: int) -> dict[str, Any]:
    """Parameters for llama.cpp's server: `words` raised alike, and probabilities as they are behind that.

    Of the samplers only the bias and a temperature of 1 act, so the words' probabilities keep their ratios.
    """
    bias = [[word, LABEL_BIAS] for word in words]
    asked = {"logit_bias": bias, "post_sampling_probs": True, "samplers": ["temperature"]}
    return {"temperature": 1.0, "seed": sample, "extra_body": asked}


def _rounded(soft: dict[str, float] | None) -> list[dict[str, Any]] | None:
    """Rounded to 6 places and without labels that round to nothing: what is stored is what is hashed."""
    if soft is None:
        return None
    return [{"label": k, "prob": round(v, 6)} for k, v in soft.items() if round(v, 6) > 0]


def run_ask(asker: Asker, prompts: pl.DataFrame, **kwargs: Any) -> Asked:
    """`Asker.ask` from synchronous code."""
    return loop.run(asker.ask(prompts, **kwargs))
