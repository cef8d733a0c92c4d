"""Prompts in the base's own chat template: system text, turns, tools, and the end of the assistant's turn.

Quirks of templates are handled by what a template does, not by the name of its model:

- A template that shows the day of the prompt (Llama 3.2, SmolLM3) always shows the same day, and one that can think
  (Qwen3, SmolLM3) does not. Both are pinned in the template itself, which is saved with the student. So a server that
  reads the saved template renders the same prompt.
- Tokens that a template puts before an answer, such as Qwen3's empty thinking block, belong to the prompt.
- A template without a system turn gets the system text at the start of the first user turn. Gemma's own does that.
- The token after the assistant's text ends an answer, whatever the tokenizer's end token is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.kinds.base import REASONING_MARK
from distill_dagster.student.prompts import LABEL_CUE, REASONING_CUE, EncodedPrompt, PromptRenderer, to_jinja
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PINNED_DAY = "26 Jul 2024"
"""The day that templates show. It is the default of Llama 3.2's own."""
REASONING_INSTRUCTIONS = "Write your reasoning after `Reasoning:`, and below it the answer after `Answer:`."
RATIONALE_INSTRUCTIONS = "Write your reasoning after `Reasoning:`, without the answer."
TOOL_INSTRUCTIONS = (
    "Answer with a JSON list of calls of these tools, each with `name` and `arguments`. If none fits, write []."
)
"""System text for a template that cannot show tools. The list of tools follows."""

Turn = dict[str, Any]
"""A turn as chat templates read it."""

_PROBE: list[Turn] = [{"role": "user", "content": "Question?"}]
_PROBE_ANSWER = "Answer"
_PROBE_SYSTEM = "Mind the gap."


def pin_template(template: str) -> str:
    """The template without thinking, and with one fixed day in place of today."""
    pins = ["{%- set enable_thinking = false %}", f'{{%- set date_string = "{PINNED_DAY}" %}}']
    if "strftime_now" in template:
        pins.append(f"{{%- macro strftime_now(format) %}}{PINNED_DAY}{{% endmacro %}}")
    pinned = "".join(pins)
    return template if template.startswith(pinned) else pinned + template


_INSTRUCTED_TEMPLATE = """\
{%- set served = namespace(system=PARTS, turns=[], is_first=true) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set served.system = served.system + [message['content'] or ''] -%}
{%- else -%}
{%- set served.turns = served.turns + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set system_text = served.system | join('\\n\\n') -%}
"""
_SYSTEM_TURN = """\
{%- set messages = served.turns -%}
{%- if system_text -%}
{%- set messages = [{'role': 'system', 'content': system_text}] + served.turns -%}
{%- endif -%}"""
_SYSTEM_IN_FIRST_TURN = """\
{%- set served.system = [] -%}
{%- for message in served.turns -%}
{%- if served.is_first and system_text and message['role'] == 'user' -%}
{%- set served.is_first = false -%}
{%- set first = {'role': 'user', 'content': system_text + '\\n\\n' + (message['content'] or '')} -%}
{%- set served.system = served.system + [first] -%}
{%- else -%}
{%- set served.system = served.system + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = served.system -%}"""
"""`ChatRenderer._build_turns` in Jinja, before the template of the base."""


