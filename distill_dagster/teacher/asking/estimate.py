"""What asking would take, without asking: requests, tokens, USD and time, by teacher and slice.

Tokens and USD are at most: prompts counted as they would be reserved, answers as long as they may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from distill_dagster.config import Task, TeacherSpec
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.prompts.auxiliary_templates import IMAGINE_TEMPLATES, JUDGE_TEMPLATES, select_templates
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.seeds import build_labelled_prompts, build_seed_prompts
from distill_dagster.prompts.templates import Templates
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.asking.free_text import build_asked_prompt
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine.plan import Imaginer, count_imagine_requests, get_imagine_teacher
from distill_dagster.teacher.judge.judge import Judge, count_judge_requests, get_judge_teacher
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.embedded import find_embedded_identity
from distill_dagster.teacher.providers.exchange import Request
from distill_dagster.teacher.providers.prices import compute_worst_case, find_price
from distill_dagster.teacher.providers.replay import load_replay_teacher

GOLDEN_AND_DEV = "golden and dev"


@dataclass(frozen=True)
class Estimate:
    """What one teacher would be asked for one slice, or for golden and dev.

    `calls` would be sent, `cached` are answered by the store. `tokens` and `usd` are at most; `usd` is None where the
    price is unknown, `wall_s` (seconds) where no limit is declared and no answer of this teacher is stored.

    Labels that share their first tokens are asked for again behind the shared part (`resolve_labels`): how often is
    known only from the first answers, so `calls` is then the least there can be. The later teachers of a cascade, the
    rounds of imagining and the judge count as often as they may be asked.
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


Messages = list[dict[str, str | None]]
EmbedOf = Callable[[TeacherSpec], EmbedFunction | None]


def estimate_requests(
    folder: TaskFolder, store: CompletionStore, slices: list[str], embed_of: EmbedOf, *, golden: bool = False
) -> list[Estimate]:
    """The requests that materializing these slices would send; with `golden` also those of golden and dev.

    Raises:
        InputError: a file of the task is malformed.
        TeacherError: there is no such embedded teacher.
    """
    examples = read_example_pool(
        build_prompt_context(folder.examples, collect_held_out_keys(folder.golden, folder.dev))
    )
    task, out = folder.task, list[Estimate]()
    for name, one in task.each_teacher():
        spec = one.teacher
        answers = load_replay_teacher(folder, spec) if spec.replayed else None
        endpoint = Endpoint(spec.model, _find_identity(spec), recorded=answers)
        templates = Templates(folder.templates(), task.kind, task.reasoning)
        asking = RequestBuilder(one, templates, examples, endpoint, embed_of(spec))
        if golden:
            held_out = [*build_labelled_prompts(folder.golden, "golden")["messages"]]
            held_out += [*build_labelled_prompts(folder.dev, "dev")["messages"]]
            out.append(_estimate_answers(asking, store, name, GOLDEN_AND_DEV, held_out, 0))
        for key in slices:
            slice_ = folder.slice(key)
            messages = list(build_seed_prompts(key, slice_, answers=not task.has_labels)["messages"])
            out.append(
                _estimate_answers(asking, store, name, key, messages, count_imagine_requests(task, slice_).prompts)
            )
    for key in slices:
        slice_ = folder.slice(key)
        out += _estimate_imagining(folder, key, slice_)
        out += _estimate_judging(task, key, slice_)
    return out


def _find_identity(spec: TeacherSpec) -> str:
    """Found without a server and without a key."""
    return find_embedded_identity(spec) if spec.embedded else hash_content(spec.identity())


def _estimate_answers(
    asking: RequestBuilder,
    store: CompletionStore,
    name: str,
    key: str,
    messages: Iterable[list[dict[str, str | None]]],
    to_come: int,
) -> Estimate:
    prompts = [build_asked_prompt(m) for m in messages]
    asking.choice.look_up([prompt.text for prompt in prompts])
    requests = {r.key: r for p in prompts for s in asking.samples(p.text) for r in [asking.make(p, s)]}
    known = store.known(requests)
    # A replay teacher is sent nothing, whether the store has its answer already or not.
    new = [] if asking.endpoint.recorded is not None else [r for key_, r in requests.items() if key_ not in known]
    later = to_come * asking.spec.requests_per_prompt
    likely = new or list(requests.values())
    calls = len(new) + (later if likely else 0)
    tokens, usd = _estimate_cost(asking.spec, new, later, likely)
    seconds = [one.latency_s for one in store.get(sorted(known)[:100]).values() if one.mode == "online"]
    wall = _estimate_seconds(asking.spec, calls, tokens, median(seconds) if seconds else None)
    return Estimate(key, name, "answers", len(prompts) + to_come, calls, len(known), tokens, usd, wall)


