"""Asking for answers that are written, and reading them: of kinds without labels, and of labels behind reasoning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import polars as pl

from distill_dagster.config import TeacherSpec
from distill_dagster.core.json_schema import is_strict_schema
from distill_dagster.kinds import Kind, Question, format_with_reasoning, is_refusal, read_answer
from distill_dagster.kinds.base import ANSWER_MARK
from distill_dagster.kinds.refusals import REFUSAL_KEY
from distill_dagster.prompts.few_shot import FewShotExample
from distill_dagster.prompts.templates import Templates
from distill_dagster.tables.messages import format_transcript, get_user_text, user_text_expr
from distill_dagster.teacher.providers.capabilities import takes_schema, takes_tools
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response

_REFUSAL_PREFIX = f'{{"{REFUSAL_KEY}":'
"""How the canonical JSON of a refusal begins."""


@dataclass(frozen=True)
class AskedPrompt:
    """What is asked: a text, or the turns of a conversation as (role, content)."""

    text: str
    turns: tuple[tuple[str, str], ...] = ()
    refusal_wanted: bool = False

    @property
    def question(self) -> Question:
        return Question(self.text, self.refusal_wanted)


def build_asked_prompt(messages: list[dict[str, Any]], reference: str | None = None) -> AskedPrompt:
    """The prompt of a row of a prompts table."""
    turns = tuple((m["role"], m["content"] or "") for m in messages)
    alone = len(turns) == 1
    wanted = reference is not None and reference.startswith(_REFUSAL_PREFIX) and is_refusal(json.loads(reference))
    return AskedPrompt(get_user_text(messages), () if alone else turns, wanted)


def get_asked_text(asked: str | AskedPrompt) -> str:
    """The text of what is asked; of a conversation its user's turns."""
    return asked if isinstance(asked, str) else asked.text


def read_asked_prompts(prompts: pl.DataFrame, refusals: bool) -> dict[str, str | AskedPrompt]:
    """What the rows of a prompts table ask, by prompt_id: a text, or as `prompt_of` where there is more to it.

    `refusals`: a reference may say that a refusal is wanted.
    """
    alone = pl.col("messages").list.len() == 1
    if refusals:
        alone &= ~pl.col("reference").str.starts_with(_REFUSAL_PREFIX).fill_null(False)
    text, messages = pl.when(alone).then(user_text_expr()), pl.when(~alone).then(pl.col("messages"))
    rows = prompts.select("prompt_id", text.alias("text"), messages.alias("messages"), "reference").iter_rows()
    return {
        id_: text if text is not None else build_asked_prompt(messages, reference if refusals else None)
        for id_, text, messages, reference in rows
    }


