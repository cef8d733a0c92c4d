"""The judge: a second model scores every candidate by a rubric, or picks the best of differing samples.

LLM-as-a-judge with a rubric and reasons before scores (Zheng et al. 2023). Every answer of the judge is stored by
request_key like a completion. An answer that does not have the declared form is asked for once more as another sample;
both are stored, so neither is paid for twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import Field as pydantic_field
from pydantic import ValidationError, create_model

from distill_dagster.config import JudgeSpec, Task, TeacherSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.core.json_text import iterate_json
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.kinds.base import find_majority
from distill_dagster.prompts.auxiliary_templates import JUDGE_TEMPLATES, AuxiliaryTemplates
from distill_dagster.tables.messages import format_messages
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import PermanentTeacherError
from distill_dagster.teacher.providers.capabilities import takes_schema
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response

JUDGE_ATTEMPTS = 2
"""Samples of the judge for one row: the second one where the first has not the declared form."""
MAX_REASON_CHARS = 1000
SAMPLE_ORDER = ("prompt_id", "sample_index", "teacher")


@dataclass(frozen=True)
class JudgeScore:
    """What the judge said of one candidate. `error` without an answer is `failed`; one of another form is not."""

    scores: dict[str, int] | None = None
    reasons: dict[str, str] | None = None
    best: int | None = None
    error: str | None = None
    failed: bool = False

    @property
    def score(self) -> float | None:
        """The mean of the criteria; 1 of 5 is 0 and 5 of 5 is 1."""
        if not self.scores:
            return None
        return round((sum(self.scores.values()) / len(self.scores) - 1) / 4, 6)


@dataclass(frozen=True)
class JudgeResult:
    """The candidates with their verdicts, and what these took."""

    candidates: pl.DataFrame
    asked: int
    failed: int
    malformed: int
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    spent_usd: float | None
    seconds: float


def get_judge_teacher(task: Task) -> TeacherSpec:
    """The judge as the engine takes it."""
    assert task.judge is not None
    return task.judge.teacher(task.teacher)


class Judge:
    """All that shapes the requests of one task's judge."""

    def __init__(self, task: Task, own_templates: dict[str, str], identity: str) -> None:
        assert task.judge is not None
        self.task, self.spec, self.identity = task, task.judge, identity
        self.teacher, self.kind = get_judge_teacher(task), get_kind(task)
        self.templates = AuxiliaryTemplates(own_templates, JUDGE_TEMPLATES)
        self.structured = self.spec.api == "chat" and takes_schema(self.spec.model, self.spec.response_format)

    def request(self, row: dict[str, Any], options: list[str] | None = None, sample: int = 0) -> Request:
        """The request on one candidate, or on its `options`, the differing answers. The slice is not in it."""
        values = {
            "task": self.task.description,
            "instructions": self.task.instructions,
            "item": self.task.item,
            "labels": self.task.labels,
            "text": format_messages(row["messages"]),
            "answer": None if options else self.shown(row["answer"]),
            "reasoning": None if options else row["reasoning"],
            "options": [self.shown(option) for option in options or []],
            "rubric": self.spec.rubric,
            "structured": self.structured,
        }
        text = self.templates.render("judge_best_of" if options else "judge_score", **values)
        params: dict[str, Any] = {"temperature": self.spec.temperature, "max_tokens": self.spec.max_tokens}
        if self.spec.temperature > 0:
            params["seed"] = sample
        if self.spec.api == "text":
            return Request(self.identity, sample, params, prompt=f"{text}\n")
        form = None
        if self.structured:
            model = build_score_model(self.spec, len(options) if options else None)
            schema = {"name": "verdict", "strict": True, "schema": make_strict_schema(model.model_json_schema())}
            form = {"type": "json_schema", "json_schema": schema}
        messages = [{"role": "user", "content": text}]
        return Request(self.identity, sample, params, messages=messages, response_format=form)

    def shown(self, answer: str) -> str:
        """An answer, given as canonical JSON text, as its kind writes it."""
        return self.kind.format_answer(json.loads(answer))

    def read(self, text: str, options: int | None) -> JudgeScore | None:
        """The verdict that an answer holds, or None where it has not the declared form."""
        model = build_score_model(self.spec, options)
        for value in iterate_json(text):
            with suppress(ValidationError):
                return _to_judge_score(model.model_validate(value).model_dump(), options)
        return None


