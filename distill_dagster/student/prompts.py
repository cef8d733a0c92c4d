"""The prompt of a causal student in token ids: one renderer for training, prediction, export and serving.

`plain` is for models without a chat template. It has no instructions and no examples: a student learns the task from
its rows, and every token costs latency.

    Ticket: My app closes when I open a photo.
    Category: crash<end of text>

`chat` (`chat_prompts.py`) is the base's own chat template, with the task's instructions as system text.

If a prompt is too long, its text is cut, never the template and never the answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from distill_dagster.core.errors import DistillError
from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.student.types import StudentPrompt, TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_dagster.config import StudentSpec

LABEL_CUE = "\nCategory:"
"""The end of a plain prompt that asks for a label."""
ANSWER_CUE, REASONING_CUE = f"\n{ANSWER_MARK}", f"\n{REASONING_MARK}"
"""The end of a plain prompt that asks for a written answer, or for reasoning with the answer below it."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt. `is_cut` says that text was left out, so that the prompt fits `max_tokens`."""

    ids: list[int]
    is_cut: bool = False


class PromptRenderer(ABC):
    """Renders what a student is asked, and what it answers, to token ids.

    `end` is the token that ends every answer. A student learns to write it. `stops` are all tokens at which a student
    stops writing: `end`, and those that the base ends a text with.
    """

    style: Literal["chat", "plain"]

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, max_tokens: int, end: int, ends: Iterable[int]
    ) -> None:
        self.tokenizer, self.settings, self.max_tokens = tokenizer, settings, max_tokens
        self.end = end
        self.stops = sorted({end, *ends})

    @abstractmethod
    def encode_prompts(
        self, asked: Sequence[StudentPrompt], cue: str = LABEL_CUE, has_answer: bool = True
    ) -> list[EncodedPrompt]:
        """Encode prompts, each at most `max_tokens` long. The answer follows directly.

        Args:
            cue: what is asked for: `LABEL_CUE`, `ANSWER_CUE` or `REASONING_CUE`.
            has_answer: whether the answer is asked for too, below the reasoning of `REASONING_CUE`.
        """

    @abstractmethod
    def encode_answer(self, answer: str, cue: str = LABEL_CUE) -> list[int]:
        """Token ids of an answer after a prompt with this cue, without the end token."""

    @abstractmethod
    def decode_answer(self, ids: Sequence[int], cue: str) -> str:
        """The text that a student wrote after a prompt with this cue, as `kinds.read_answer` expects it.

        Args:
            ids: the tokens after the prompt. Those from the first stop token on are left out.
        """

    @abstractmethod
    def build_served_template(self, cue: str) -> str:
        """A Jinja chat template that renders a conversation to a student's prompt with this cue.

        A server that applies it to the messages of a request asks what the student was trained on. It cuts nothing.
        """

    def describe(self, cue: str, answer: str) -> dict[str, Any]:
        """The style, the tokens that end an answer, and a sample of a prompt and an answer as text and token ids."""
        [prompt] = self.encode_prompts([StudentPrompt.from_text("An example.")], cue)
        answer_ids = [*self.encode_answer(answer, cue), self.end]
        return {
            "prompt": self.style,
            "end": self.tokenizer.decode([self.end]),
            "stops": [self.tokenizer.decode([token]) for token in self.stops],
            "sample": {
                "prompt": self.tokenizer.decode(prompt.ids),
                "prompt_ids": prompt.ids,
                "answer": self.tokenizer.decode(answer_ids),
                "answer_ids": answer_ids,
            },
        }

    def _encode_text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_after(self, before: str, text: str) -> list[int] | None:
        """Token ids of a text as they are after another one. None if a token would cover the end of the other.

        They are cut from the tokens of both together: some tokenizers encode the first word of a text differently.
        """
        first, both = self._encode_text(before), self._encode_text(before + text)
        return both[len(first) :] if both[: len(first)] == first else None

    def _cut_at_stop(self, ids: Sequence[int]) -> list[int]:
        ends = (place for place, token in enumerate(ids) if token in self.stops)
        return list(ids[: next(ends, len(ids))])