def _estimate_cost(
    spec: TeacherSpec, requests: list[Request], more: int, alike: list[Request]
) -> tuple[int, float | None]:
    """Tokens and USD of requests at worst, and of so many more that are like those of `alike`."""
    price = find_price(spec)
    worst = [compute_worst_case(request, price, exact=not spec.free) for request in requests]
    like = worst or (
        [compute_worst_case(request, price, exact=not spec.free) for request in alike[:20]] if more else []
    )
    tokens = sum(one.tokens for one in worst) + more * round(sum(one.tokens for one in like) / max(1, len(like)))
    if price is None:
        return tokens, None
    usd = sum(one.usd or 0.0 for one in worst) + more * sum(one.usd or 0.0 for one in like) / max(1, len(like))
    return tokens, round(usd, 6)


def _estimate_seconds(spec: TeacherSpec, calls: int, tokens: int, latency_s: float | None) -> float | None:
    """Seconds by the declared limits, and by what the teacher took before; None where neither is known."""
    known: list[float] = []
    if spec.requests_per_minute:
        known.append(60 * calls / spec.requests_per_minute)
    if spec.tokens_per_minute:
        known.append(60 * tokens / spec.tokens_per_minute)
    if latency_s is not None:
        known.append(calls * latency_s / (1 if spec.embedded else spec.concurrency))
    return round(max(known), 1) if known else 0.0 if not calls else None


def _estimate_imagining(folder: TaskFolder, key: str, slice_: Slice) -> Iterator[Estimate]:
    task = folder.task
    need = count_imagine_requests(task, slice_)
    if not need.prompts:
        return
    spec = get_imagine_teacher(task)
    own = select_templates(folder.templates(), IMAGINE_TEMPLATES)
    imaginer = Imaginer(task, key, slice_, [*folder.golden, *folder.dev], own, _find_identity(spec))
    jobs = imaginer.jobs(slice_.imagination, need.prompts)
    requests = [imaginer.request(job, slice_.imagination.generation) for job in jobs]
    tokens, usd = _estimate_cost(spec, requests, need.at_most - len(requests), requests)
    wall = _estimate_seconds(spec, need.at_most, tokens, None)
    yield Estimate(key, spec.model, "imagining", need.prompts, need.at_most, 0, tokens, usd, wall)


def _estimate_judging(task: Task, key: str, slice_: Slice) -> Iterator[Estimate]:
    if task.judge is None:
        return
    spec = get_judge_teacher(task)
    judge = Judge(task, select_templates({}, JUDGE_TEMPLATES), _find_identity(spec))
    frame = build_seed_prompts(key, slice_, answers=not task.has_labels)
    prompts = frame.height + count_imagine_requests(task, slice_).prompts
    _, calls = count_judge_requests(task, prompts)
    # The answers are not there yet: as long as the teacher may make them.
    answer = to_canonical_json("word " * task.teacher.max_tokens)
    rows = [{"messages": m, "answer": answer, "reasoning": None} for m in frame["messages"].head(20)]
    alike = [judge.request(row) for row in rows]
    tokens, usd = _estimate_cost(spec, [], calls if alike else 0, alike)
    yield Estimate(
        key, spec.model, "judging", prompts, calls, 0, tokens, usd, _estimate_seconds(spec, calls, tokens, None)
    )


def sum_estimates(found: list[Estimate]) -> dict[str, float | int | None]:
    """All together; USD are unknown where one of them is, seconds add up since slices follow each other."""
    usd = [one.usd for one in found if one.calls]
    wall = [one.wall_s for one in found if one.calls]
    return {
        "teacher_calls": sum(one.calls for one in found),
        "teacher_calls_cached": sum(one.cached for one in found),
        "tokens": sum(one.tokens for one in found),
        "usd": None if None in usd else round(sum(u or 0.0 for u in usd), 6),
        "wall_s": None if None in wall else round(sum(w or 0.0 for w in wall), 1),
    }
