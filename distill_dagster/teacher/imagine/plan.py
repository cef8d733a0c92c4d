"""Imagining prompts: what is asked for, and in which order; `teacher.imagine` asks.

Three ways, in the shares that task.yaml gives: a grid of axes (taxonomy-driven), new prompts after examples of the
slice (Self-Instruct, Wang et al. 2023), and prompts that grow out of one that is there (Evol-Instruct, Xu et al. 2023).
What the n-th request of a generation asks for follows from the seed, the slice and what it has; so a run that was
killed builds the same requests again, and the completion store answers those that were received.
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
from distill_dagster.prompts.auxiliary_templates import IMAGINE_TEMPLATES, AuxiliaryTemplates
from distill_dagster.prompts.seeds import build_messages, compute_prompt_id
from distill_dagster.tables.messages import make_user_message
from distill_dagster.tasks import LabelledRow, Slice
from distill_dagster.tasks.imagined import ImagineHistory
from distill_dagster.teacher.imagine.lists import parse_texts
from distill_dagster.teacher.imagine.novelty import SeenPrompts
from distill_dagster.teacher.providers.capabilities import takes_schema
from distill_dagster.teacher.providers.exchange import Request, Response

EVOLUTIONS = {
    "deeper": "it asks for more: the matter goes deeper, or a second one hangs on it.",
    "constrained": "it has one more constraint, condition or detail that an answer must heed.",
    "rarer": "it is a rarer case of the same kind: an unusual situation, product, place or wording.",
}
"""Evol-Instruct's in-depth evolution (deepening, constraints) and in-breadth evolution (a rarer case)."""
GENERATION_STEP = 1_000_000
"""What a generation adds to the sample_index of its requests: they differ from all that were sent before."""
PROMPTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
    "required": ["prompts"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ImagineNeed:
    """What a slice lacks to its target: prompts, and the requests for them.

    `requests` is what it takes where every text is new and accepted, `at_most` what is sent before the slice is left
    as it is.
    """

    prompts: int
    requests: int
    at_most: int


@dataclass(frozen=True)
class ImagineJob:
    """What one request asks for."""

    number: int
    method: str
    count: int
    axes: dict[str, str] = field(default_factory=dict)
    label: LabelSpec | None = None
    parent: PoolPrompt | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PoolPrompt:
    """A prompt that the slice has."""

    id: str
    text: str
    target_label: str | None
    imagined: bool


def get_imagine_spec(task: Task) -> ImagineSpec:
    return task.imagine or ImagineSpec()


def get_imagine_teacher(task: Task) -> TeacherSpec:
    """Who imagines: the task's teacher unless `imagine.teacher` names another."""
    own = get_imagine_spec(task).teacher
    return own.teacher(task.teacher) if own is not None else task.teacher


def count_imagine_requests(task: Task, slice_: Slice) -> ImagineNeed:
    """What imagining would ask for a slice; nothing where it has no target or has reached it."""
    missing = max(0, (slice_.target or 0) - len(collect_different_texts(slice_)))
    spec = get_imagine_spec(task)
    requests = -(-missing // spec.per_request)
    return ImagineNeed(missing, requests, requests * spec.max_rounds)


def collect_different_texts(slice_: Slice) -> set[str]:
    """The different prompts of a slice."""
    return {text.strip() for text in collect_texts(slice_, slice_.imagination)}


def collect_texts(slice_: Slice, imagination: ImagineHistory) -> list[str]:
    own = [one.text for one in slice_.seeds] + [one.text for one in slice_.accepted]
    return own + [one.text for one in imagination.prompts]


class Imaginer:
    """All that shapes the requests for one slice."""

    def __init__(
        self,
        task: Task,
        key: str,
        slice_: Slice,
        held_out: Sequence[LabelledRow],
        own_templates: dict[str, str],
        identity: str,
    ) -> None:
        """`held_out`: golden and dev rows; a prompt that equals or nearly repeats one is never shown.

        `identity`: the teacher's, as in `Endpoint.identity`.
        """
        self.task, self.key, self.slice, self.identity = task, key, slice_, identity
        self.spec, self.teacher = get_imagine_spec(task), get_imagine_teacher(task)
        self.templates = AuxiliaryTemplates(own_templates, IMAGINE_TEMPLATES)
        takes = takes_schema(self.teacher.model, self.teacher.response_format)
        self.structured = self.teacher.api == "chat" and takes
        self._held_out = SeenPrompts(self.spec.near_duplicate, [row.text for row in held_out])

    def pool(self, imagination: ImagineHistory) -> list[PoolPrompt]:
        """The prompts that may be shown, sorted by id."""
        given = [
            (compute_prompt_id(build_messages(one)), one.text, one.target_label, False) for one in self.slice.seeds
        ]
        given += [(_compute_text_id(one.text), one.text, None, False) for one in self.slice.accepted]
        given += [(_compute_text_id(one.text), one.text, one.target_label, True) for one in imagination.prompts]
        found: dict[str, PoolPrompt] = {}
        for id_, text, label, imagined in given:
            if id_ not in found and not self._held_out.repeats(text):
                found[id_] = PoolPrompt(id_, text.strip(), label, imagined)
        return [found[id_] for id_ in sorted(found)]

    def jobs(self, imagination: ImagineHistory, missing: int) -> list[ImagineJob]:
        """The requests of one round, which ask for `missing` prompts together."""
        first, size = imagination.requests, self.spec.per_request
        requests = -(-missing // size)
        pool = self.pool(imagination)
        turns = islice(self._turns(bool(pool)), first, first + requests)
        return [
            self._job(first + n, method, times, min(size, missing - n * size), pool, imagination.generation)
            for n, (method, times) in enumerate(turns)
        ]

    def _turns(self, evolves: bool) -> Iterator[tuple[str, Counter[str]]]:
        """The endless sequence of methods by their shares, with how often each came before."""
        shares = self.spec.shares()
        credit, times = dict.fromkeys(shares, 0.0), Counter[str]()
        while True:
            for name, share in shares.items():
                credit[name] += share
            name = max(shares, key=lambda name: round(credit[name], 9))
            credit[name] -= 1
            yield (name if evolves or name != "evolve" else "self_instruct"), Counter(times)
            times[name] += 1

    def _job(
        self, number: int, method: str, times: Counter[str], count: int, pool: list[PoolPrompt], generation: int
    ) -> ImagineJob:
        seed = [self.spec.seed, self.key, generation]
        if method == "evolve":
            by_id = {one.id: one for one in pool}
            parent = by_id[_pick_in_turn(list(by_id), times["evolve"], *seed, "parent")]
            label = next((one for one in self.task.labels if one.name == parent.target_label), None)
            axes = {"evolution": _pick_in_turn(list(EVOLUTIONS), times["evolve"], *seed, "evolution")}
            return ImagineJob(number, method, count, axes, label, parent)
        label = None
        if self.task.labels:
            names = {one.name: one for one in self.task.labels}
            label = names[_pick_in_turn(list(names), times["grid"] + times["self_instruct"], *seed, "label")]
        if method == "grid":
            axes = {name: _pick_in_turn(values, times["grid"], *seed, name) for name, values in self.spec.axes.items()}
            return ImagineJob(number, method, count, axes, label)
        # Self-Instruct shows mostly what people wrote, and some of what was imagined since.
        shuffled = random.Random(hash_content([*seed, "examples", number]))
        imagined = [one.text for one in pool if one.imagined]
        human = [one.text for one in pool if not one.imagined]
        some = shuffled.sample(imagined, min(len(imagined), self.spec.examples // 3))
        some += shuffled.sample(human, min(len(human), self.spec.examples - len(some)))
        shuffled.shuffle(some)
        return ImagineJob(number, method, count, {}, label, None, tuple(some))

    def request(self, job: ImagineJob, generation: int) -> Request:
        sample = generation * GENERATION_STEP + job.number
        params: dict[str, Any] = {"temperature": self.spec.temperature, "max_tokens": self.spec.max_tokens}
        if self.spec.temperature > 0:
            params["seed"] = sample
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
            return Request(self.identity, sample, params, prompt=f"{text}\n\n1.")
        schema = {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": PROMPTS_SCHEMA}}
        messages = [{"role": "user", "content": text}]
        form = schema if self.structured else None
        return Request(self.identity, sample, params, messages=messages, response_format=form)

    def listed(self, job: ImagineJob, response: Response) -> list[str]:
        """The texts of an answer."""
        text = f"1. {response.text.lstrip()}" if self.teacher.api == "text" else response.text
        found = parse_texts(text, job.count, cut=response.finish_reason == "length")
        return [one for one in found if len(one) <= self.spec.max_chars]


def _compute_text_id(text: str) -> str:
    return compute_prompt_id(make_user_message(text.strip()))


def _pick_in_turn(values: Sequence[str], n: int, *seed: Any) -> str:
    """The n-th of an endless sequence in which every value comes once before any comes again, in shuffled order."""
    block, place = divmod(n, len(values))
    order = list(values)
    random.Random(hash_content([*seed, block])).shuffle(order)
    return order[place]