def _to_judge_score(found: dict[str, Any], options: int | None) -> JudgeScore:
    if options:
        return JudgeScore(best=found["best"] - 1, reasons={"best": found["reason"][:MAX_REASON_CHARS]})
    reasons = {name: one["reason"][:MAX_REASON_CHARS] for name, one in found.items()}
    return JudgeScore({name: one["score"] for name, one in found.items()}, reasons)


def build_score_model(spec: JudgeSpec, options: int | None) -> Any:
    """The form of an answer: reason and score for each criterion, or the number of the best option with a reason."""
    if options:
        best = pydantic_field(ge=1, le=options)
        return create_model("Best", reason=(str, ...), best=(int, best))
    one = create_model("Scored", reason=(str, ...), score=(int, pydantic_field(ge=1, le=5)))
    fields: dict[str, Any] = {criterion.name: (one, ...) for criterion in spec.rubric}
    return create_model("Verdict", **fields)


def make_strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A pydantic schema as providers' strict mode wants it: no further properties, no ranges, numbers enumerated."""

    def strict(part: Any) -> Any:
        if isinstance(part, list):
            return [strict(one) for one in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "integer" and "minimum" in part and "maximum" in part:
            return {"type": "integer", "enum": list(range(part["minimum"], part["maximum"] + 1))}
        out = {name: strict(one) for name, one in part.items() if name != "title" or not isinstance(one, str)}
        return out | ({"additionalProperties": False} if out.get("type") == "object" else {})

    made: dict[str, Any] = strict(schema)
    return made


def find_differing_answers(kind: Kind, completions: pl.DataFrame) -> dict[str, list[str]]:
    """The different answers of the usable samples, of prompts that have more than one under the kind's equality.

    Of equal ones that differ in writing (a tolerance, upper case) the first stands for all. Their order is that of a
    hash, so that it says nothing of which sample, or how many, gave them.
    """
    usable = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    found: dict[str, list[str]] = {}
    for id_, answer in usable.sort(*SAMPLE_ORDER).select("prompt_id", "answer").iter_rows():
        found.setdefault(id_, []).append(answer)
    out: dict[str, list[str]] = {}
    for id_, answers in found.items():
        groups = find_majority(list(dict.fromkeys(answers)), _make_equality(kind)).votes
        if len(groups) > 1:
            out[id_] = sorted((answer for answer, _ in groups), key=lambda answer: hash_content([id_, answer]))
    return out


def _make_equality(kind: Kind) -> Callable[[str, str], bool]:
    """The kind's equality, of answers given as canonical JSON texts."""
    return lambda one, other: one == other or kind.are_equal(json.loads(one), json.loads(other))


def count_judge_requests(task: Task, prompts: int) -> tuple[int, int]:
    """The least and the most requests to the judge for so many prompts that have an answer."""
    samples = sum(one.requests_per_prompt for one in task.teacher_specs)
    if task.judge is None or (task.judge.mode == "best_of" and samples == 1):
        return 0, 0
    return (prompts if task.judge.mode == "score" else 0), prompts * JUDGE_ATTEMPTS


def judge_candidates(
    judge_: Judge,
    candidates: pl.DataFrame,
    completions: pl.DataFrame,
    endpoint: Endpoint,
    store: CompletionStore,
    account: Account | None = None,
) -> JudgeResult:
    """Ask the judge about the candidates of one slice.

    Args:
        candidates: scored rows; those without an answer are not shown to the judge.
        completions: the samples that they were made of.

    Raises:
        TeacherError: the judge refuses every request, or fewer than `min_success` of the rows have an answer.
    """
    return event_loop.run_in_loop(_judge_async(judge_, candidates, completions, endpoint, store, account))


async def _judge_async(
    judge_: Judge,
    candidates: pl.DataFrame,
    completions: pl.DataFrame,
    endpoint: Endpoint,
    store: CompletionStore,
    account: Account | None = None,
) -> JudgeResult:
    engine = CompletionEngine(endpoint, judge_.teacher, store, account)
    answered = candidates.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    rows = list(answered.iter_rows(named=True))
    options: dict[str, list[str]] = {}
    if judge_.spec.mode == "best_of":
        options = find_differing_answers(judge_.kind, completions)
        rows = [row for row in rows if row["prompt_id"] in options]
    verdicts: dict[str, JudgeScore] = {}
    responses: list[Response] = []
    started = time.perf_counter()

    async def one(row: dict[str, Any]) -> JudgeScore:
        choices = options.get(row["prompt_id"])
        for sample in range(JUDGE_ATTEMPTS):
            try:
                response = await engine.answer(judge_.request(row, choices, sample))
            except PermanentTeacherError:
                raise
            except TeacherError as error:
                return JudgeScore(error=str(error), failed=True)
            responses.append(response)
            if verdict := judge_.read(response.text, len(choices) if choices else None):
                return verdict
        return JudgeScore(error=f"{JUDGE_ATTEMPTS} answers of the judge have not the declared form")

    async def worker(work: Iterator[dict[str, Any]]) -> None:
        for row in work:
            verdicts[row["prompt_id"]] = await one(row)
            progress.report_progress("asking the judge", len(verdicts), len(rows))

    work = iter(rows)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(1 if judge_.teacher.embedded else judge_.teacher.concurrency):
                group.create_task(worker(work))
    finally:
        await engine.close()
    failures = [verdict.error for verdict in verdicts.values() if verdict.failed]
    if rows and 1 - len(failures) / len(rows) < judge_.spec.min_success:
        raise TeacherError(
            f"Only {1 - len(failures) / len(rows):.0%} of {len(rows)} rows have an answer of the judge "
            f"{judge_.spec.model}; judge.min_success is {judge_.spec.min_success:.0%}. First error: {failures[0]}. "
            f"What was answered is stored and will not be asked again."
        )
    picked = {id_: options[id_][v.best] for id_, v in verdicts.items() if v.best is not None}
    out = _apply_picks(judge_, candidates, completions, picked) if picked else candidates
    return JudgeResult(
        _add_scores(out, verdicts, judge_.spec.model),
        len(rows),
        len(failures),
        sum(v.error is not None and not v.failed for v in verdicts.values()),
        engine.calls,
        engine.cached,
        engine.prompt_tokens,
        engine.completion_tokens,
        engine.spent,
        time.perf_counter() - started,
    )


def _add_scores(candidates: pl.DataFrame, verdicts: dict[str, JudgeScore], model: str) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {n: [] for n in candidates.columns if n.startswith("judge")}
    for id_ in candidates["prompt_id"]:
        verdict = verdicts.get(id_)
        said = verdict or JudgeScore()
        columns["judge"].append(model if verdict else None)
        columns["judge_score"].append(said.score)
        columns["judge_scores"].append(to_canonical_json(said.scores) if said.scores else None)
        columns["judge_reasons"].append(to_canonical_json(said.reasons) if said.reasons else None)
        columns["judge_error"].append(said.error)
    return candidates.with_columns(pl.Series(name, v, candidates.schema[name]) for name, v in columns.items())


def _apply_picks(
    judge_: Judge, candidates: pl.DataFrame, completions: pl.DataFrame, picked: dict[str, str]
) -> pl.DataFrame:
    """The candidates with the answers that the judge picked; all that hangs on an answer follows it."""
    usable = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    equal = _make_equality(judge_.kind)
    asked = dict(completions.group_by("prompt_id").agg(pl.col("teacher").n_unique()).iter_rows())
    said: dict[str, list[tuple[str, str | None, str]]] = {}
    columns = ("prompt_id", "answer", "reasoning", "teacher")
    for id_, answer, reasoning, teacher in usable.sort(*SAMPLE_ORDER).select(columns).iter_rows():
        said.setdefault(id_, []).append((answer, reasoning, teacher))
    rows = []
    for row in candidates.iter_rows(named=True):
        answer = picked.get(row["prompt_id"])
        if answer is not None and not equal(answer, row["answer"]):
            samples = said[row["prompt_id"]]
            mine = [one for one in samples if equal(one[0], answer)]
            teachers = {teacher for *_, teacher in mine}
            several = row["teacher_agreement"] is not None
            soft = {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []}
            row |= {
                "answer": answer,
                "agreement": len(mine) / len(samples),
                "confidence": max(soft.get(judge_.shown(one[0]), 0.0) for one in mine) if soft else row["confidence"],
                "reasoning": next((reasoning for _, reasoning, _ in mine if reasoning is not None), None),
                "teacher": row["teacher"] if row["teacher"] in teachers else mine[0][2],
                "teacher_agreement": len(teachers) / asked[row["prompt_id"]] if several else None,
            }
        rows.append(row)
    return pl.DataFrame(rows, schema=candidates.schema)