class FreeTextAsker:
    """Makes the requests of one task whose answers are written, and reads the responses."""

    def __init__(self, kind: Kind, templates: Templates, endpoint: Endpoint, spec: TeacherSpec) -> None:
        self.kind, self.task, self.templates = kind, kind.task, templates
        self.endpoint, self.spec = endpoint, spec

    @property
    def stop(self) -> str:
        """What a base-like model runs on with behind its answer: the next item."""
        return f"\n\n{self.task.item}:"

    def request(self, prompt: AskedPrompt, examples: list[FewShotExample], sample: int) -> Request:
        """The request for one sample of one prompt, few-shot examples with their reasoning before it."""
        params: dict[str, Any] = {"temperature": self.spec.temperature, "max_tokens": self.spec.max_tokens}
        if self.spec.temperature > 0:
            params["seed"] = sample
        if self.spec.api == "text":
            text = format_transcript(prompt.turns) or prompt.text
            values = self._values([self._shown(e) for e in examples], "")
            rendered = self.templates.part("text", **values, text=text)
            return Request(self.endpoint.identity, sample, params | {"stop": [self.stop]}, prompt=rendered)
        return self._chat(prompt, examples, sample, params)

    def read(self, prompt: AskedPrompt, request: Request, response: Response) -> dict[str, Any]:
        """Status, reasoning and answer of a response; `error` says why a received one has no answer."""
        if response.finish_reason == "content_filter":
            return {"status": "filtered", "reasoning": response.reasoning}
        found = read_answer(
            self.kind,
            response.text,
            prompt.question,
            finish_reason=response.finish_reason,
            reasoning_content=response.reasoning,
            tool_calls=response.tool_calls or ([] if request.tools is not None and response.text.strip() else None),
            stop=self.stop if self.spec.api == "text" else None,
        )
        return vars(found)

    def _chat(
        self, prompt: AskedPrompt, examples: list[FewShotExample], sample: int, params: dict[str, Any]
    ) -> Request:
        tools = self._tools()
        structured = tools is None and (self.kind.structured or self.task.reasoning)
        schema = self._schema() if structured else None
        by_provider = schema is not None and takes_schema(self.endpoint.model, self.spec.response_format)
        # A turn with tool calls would have to be followed by their results: examples of calls stand in the system turn.
        told = self.task.kind == "tool_call"
        values = self._values([self._shown(e) for e in examples] if told else [], self._format(schema, by_provider))
        values["tools"] = [] if tools else self.task.tools
        system = self.templates.part("system", **values, text=prompt.text)
        own = [content for role, content in prompt.turns if role == "system"]
        messages = [{"role": "system", "content": "\n\n".join([system, *own])}]
        for example in [] if told else examples:
            messages += self._turns(example.text, example.messages, values)
            messages.append({"role": "assistant", "content": self._reply(example, structured)})
        messages += self._turns(prompt.text, prompt.turns, values)
        response_format = _build_response_format(schema) if schema is not None and by_provider else None
        return Request(
            self.endpoint.identity, sample, params, messages=messages, tools=tools, response_format=response_format
        )

    def _turns(self, text: str, turns: tuple[tuple[str, str], ...], values: dict[str, Any]) -> list[dict[str, str]]:
        if not turns:
            return [{"role": "user", "content": self.templates.part("user", **values, text=text)}]
        return [{"role": role, "content": content} for role, content in turns if role != "system"]

    def _values(self, examples: list[dict[str, str]], format_: str) -> dict[str, Any]:
        return {
            "examples": examples,
            "labels": self.task.labels,
            "instructions": self.task.instructions,
            "item": self.task.item,
            "tools": self.task.tools,
            "reasoning": self.task.reasoning,
            "format": format_,
        }

    def _answer(self, example: FewShotExample) -> Any:
        return json.loads(example.answer) if example.answer is not None else example.label

    def _shown(self, example: FewShotExample) -> dict[str, str]:
        answer = self.kind.format_answer(self._answer(example))
        reasoning = example.reasoning if self.task.reasoning else None
        said = format_with_reasoning(reasoning, answer) if reasoning else f"{ANSWER_MARK} {answer}"
        return {"text": format_transcript(example.messages) or example.text, "written": said}

    def _reply(self, example: FewShotExample, structured: bool) -> str:
        answer = self._answer(example)
        if not structured or is_refusal(answer):
            return self.kind.format_answer(answer)
        reasoning = {"reasoning": example.reasoning} if self.task.reasoning else {}
        return json.dumps(reasoning | {"answer": answer}, ensure_ascii=False)

    def _schema(self) -> dict[str, Any]:
        reasoning = {"reasoning": {"type": "string"}} if self.task.reasoning else {}
        fields = reasoning | {"answer": self.kind.build_schema()}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def _tools(self) -> list[dict[str, Any]] | None:
        if self.task.kind != "tool_call" or not takes_tools(self.endpoint.model, self.spec.response_format):
            return None
        return [{"type": "function", "function": tool.model_dump()} for tool in self.task.tools]

    def _format(self, schema: dict[str, Any] | None, by_provider: bool) -> str:
        if schema is None:
            return ""
        fields = "`answer` is the answer alone."
        if self.task.reasoning:
            fields = f"`reasoning` says step by step how you come to the answer; {fields}"
        if by_provider:
            return f"Answer with a JSON object: {fields}"
        text = json.dumps(schema, ensure_ascii=False)
        return f"Answer with one JSON object and nothing else: {fields} It fits this JSON schema:\n{text}"


def _build_response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": is_strict_schema(schema), "schema": schema},
    }
