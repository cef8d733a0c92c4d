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
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.asking.free_text import FreeTextAsker
from distill_dagster.teacher.asking.request_template import PLACEHOLDER, RequestTemplate, can_render
from distill_dagster.teacher.asking.stated_labels import StatedLabelAsker
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request

MAX_CACHED_TURNS = 64
"""How many different choices of few-shot examples keep their rendered turns."""
LABEL_BIAS = 20.0
"""Lifts a label from e^-20 of the likeliest token to the same probability. Single precision can represent both."""


class RequestBuilder:
    """Builds the requests of one task to one teacher."""

    def __init__(
        self,
        task: Task,
        templates: Templates,
        pool: list[FewShotExample],
        endpoint: Endpoint,
        embed: EmbedFunction | None = None,
    ) -> None:
        """`embed` is only needed for `few_shot.nearest`."""
        self.task, self.spec, self.templates, self.endpoint = task, task.teacher, templates, endpoint
        self.choice = build_example_choice(pool, get_draw_labels(task), self.spec.few_shot, embed)
        is_stated = self.spec.has_stated_soft_labels
        self.stated = StatedLabelAsker(task, templates, endpoint) if is_stated else None
        """Builds requests and reads answers that state probabilities or ranks of labels; else None."""
        is_written = task.has_written_answers and not is_stated
        self.free_text = FreeTextAsker(get_kind(task), templates, endpoint, self.spec) if is_written else None
        """Builds requests and reads answers that are free text; None if a request asks for labels alone."""
        self._turns: dict[tuple[str, ...], list[dict[str, str]]] = {}
        parts = ("text",) if self.spec.api == "text" else ("system", "user")
        only_printed = all(templates.only_prints(part, "text") for part in parts)
        self._has_templates = only_printed and self.choice.shared and endpoint.recorded is None
        self._request_templates: dict[int, RequestTemplate] = {}
        self._samples = list(range(self.spec.requests_per_prompt))

    def list_samples(self, text: str) -> list[int]:
        """The sample indexes to ask for: `requests_per_prompt`, or all recorded ones of a replay teacher."""
        if self.endpoint.recorded is not None:
            return list(range(max(1, len(self.endpoint.recorded.find(text)))))
        return self._samples

    def build(self, prompt: AskedPrompt, sample: int, spelled: str = "") -> Request:
        """Build the request for one sample of one prompt.

        Args:
            spelled: the beginning of a label, which the answer has to continue. Only for the text API.
        """
        if not self._has_templates or prompt.messages or spelled or not can_render(prompt.text):
            return self.render(prompt, sample, spelled)
        if sample not in self._request_templates:
            self._request_templates[sample] = RequestTemplate(self.render(AskedPrompt(PLACEHOLDER), sample))
        return self._request_templates[sample].render(prompt.text)

    def render(self, prompt: AskedPrompt, sample: int, spelled: str = "") -> Request:
        """Build the same request as `build` from the templates, which takes longer."""
        if self.endpoint.recorded is not None:
            return self.endpoint.recorded.build_request(self.endpoint.identity, prompt.text, sample)
        examples = self.choice.choose(prompt.text, sample)
        if self.free_text is not None:
            return self.free_text.build_request(prompt, examples, sample)
        if self.stated is not None:
            return self.stated.build_request(prompt, examples, sample)
        params = self.spec.build_params(self.spec.temperature, self.spec.max_tokens, sample)
        values = {
            "text": prompt.text,
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
            rendered = self.templates.render_part("text", **values)
            rendered += f" {spelled}" if spelled else ""
            thinking = self.spec.allowed_thinking_tokens
            return Request(self.endpoint.identity, sample, params, prompt=rendered, thinking_tokens=thinking)
        if self.spec.soft_labels == "logprobs":
            params |= {"logprobs": True, "top_logprobs": self.spec.top_logprobs}
        last = {"role": "user", "content": self.templates.render_part("user", **values)}
        messages = [*self._build_shared_turns(examples, values), last]
        thinking = self.spec.allowed_thinking_tokens
        return Request(self.endpoint.identity, sample, params, messages=messages, thinking_tokens=thinking)

    def _build_shared_turns(self, examples: list[FewShotExample], values: dict[str, Any]) -> list[dict[str, str]]:
        """All turns before the prompt's own. Prompts with the same examples share them, which saves most work."""
        key = tuple(example.id for example in examples)
        if self.templates.uses_variable("system", "text"):
            key = (*key, values["text"])
        if key not in self._turns:
            if len(self._turns) > MAX_CACHED_TURNS:  # with the nearest examples, few prompts share theirs
                self._turns.clear()
            turns = [{"role": "system", "content": self.templates.render_part("system", **values)}]
            for example in examples:
                content = self.templates.render_part("user", **(values | {"text": example.text}))
                turns += [{"role": "user", "content": content}, {"role": "assistant", "content": example.label}]
            self._turns[key] = turns
        return self._turns[key]


def _build_boost_params(words: list[str], sample: int) -> dict[str, Any]:
    """Parameters for llama.cpp's server that raise `words` equally and return the probabilities after that.

    No sampler but the bias and a temperature of 1 is active, so the words' probabilities keep their ratios.
    """
    bias = [[word, LABEL_BIAS] for word in words]
    body = {"logit_bias": bias, "post_sampling_probs": True, "samplers": ["temperature"]}
    return {"temperature": 1.0, "seed": sample, "extra_body": body}