class ChatRenderer(PromptRenderer):
    """Renders conversations with the chat template of a tokenizer, which it pins (`pin_template`)."""

    style = "chat"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: TaskSettings,
        max_tokens: int,
        ends: Iterable[int],
        model: str = "this model",
    ) -> None:
        """Find out what the template can do.

        Raises:
            DistillError: there is no template, or what it renders before an answer is not what it asks with.
        """
        if not tokenizer.chat_template:
            raise DistillError(
                f"The tokenizer of {model} has no chat template. Use `prompt: plain`, or the model's instruct version."
            )
        tools = json.loads(settings.tools) if settings.tools else None
        tokenizer.chat_template = pin_template(tokenizer.get_chat_template(tools=tools))
        self.tokenizer, self._model = tokenizer, model
        eos = tokenizer.eos_token_id
        super().__init__(
            tokenizer, settings, max_tokens, self._find_end_token(), [*ends, *([] if eos is None else [int(eos)])]
        )
        self._has_system = _PROBE_SYSTEM in (self._try_render([_make_turn("system", _PROBE_SYSTEM), *_PROBE]) or "")
        shown = self._try_render(_PROBE, tools) if tools else None
        self._shows_tools = shown is not None and all(tool["function"]["name"] in shown for tool in tools or [])

    def encode_prompts(
        self, asked: Sequence[StudentPrompt], cue: str = LABEL_CUE, has_answer: bool = True
    ) -> list[EncodedPrompt]:
        """As `PromptRenderer`. Of a conversation that is too long, the oldest turns are left out first.

        Raises:
            DistillError: the template and the instructions alone are longer than `max_tokens`, or the template cannot
                render a conversation.
        """
        return [self._encode_prompt(prompt, cue, has_answer) for prompt in asked]

    def encode_answer(self, answer: str, cue: str = LABEL_CUE) -> list[int]:
        """As `PromptRenderer`. Reasoning begins with its mark, and calls of tools are as the template writes them."""
        before, text = self._render(_PROBE), answer.strip()
        if cue == REASONING_CUE and not text.startswith(REASONING_MARK):
            text = f"{REASONING_MARK} {text}"
        elif self._shows_tools:
            text = self._render_calls(text) or text
        ids = self._encode_after(before, text)
        return ids if ids is not None else self._encode_text(text)

    def decode_answer(self, ids: Sequence[int], cue: str) -> str:
        """As `PromptRenderer`. Special tokens stay if there are tools: some templates mark calls with them."""
        text = self.tokenizer.decode(self._cut_at_stop(ids), skip_special_tokens=self.settings.tools is None)
        return text.strip()

    def _encode_prompt(self, prompt: StudentPrompt, cue: str, has_answer: bool) -> EncodedPrompt:
        messages, tools = list(prompt.messages), self._choose_tools(prompt)

        def encode(turns: list[Message]) -> list[int]:
            return self._encode_text(self._render(self._build_turns(turns, prompt.tools, cue, has_answer), tools))

        ids = encode(messages)
        if len(ids) <= self.max_tokens:
            return EncodedPrompt(ids)
        while len(ids) > self.max_tokens and (shorter := _drop_oldest_turns(messages)) is not None:
            messages, ids = shorter, encode(shorter)
        last = messages[-1]
        words = self._encode_text(last["content"] or "")
        while len(ids) > self.max_tokens and words:
            words = words[: len(words) - min(len(words), len(ids) - self.max_tokens)]
            text = self.tokenizer.decode(words, skip_special_tokens=False)
            messages = [*messages[:-1], {**last, "content": text}]
            ids = encode(messages)
        if len(ids) > self.max_tokens:
            raise DistillError(
                f"The chat template of {self._model} and the task's instructions take {len(ids)} tokens, and "
                f"`max_tokens` is {self.max_tokens}. Raise `max_tokens` of the student, or use `prompt: plain`."
            )
        return EncodedPrompt(ids, is_cut=True)

    def _choose_tools(self, prompt: StudentPrompt) -> list[dict[str, Any]] | None:
        tools = prompt.tools or self.settings.tools
        return json.loads(tools) if tools and self._shows_tools else None

    def _build_turns(self, messages: list[Message], tools: str | None, cue: str, has_answer: bool = True) -> list[Turn]:
        """The turns with the system text in front: the task's instructions, and the conversation's own system text."""
        parts = self._build_instructions(tools, cue, has_answer)
        parts += [message["content"] or "" for message in messages if message["role"] == "system"]
        turns = [_convert_turn(message) for message in messages if message["role"] != "system"]
        system = "\n\n".join(parts)
        if not system:
            return turns
        if self._has_system:
            return [_make_turn("system", system), *turns]
        first = next((turn for turn in turns if turn["role"] == "user"), None)
        if first is not None:
            first["content"] = f"{system}\n\n{first['content']}"
        return turns

    def _build_instructions(self, tools: str | None, cue: str, has_answer: bool = True) -> list[str]:
        parts = [self.settings.instructions] if self.settings.instructions else []
        if cue == REASONING_CUE:
            parts.append(REASONING_INSTRUCTIONS if has_answer else RATIONALE_INSTRUCTIONS)
        if (listed := tools or self.settings.tools) and not self._shows_tools:
            parts.append(f"{TOOL_INSTRUCTIONS}\n{listed}")
        return parts

    def build_served_template(self, cue: str) -> str:
        """As `PromptRenderer`: the pinned template, with the task's instructions and tools in front of it."""
        before = _INSTRUCTED_TEMPLATE.replace("PARTS", to_jinja(self._build_instructions(None, cue)))
        before += _SYSTEM_TURN if self._has_system else _SYSTEM_IN_FIRST_TURN
        if self.settings.tools and self._shows_tools:
            tools = to_jinja(json.loads(self.settings.tools))
            before += f"{{%- if not tools -%}}{{%- set tools = {tools} -%}}{{%- endif -%}}"
        template = self.tokenizer.chat_template
        assert isinstance(template, str)  # `pin_template` set it
        return before.removesuffix("-%}") + "%}" + template

    def _render(self, turns: list[Turn], tools: list[dict[str, Any]] | None = None, asks: bool = True) -> str:
        """Render turns, by default up to the place where the assistant answers.

        Raises:
            DistillError: the template cannot render them.
        """
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(turns, tools, tokenize=False, add_generation_prompt=asks)
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DistillError(
                f"The chat template of {self._model} cannot render a conversation with the turns {roles}: {error}. "
                f"Use `prompt: plain`."
            ) from None
        assert isinstance(text, str)
        return text

    def _try_render(self, turns: list[Turn], tools: list[dict[str, Any]] | None = None) -> str | None:
        try:
            return self._render(turns, tools)
        except DistillError:
            return None

    def _find_end_token(self) -> int:
        """The special token after an answer. The template must put nothing else between a prompt and its answer."""
        asked = self._render(_PROBE)
        whole = self._render([*_PROBE, _make_turn("assistant", _PROBE_ANSWER)], asks=False)
        if not whole.startswith(asked + _PROBE_ANSWER):
            raise DistillError(
                f"The chat template of {self._model} puts other text before an answer than it asks with, so a student "
                f"would learn another prompt than it gets. Use `prompt: plain`."
            )
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        after = self._encode_text(whole[len(asked) + len(_PROBE_ANSWER) :])
        end = next((token for token in after if token in special), self.tokenizer.eos_token_id)
        if end is None:
            raise DistillError(f"The chat template of {self._model} has no token that ends an answer. Use another one.")
        return int(end)

    def _render_calls(self, answer: str) -> str | None:
        """An answer that lists calls, as the template writes them. None if it is no such list or cannot be written."""
        try:
            calls = json.loads(answer)
            functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        except (ValueError, TypeError, KeyError):
            return None
        if not functions:
            return None
        tools = json.loads(self.settings.tools or "[]")
        turn = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": f} for f in functions],
        }
        try:
            asked, whole = self._render(_PROBE, tools), self._render([*_PROBE, turn], tools, asks=False)
        except DistillError:
            return None
        if not whole.startswith(asked):
            return None
        end = self.tokenizer.convert_ids_to_tokens(self.end)
        written = whole[len(asked) :].rsplit(end, 1)[0] if end in whole[len(asked) :] else ""
        return written.strip() if all(f["name"] in written for f in functions) else None


def _make_turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _convert_turn(message: Message) -> Turn:
    turn: Turn = {"role": message["role"], "content": message["content"] or ""}
    if calls := message["tool_calls"]:
        turn["tool_calls"] = [_decode_arguments(call) for call in json.loads(calls)]
    return turn | {name: value for name in ("tool_call_id", "name") if (value := message[name])}


def _decode_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form, whose arguments are JSON in a string, with an object in its place."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    decoded = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": function.get("name"), "arguments": decoded}}


def _drop_oldest_turns(messages: list[Message]) -> list[Message] | None:
    """The conversation without its oldest question and the turns up to the next one. None if only one is left."""
    system = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    next_question = next((n for n, message in enumerate(turns) if n > 0 and message["role"] == "user"), None)
    return None if next_question is None else [*system, *turns[next_question:]]
