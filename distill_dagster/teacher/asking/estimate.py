"""Estimates of what asking takes, without asking: requests, tokens, USD and time, by teacher and slice.

Tokens and USD are upper bounds: prompts count as the ledger reserves them, answers with their maximal length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import polars as pl

from distill_dagster.config import TeacherSpec
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.seeds import build_labelled_prompts, build_messages, build_seed_prompts
from distill_dagster.prompts.templates import (
    IMAGINE_TEMPLATES,
    JUDGE_TEMPLATES,
    build_answer_templates,
    select_templates,
)
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt, build_asked_prompt
from distill_dagster.teacher.asking.recorded_prompts import split_certain_prompts
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine.plan import Imaginer, count_imagine_requests, get_imagine_teacher
from distill_dagster.teacher.judge.requests import (
    Judge,
    count_comparison_requests,
    count_judge_requests,
    get_judge_teacher,
)
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.embedded import find_embedded_identity
from distill_dagster.teacher.providers.exchange import Request
from distill_dagster.teacher.providers.prices import compute_worst_case, find_price
from distill_dagster.teacher.providers.replay import load_replay_teacher

GOLDEN_AND_DEV = "golden and dev"
"""The `slice` of an estimate for golden and dev."""
LATENCY_SAMPLE = 100
"""How many stored answers give the median latency."""
COST_SAMPLE = 20
"""How many requests give the mean cost of requests that cannot be built yet."""
EmbedLoader = Callable[[TeacherSpec], EmbedFunction | None]


@dataclass(frozen=True)
class Estimate:
    """What one teacher would be asked for one slice, or for golden and dev.

    `calls` would be sent; `cached` are answered by the store. `tokens` and `usd` are upper bounds. `usd` is None if the
    price is unknown. `wall_s` (seconds) is None if no limit is declared and no answer of this teacher is stored.

    With `resolve_labels`, labels that share their first tokens are asked for again. How often is unknown before the
    first answers, so `calls` is then a lower bound. The later teachers of a cascade, the rounds of imagining and the
    judge count with the most requests that they may send, and the judge's comparisons with those of all students. What
    a recording knows is not counted after it.
    """

    slice: str
    teacher: str
    purpose: str
    prompts: int
    calls: int
    cached: int
    tokens: int
    usd: float | None
    wall_s: float | None


def estimate_requests(
    folder: TaskFolder, store: CompletionStore, slices: list[str], load_embed: EmbedLoader, *, golden: bool = False
) -> list[Estimate]:
    """Estimate the requests that materializing these slices would send; with `golden` also those for golden and dev.

    Raises:
        InputError: a file of the task is malformed.
        TeacherError: there is no such embedded teacher.
    """
    task = folder.task
    held_out = collect_held_out_keys(folder.golden, folder.dev)
    examples = read_example_pool(build_prompt_context(folder.examples, held_out))
    remaining: dict[str, list[AskedPrompt]] = {}
    if golden:
        rows = [build_labelled_prompts(folder.golden, "golden"), build_labelled_prompts(folder.dev, "dev")]
        remaining[GOLDEN_AND_DEV] = [prompt for frame in rows for prompt in _read_prompts(frame)]
    for key in slices:
        remaining[key] = _read_prompts(build_seed_prompts(key, folder.read_slice(key), not task.has_labels))
    to_imagine = {key: count_imagine_requests(task, folder.read_slice(key)).prompts for key in slices}
    estimates: list[Estimate] = []
    for name, part in task.list_teachers():
        spec = part.teacher
        asked: dict[str, list[AskedPrompt]] = {}
        for key, prompts in remaining.items():
            asked[key], remaining[key] = split_certain_prompts(folder, name, prompts)
        imagined = {key: 0 if spec.is_replay else to_imagine.get(key, 0) for key in asked}
        if not any(asked.values()) and not any(imagined.values()):
            continue  # a teacher without prompts needs no embeddings of its examples
        recorded = load_replay_teacher(folder, spec) if spec.is_replay else None
        endpoint = Endpoint(spec.model, _find_identity(spec), recorded=recorded)
        templates = build_answer_templates(folder, part)
        requests = RequestBuilder(part, templates, examples, endpoint, load_embed(spec))
        estimates += [
            _estimate_answers(requests, store, name, key, prompts, imagined[key])
            for key, prompts in asked.items()
            if prompts or imagined[key]
        ]
    for key in slices:
        estimates += _estimate_imagining(folder, key)
        estimates += _estimate_judging(folder, key)
    if golden:
        estimates += _estimate_comparing(folder)
    return estimates


def _read_prompts(frame: pl.DataFrame) -> list[AskedPrompt]:
    return [build_asked_prompt(messages) for messages in frame["messages"]]


def _find_identity(spec: TeacherSpec) -> str:
    """The identity of a teacher, found without a server and without a key."""
    return find_embedded_identity(spec) if spec.is_embedded else hash_content(spec.dump_identity())


def _estimate_answers(
    builder: RequestBuilder, store: CompletionStore, name: str, key: str, prompts: list[AskedPrompt], to_imagine: int
) -> Estimate:
    """The estimate for answers to `prompts`, and to `to_imagine` prompts that are not imagined yet."""
    builder.choice.prepare([prompt.text for prompt in prompts])
    requests: dict[str, Request] = {}
    for prompt in prompts:
        for sample in builder.list_samples(prompt.text):
            request = builder.build(prompt, sample)
            requests[request.key] = request
    stored = store.find_stored_keys(requests)
    # A replay teacher is sent nothing, whether its answers are stored or not.
    replayed = builder.endpoint.recorded is not None
    new = [] if replayed else [request for request_key, request in requests.items() if request_key not in stored]
    later = to_imagine * builder.spec.requests_per_prompt
    likely = new or list(requests.values())
    calls = len(new) + (later if likely else 0)
    tokens, usd = _estimate_cost(builder.spec, new, later, likely)
    answers = store.get(sorted(stored)[:LATENCY_SAMPLE]).values()
    seconds = [answer.latency_s for answer in answers if answer.mode == "online"]
    wall = _estimate_seconds(builder.spec, calls, tokens, median(seconds) if seconds else None)
    return Estimate(key, name, "answers", len(prompts) + to_imagine, calls, len(stored), tokens, usd, wall)


def _estimate_cost(
    spec: TeacherSpec, requests: list[Request], more: int, similar: list[Request]
) -> tuple[int, float | None]:
    """Tokens and USD of requests at worst, and of `more` requests that cost as much as those in `similar`."""
    price = find_price(spec)
    worst = [compute_worst_case(request, price, exact=not spec.is_free) for request in requests]
    sample = worst
    if more and not worst:
        sample = [compute_worst_case(request, price, exact=not spec.is_free) for request in similar[:COST_SAMPLE]]
    mean_tokens = round(sum(case.tokens for case in sample) / max(1, len(sample)))
    tokens = sum(case.tokens for case in worst) + more * mean_tokens
    if price is None:
        return tokens, None
    mean_usd = sum(case.usd or 0.0 for case in sample) / max(1, len(sample))
    return tokens, round(sum(case.usd or 0.0 for case in worst) + more * mean_usd, 6)


def _estimate_seconds(spec: TeacherSpec, calls: int, tokens: int, latency_s: float | None) -> float | None:
    """Seconds by the declared limits and by the latency of earlier answers; None if neither is known."""
    bounds: list[float] = []
    if spec.requests_per_minute:
        bounds.append(60 * calls / spec.requests_per_minute)
    if spec.tokens_per_minute:
        bounds.append(60 * tokens / spec.tokens_per_minute)
    if latency_s is not None:
        bounds.append(calls * latency_s / (1 if spec.is_embedded else spec.concurrency))
    return round(max(bounds), 1) if bounds else 0.0 if not calls else None


def _estimate_imagining(folder: TaskFolder, key: str) -> Iterator[Estimate]:
    task, slice_ = folder.task, folder.read_slice(key)
    need = count_imagine_requests(task, slice_)
    if not need.prompts:
        return
    spec = get_imagine_teacher(task)
    own = select_templates(folder.read_templates(), IMAGINE_TEMPLATES)
    imaginer = Imaginer(task, key, slice_, [*folder.golden, *folder.dev], own, _find_identity(spec))
    jobs = imaginer.plan_jobs(slice_.imagination, need.prompts)
    requests = [imaginer.build_request(job, slice_.imagination.generation) for job in jobs]
    tokens, usd = _estimate_cost(spec, requests, need.at_most - len(requests), requests)
    wall = _estimate_seconds(spec, need.at_most, tokens, None)
    yield Estimate(key, spec.model, "imagining", need.prompts, need.at_most, 0, tokens, usd, wall)


def _estimate_judging(folder: TaskFolder, key: str) -> Iterator[Estimate]:
    task, slice_ = folder.task, folder.read_slice(key)
    if task.judge is None:
        return
    spec = get_judge_teacher(task)
    judge = Judge(task, select_templates(folder.read_templates(), JUDGE_TEMPLATES), _find_identity(spec))
    frame = build_seed_prompts(key, slice_, answers=not task.has_labels)
    prompts = frame.height + count_imagine_requests(task, slice_).prompts
    _, calls = count_judge_requests(task, prompts)
    # There are no answers yet, so each counts with its maximal length.
    answer = to_canonical_json("word " * task.teacher.max_tokens)
    rows = [{"messages": m, "answer": answer, "reasoning": None} for m in frame["messages"].head(COST_SAMPLE)]
    similar = [judge.build_request(row) for row in rows]
    tokens, usd = _estimate_cost(spec, [], calls if similar else 0, similar)
    wall = _estimate_seconds(spec, calls, tokens, None)
    yield Estimate(key, spec.model, "judging", prompts, calls, 0, tokens, usd, wall)


def _estimate_comparing(folder: TaskFolder) -> Iterator[Estimate]:
    """The estimate for the judge's comparisons of each student's answers with the teacher's, if it makes any."""
    task = folder.task
    if task.judge is None or task.evaluation.judged_items is None:
        return
    spec = get_judge_teacher(task)
    judge = Judge(task, select_templates(folder.read_templates(), JUDGE_TEMPLATES), _find_identity(spec))
    items = min(task.evaluation.judged_items, len(folder.golden)) * len(task.students)
    calls = count_comparison_requests(items)
    answer = to_canonical_json("word " * task.teacher.max_tokens)
    similar = [
        judge.build_request({"messages": build_messages(row)}, [answer, answer]) for row in folder.golden[:COST_SAMPLE]
    ]
    tokens, usd = _estimate_cost(spec, [], calls if similar else 0, similar)
    wall = _estimate_seconds(spec, calls, tokens, None)
    yield Estimate(GOLDEN_AND_DEV, spec.model, "comparing", items, calls, 0, tokens, usd, wall)


def sum_estimates(estimates: list[Estimate]) -> dict[str, float | int | None]:
    """The sum of estimates. USD and seconds are None if one of them is unknown. Slices run one after another."""
    usd = [estimate.usd for estimate in estimates if estimate.calls]
    wall = [estimate.wall_s for estimate in estimates if estimate.calls]
    return {
        "teacher_calls": sum(estimate.calls for estimate in estimates),
        "teacher_calls_cached": sum(estimate.cached for estimate in estimates),
        "tokens": sum(estimate.tokens for estimate in estimates),
        "usd": None if None in usd else round(sum(value or 0.0 for value in usd), 6),
        "wall_s": None if None in wall else round(sum(value or 0.0 for value in wall), 1),
    }
