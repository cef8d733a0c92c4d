"""The requests that a task's prompts become."""

from __future__ import annotations

from typing import Any

from distill_dagster.config import Task
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.kinds import get_kind
from distill_dagster.prompts.example_choice import build_example_choice
from distill_dagster.prompts.few_shot import FewShotExample, get_draw_labels
from distill_dagster.prompts.templates import Templates
from distill_dagster.teacher.asking import soft_labels
from distill_dagster.teacher.asking.free_text import AskedPrompt, FreeTextAsker, get_asked_text
from distill_dagster.teacher.asking.request_template import PLACEHOLDER, RequestTemplate, can_render
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request

MAX_CACHED_TURNS = 64
LABEL_BIAS = 20.0
"""Lifts a label from e^-20 of the likeliest token to its side, far from where single precision ends."""


class RequestBuilder:
    """Makes the requests of one task to one teacher."""

    def __init__(
        self,
        task: Task,
        templates: Templates,
        pool: list[FewShotExample],
        endpoint: Endpoint,
        embed: EmbedFunction | None = None,
    ) -> None:
        """`embed` finds the examples for `few_shot.nearest` alone."""
        self.task, self.spec, self.templates, self.endpoint = task, task.teacher, templates, endpoint
        self.choice = build_example_choice(pool, get_draw_labels(task), self.spec.few_shot, embed)
        self.writer = (
            FreeTextAsker(get_kind(task), templates, endpoint, self.spec) if task.answers_are_written else None
        )
        self._turns: dict[tuple[str, ...], list[dict[str, str]]] = {}
        parts = ("text",) if self.spec.api == "text" else ("system", "user")
        printed = all(templates.prints(part, "text") for part in parts)
        self._alike = printed and self.choice.shared and endpoint.recorded is None
        self._moulds: dict[int, RequestTemplate] = {}
        self._samples = list(range(self.spec.requests_per_prompt))

    def samples(self, text: str) -> list[int]:
        """Which samples a prompt wants: so many for each draw; of a replay teacher all that were recorded."""
        if self.endpoint.recorded is not None:
            return list(range(max(1, len(self.endpoint.recorded.find(text)))))
        return self._samples

    def make(self, asked: str | AskedPrompt, sample: int, spelled: str = "") -> Request:
        """The request for one sample of one prompt; `spelled` is a beginning of a label to go on from."""
        text, turns = (asked, ()) if isinstance(asked, str) else (asked.text, asked.turns)
        if not self._alike or turns or spelled or not can_render(text):
            return self.rendered(asked, sample, spelled)
        if sample not in self._moulds:
            self._moulds[sample] = RequestTemplate(self.rendered(PLACEHOLDER, sample))
        return self._moulds[sample].pour(text)

    def rendered(self, asked: str | AskedPrompt, sample: int, spelled: str = "") -> Request:
        """The same as `make`, with nothing kept from one prompt to the next but the examples' turns."""
        text = get_asked_text(asked)
        if self.endpoint.recorded is not None:
            return self.endpoint.recorded.request(self.endpoint.identity, text, sample)
        if self.writer is not None:
            prompt = AskedPrompt(asked) if isinstance(asked, str) else asked
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
                params |= _build_boost_params(soft_labels.list_next_words(self.task.label_names, spelled), sample)
            rendered = self.templates.part("text", **values)
            rendered += f" {spelled}" if spelled else ""
            return Request(self.endpoint.identity, sample, params, prompt=rendered)
        if self.spec.soft_labels == "logprobs":
            params |= {"logprobs": True, "top_logprobs": self.spec.top_logprobs}
        own = {"role": "user", "content": self.templates.part("user", **values)}
        messages = [*self._shown(examples, values), own]
        return Request(self.endpoint.identity, sample, params, messages=messages)

    def _shown(self, examples: list[FewShotExample], values: dict[str, Any]) -> list[dict[str, str]]:
        """All before the prompt's own turn: made once for those that share it, which is most of a request's work."""
        key = tuple(example.id for example in examples)
        if self.templates.uses("system", "text"):
            key = (*key, values["text"])
        if key not in self._turns:
            if len(self._turns) > MAX_CACHED_TURNS:  # the nearest examples: hardly two prompts have the same
                self._turns.clear()
            turns = [{"role": "system", "content": self.templates.part("system", **values)}]
            for example in examples:
                shown = self.templates.part("user", **(values | {"text": example.text}))
                turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": example.label}]
            self._turns[key] = turns
        return self._turns[key]


def _build_boost_params(words: list[str], sample: int) -> dict[str, Any]:
    """Parameters for llama.cpp's server: `words` raised alike, and probabilities as they are behind that.

    Of the samplers only the bias and a temperature of 1 act, so the words' probabilities keep their ratios.
    """
    bias = [[word, LABEL_BIAS] for word in words]
    asked = {"logit_bias": bias, "post_sampling_probs": True, "samplers": ["temperature"]}
    return {"temperature": 1.0, "seed": sample, "extra_body": asked}