class PlainRenderer(PromptRenderer):
    """Renders `Ticket: text` and a cue. A conversation becomes one text, with the role before each turn."""

    style = "plain"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, max_tokens: int, ends: Iterable[int] = ()
    ) -> None:
        """`ends` are the tokens that the base ends a text with, next to that of the tokenizer."""
        super().__init__(tokenizer, settings, max_tokens, get_end_token_id(tokenizer), ends)

    def encode_prompts(
        self, asked: Sequence[StudentPrompt], cue: str = LABEL_CUE, has_answer: bool = True
    ) -> list[EncodedPrompt]:
        """As `PromptRenderer`. A text that is too long is cut at its end."""
        if not asked:
            return []
        cue_ids, start = self._encode_text(cue), self._get_start_token_ids()
        texts = [f"{self.settings.item}: {prompt.text.strip()}" for prompt in asked]
        bodies = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        room = max(1, self.max_tokens - len(cue_ids) - len(start))
        return [EncodedPrompt(start + body[:room] + cue_ids, len(body) > room) for body in bodies]

    def encode_answer(self, answer: str, cue: str = LABEL_CUE) -> list[int]:
        """As `PromptRenderer`. The mark that the cue ends with is part of the prompt, not of the answer."""
        text = answer.removeprefix(cue.strip()).strip()
        ids = self._encode_after(cue, f" {text}")
        return ids if ids is not None else self._encode_text(f" {text}")

    def decode_answer(self, ids: Sequence[int], cue: str) -> str:
        """As `PromptRenderer`. The text begins with the mark at the end of the prompt."""
        text = self.tokenizer.decode(self._cut_at_stop(ids), skip_special_tokens=True)
        return f"{cue.strip()} {text.strip()}"

    def build_served_template(self, cue: str) -> str:
        """As `PromptRenderer`. A beginning-of-text token is left to the tokenizer that reads the text."""
        return _PLAIN_TEMPLATE.replace("ITEM", to_jinja(f"{self.settings.item}: ")).replace("CUE", to_jinja(cue))

    def _get_start_token_ids(self) -> list[int]:
        """The beginning-of-text token, for tokenizers that add one."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []


_PLAIN_TEMPLATE = """\
{%- set served = namespace(text='', has_roles=false) -%}
{%- for message in messages -%}
{%- if message['role'] != 'user' -%}{%- set served.has_roles = true -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if not loop.first -%}{%- set served.text = served.text + '\\n' -%}{%- endif -%}
{%- if served.has_roles -%}{%- set served.text = served.text + (message['role'] | capitalize) + ': ' -%}{%- endif -%}
{%- set served.text = served.text + (message['content'] or '') -%}
{%- endfor -%}
{{- ITEM + (served.text | trim) + CUE -}}"""
"""`tables.messages.format_messages` between the item's name and the cue."""


def to_jinja(value: Any) -> str:
    """A value of JSON as a Jinja literal."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_jinja(key)}: {to_jinja(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_jinja, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def get_end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends a text."""
    value = tokenizer.eos_token_id
    return int(value if value is not None else tokenizer.pad_token_id)


def make_renderer(
    spec: StudentSpec, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase, generation: Any = None
) -> PromptRenderer:
    """The renderer that `prompt` says. `auto` is chat if that works for the base and the task, else plain.

    Chat works if the tokenizer has a template that can be trained on, and the template and the instructions fit in
    `max_tokens`. The template of chat is pinned (see `ChatRenderer`), so save the tokenizer after this.

    Args:
        generation: the generation settings of the base, for the tokens that it ends a text with.

    Raises:
        DistillError: `prompt: chat` without a chat template, or one that cannot be trained on.
    """
    from distill_dagster.student.chat_prompts import ChatRenderer

    ends = getattr(generation, "eos_token_id", None)
    listed = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if spec.prompt == "chat":
        return ChatRenderer(tokenizer, settings, spec.max_tokens, listed, spec.model)
    if spec.prompt == "auto" and (template := tokenizer.chat_template):
        try:
            renderer = ChatRenderer(tokenizer, settings, spec.max_tokens, listed, spec.model)
            renderer.encode_prompts([StudentPrompt.from_text("")], REASONING_CUE if settings.reasoning else ANSWER_CUE)
        except DistillError:
            tokenizer.chat_template = template
        else:
            return renderer
    return PlainRenderer(tokenizer, settings, spec.max_tokens, listed)
