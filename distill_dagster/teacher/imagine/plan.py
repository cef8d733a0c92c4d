"""Plan the requests for imagined prompts: what each asks for, and in which order.

task.yaml sets the shares of three methods: a grid of axes (taxonomy-driven), new prompts modeled on examples of the
slice (Self-Instruct, Wang et al. 2023), and prompts that evolve an existing one (Evol-Instruct, Xu et al. 2023). The
seed, the slice and its prompts determine the n-th request of a generation. So a run after a killed one builds the
same requests, and the completion store answers those that were received.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from distill_dagster.config import ImagineSpec, LabelSpec, Task, TeacherSpec
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.thinking import split_thinking
from distill_dagster.prompts.seeds import build_messages, compute_prompt_id
from distill_dagster.prompts.templates import IMAGINE_TEMPLATES, Templates
from distill_dagster.tables.messages import make_user_messages
from distill_dagster.tasks import LabelledRow, Slice
from distill_dagster.tasks.imagined import ImagineHistory
from distill_dagster.teacher.imagine.novelty import SeenPrompts
from distill_dagster.teacher.imagine.parsing import parse_texts
from distill_dagster.teacher.providers.capabilities import takes_schema
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.finish_reasons import BROKEN_OFF, CUT

EVOLUTIONS = {
    "deeper": "it asks for more: the matter goes deeper, or a second one hangs on it.",
    "constrained": "it has one more constraint, condition or detail that an answer must heed.",
    "rarer": "it is a rarer case of the same kind: an unusual situation, product, place or wording.",
}
"""Evol-Instruct's in-depth evolution (deepening, constraints) and in-breadth evolution (a rarer case)."""
GENERATION_STEP = 1_000_000
"""A generation adds this to the sample_index of its requests, so that they differ from all earlier ones."""
PROMPTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
    "required": ["prompts"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ImagineNeed:
    """The prompts that a slice needs to reach its target, and the requests for them.

    `requests` is their number if every text is accepted. `at_most` is the number after which asking ends anyway.
    """

    prompts: int
    requests: int
    at_most: int


@dataclass(frozen=True)
class ImagineJob:
    """What one request asks for: `count` new prompts, by one method.

    `number` is the request's place in its generation. `parent` is the prompt that `evolve` starts from, `examples` are
    those that `self_instruct` shows.
    """

    number: int
    method: str
    count: int
    axes: dict[str, str] = field(default_factory=dict)
    label: LabelSpec | None = None
    parent: PoolPrompt | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PoolPrompt:
    """A prompt of the slice that requests may show."""

    id: str
    text: str
    target_label: str | None
    is_imagined: bool


def get_imagine_spec(task: Task) -> ImagineSpec:
    """Return the settings of imagining, by default those of an empty `imagine:`."""
    return task.imagine or ImagineSpec()


def get_imagine_teacher(task: Task) -> TeacherSpec:
    """Return the settings of the imagining model: the task's teacher, unless `imagine.teacher` names another.

    Of several teachers it is the first that can write something new, which a recording cannot.
    """
    own = get_imagine_spec(task).teacher
    if own is not None:
        return own.to_teacher_spec(task.teacher)
    return next((spec for spec in task.teacher_specs if not spec.is_replay), task.teacher)


def count_imagine_requests(task: Task, slice_: Slice) -> ImagineNeed:
    """Count the requests that imagining needs for a slice; none if it has no target or has reached it."""
    missing = max(0, (slice_.target or 0) - len(collect_different_texts(slice_)))
    spec = get_imagine_spec(task)
    requests = -(-missing // spec.per_request)
    return ImagineNeed(missing, requests, requests * spec.max_rounds)


def collect_different_texts(slice_: Slice) -> set[str]:
    """Collect the texts of a slice without exact duplicates."""
    return {text.strip() for text in collect_texts(slice_, slice_.imagination)}


def collect_texts(slice_: Slice, history: ImagineHistory) -> list[str]:
    """Collect the texts of all prompts of a slice, with the imagined ones of `history`."""
    texts = [seed.text for seed in slice_.seeds] + [accepted.text for accepted in slice_.accepted]
    return texts + [imagined.text for imagined in (*slice_.shipped, *history.prompts)]


class Imaginer:
    """Plans and builds the requests for one slice, and reads the answers."""

    def __init__(
        self,
        task: Task,
        key: str,
        slice_: Slice,
        held_out: Sequence[LabelledRow],
        own_templates: dict[str, str],
        identity: str,
    ) -> None:
        """Prepare for one slice.

        Args:
            key: the name of the slice. It only seeds the order of requests and is in none of them.
            held_out: golden and dev rows. A prompt that equals or nearly repeats one is never shown.
            own_templates: the task's own templates by name.
            identity: that of the imagining model's endpoint, as in `Endpoint.identity`.
        """
        self.task, self.key, self.slice, self.identity = task, key, slice_, identity
        self.spec, self.teacher = get_imagine_spec(task), get_imagine_teacher(task)
        self.templates = Templates(own_templates, IMAGINE_TEMPLATES)
        takes = takes_schema(self.teacher.model, self.teacher.response_format)
        self.structured = self.teacher.api == "chat" and takes
        self._held_out = SeenPrompts(self.spec.near_duplicate, [row.text for row in held_out])

    def list_pool(self, history: ImagineHistory) -> list[PoolPrompt]:
        """List the prompts that requests may show, sorted by id."""
        prompts = [
            PoolPrompt(compute_prompt_id(build_messages(seed)), seed.text.strip(), seed.target_label, False)
            for seed in self.slice.seeds
        ]
        prompts += [
            PoolPrompt(compute_prompt_id(build_messages(accepted)), accepted.text.strip(), None, False)
            for accepted in self.slice.accepted
        ]
        prompts += [
            PoolPrompt(_compute_text_id(imagined.text), imagined.text.strip(), imagined.target_label, True)
            for imagined in (*self.slice.shipped, *history.prompts)
        ]
        pool: dict[str, PoolPrompt] = {}
        for prompt in prompts:
            if prompt.id not in pool and not self._held_out.find_repeat(prompt.text):
                pool[prompt.id] = prompt
        return [pool[id_] for id_ in sorted(pool)]

    def plan_jobs(self, history: ImagineHistory, missing: int) -> list[ImagineJob]:
        """Plan the requests of one round, which together ask for `missing` prompts."""
        first, size = history.requests, self.spec.per_request
        requests = -(-missing // size)
        pool = self.list_pool(history)
        turns = islice(self._iterate_methods(can_evolve=bool(pool)), first, first + requests)
        return [
            self._plan_job(first + n, method, times, min(size, missing - n * size), pool, history.generation)
            for n, (method, times) in enumerate(turns)
        ]

    def _iterate_methods(self, can_evolve: bool) -> Iterator[tuple[str, Counter[str]]]:
        """Yield methods without end, in their shares, with how often each came before."""
        shares = self.spec.compute_shares()
        credit, times = dict.fromkeys(shares, 0.0), Counter[str]()
        while True:
            for name, share in shares.items():
                credit[name] += share
            name = max(shares, key=lambda name: round(credit[name], 9))
            credit[name] -= 1
            yield (name if can_evolve or name != "evolve" else "self_instruct"), Counter(times)
            times[name] += 1

    def _plan_job(
        self, number: int, method: str, times: Counter[str], count: int, pool: list[PoolPrompt], generation: int
    ) -> ImagineJob:
        seed = [self.spec.seed, self.key, generation]
        if method == "evolve":
            by_id = {prompt.id: prompt for prompt in pool}
            parent = by_id[_pick_in_turn(list(by_id), times["evolve"], *seed, "parent")]
            label = next((label for label in self.task.labels if label.name == parent.target_label), None)
            axes = {"evolution": _pick_in_turn(list(EVOLUTIONS), times["evolve"], *seed, "evolution")}
            return ImagineJob(number, method, count, axes, label, parent)
        label = None
        if self.task.labels:
            by_name = {label.name: label for label in self.task.labels}
            label = by_name[_pick_in_turn(list(by_name), times["grid"] + times["self_instruct"], *seed, "label")]
        if method == "grid":
            axes = {name: _pick_in_turn(values, times["grid"], *seed, name) for name, values in self.spec.axes.items()}
            return ImagineJob(number, method, count, axes, label)
        # Self-Instruct shows mostly prompts that people wrote, and some imagined ones.
        shuffled = random.Random(hash_content([*seed, "examples", number]))
        imagined = [prompt.text for prompt in pool if prompt.is_imagined]
        human = [prompt.text for prompt in pool if not prompt.is_imagined]
        examples = shuffled.sample(imagined, min(len(imagined), self.spec.examples // 3))
        examples += shuffled.sample(human, min(len(human), self.spec.examples - len(examples)))
        shuffled.shuffle(examples)
        return ImagineJob(number, method, count, {}, label, None, tuple(examples))

    def build_request(self, job: ImagineJob, generation: int) -> Request:
        """Build the request for a job of a generation."""
        sample = generation * GENERATION_STEP + job.number
        params = self.teacher.build_params(self.spec.temperature, self.spec.max_tokens, sample)
        thinking = self.teacher.allowed_thinking_tokens
        values = {
            "task": self.task.description,
            "description": self.slice.description,
            "item": self.task.item,
            "count": job.count,
            "label": job.label,
            "labels": self.task.labels,
            "axes": job.axes if job.method == "grid" else {},
            "examples": list(job.examples),
            "parent": job.parent.text if job.parent else None,
            "evolution": EVOLUTIONS[job.axes["evolution"]] if job.method == "evolve" else None,
            "structured": self.structured,
        }
        text = self.templates.render(f"imagine_{job.method}", **values)
        if self.teacher.api == "text":
            return Request(self.identity, sample, params, prompt=f"{text}\n\n1.", thinking_tokens=thinking)
        messages = [{"role": "user", "content": text}]
        schema = {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": PROMPTS_SCHEMA}}
        response_format = schema if self.structured else None
        return Request(
            self.identity,
            sample,
            params,
            messages=messages,
            response_format=response_format,
            thinking_tokens=thinking,
        )

    def read_texts(self, job: ImagineJob, response: Response) -> list[str]:
        """Read the texts in an answer, without those that are longer than `max_chars`."""
        begins = self.teacher.api == "text" and split_thinking(response.text).thinking is None
        text = (
            f"1. {response.text.lstrip()}" if begins else response.text
        )  # the prompt of a text request ends with "1."
        texts = parse_texts(text, job.count, cut=response.finish_reason in (CUT, BROKEN_OFF))
        return [item for item in texts if len(item) <= self.spec.max_chars]


def _compute_text_id(text: str) -> str:
    return compute_prompt_id(make_user_messages(text.strip()))


def _pick_in_turn(values: Sequence[str], n: int, *seed: Any) -> str:
    """Return the n-th item of an endless sequence of shuffled blocks, each of which has every value once."""
    block, place = divmod(n, len(values))
    order = list(values)
    random.Random(hash_content([*seed, block])).shuffle(order)
    return order[place]
