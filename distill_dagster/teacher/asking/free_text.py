"""Requests for answers that are free text, and reading these answers.

Answers of kinds without labels are free text. So are labels that follow reasoning.
"""

from __future__ import annotations

import json
from typing import Any

from distill_dagster.config import TeacherSpec
from distill_dagster.kinds import Kind, format_with_reasoning, is_refusal, read_answer
from distill_dagster.kinds.base import ANSWER_MARK
from distill_dagster.prompts.few_shot import FewShotExample
from distill_dagster.prompts.templates import Templates
from distill_dagster.tables.messages import Message, format_transcript
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.providers.capabilities import build_response_format, takes_schema, takes_tools
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response


class FreeTextAsker:
    """Builds the requests of one task whose answers are free text, and reads the responses."""

    def __init__(self, kind: Kind, templates: Templates, endpoint: Endpoint, spec: TeacherSpec) -> None:
        self.kind, self.task, self.templates = kind, kind.task, templates
        self.endpoint, self.spec = endpoint, spec

    @property
    def stop(self) -> str:
        """The text that ends an answer in the text API, since a base model continues with the next item."""
        return f"\n\n{self.task.item}:"

    def build_request(self, prompt: AskedPrompt, examples: list[FewShotExample], sample: int) -> Request:
        """The request for one sample of one prompt, after few-shot examples with their reasoning."""
        params = self.spec.build_params(self.spec.temperature, self.spec.max_tokens, sample)
        if self.spec.api == "text":
            text = format_transcript(prompt.messages) or prompt.text
            values = self._build_values([self._format_example(e) for e in examples], "")
            rendered = self.templates.render_part("text", **values, text=text)
            params["stop"] = [self.stop]
            thinking = self.spec.allowed_thinking_tokens
            return Request(self.endpoint.identity, sample, params, prompt=rendered, thinking_tokens=thinking)
        return self._build_chat_request(prompt, examples, sample, params)

    def read_response(self, prompt: AskedPrompt, request: Request, response: Response) -> dict[str, Any]:
        """The columns status, reasoning, answer and error of a response. `error` says why it contains no answer."""
        if response.finish_reason == "content_filter":
            return {"status": "filtered", "reasoning": response.reasoning}
        answer = read_answer(
            self.kind,
            response.text,
            prompt.question,
            finish_reason=response.finish_reason,
            reasoning_content=response.reasoning,
            tool_calls=response.tool_calls or ([] if request.tools is not None else None),
            stop=self.stop if self.spec.api == "text" else None,
        )
        return vars(answer)

    def _build_chat_request(
        self, prompt: AskedPrompt, examples: list[FewShotExample], sample: int, params: dict[str, Any]
    ) -> Request:
        tools = self._build_tools()
        structured = tools is None and (self.kind.structured or self.task.reasoning)
        schema = self._build_schema() if structured else None
        by_provider = schema is not None and takes_schema(self.endpoint.model, self.spec.response_format)
        # A turn with tool calls must be followed by their results, so examples of calls go into the system turn.
        in_system_turn = self.task.kind == "tool_call"
        formatted = [self._format_example(e) for e in examples] if in_system_turn else []
        values = self._build_values(formatted, self._describe_format(schema, by_provider))
        values["tools"] = [] if tools else self.task.tools
        system = self.templates.render_part("system", **values, text=prompt.text)
        own = [message["content"] or "" for message in prompt.messages if message["role"] == "system"]
        turns = [{"role": "system", "content": "\n\n".join([system, *own])}]
        for example in [] if in_system_turn else examples:
            turns += self._build_turns(example.text, example.messages, values)
            turns.append({"role": "assistant", "content": self._format_reply(example, structured)})
        turns += self._build_turns(prompt.text, prompt.messages, values)
        response_format = build_response_format(schema) if schema is not None and by_provider else None
        return Request(
            self.endpoint.identity,
            sample,
            params,
            messages=turns,
            tools=tools,
            response_format=response_format,
            thinking_tokens=self.spec.allowed_thinking_tokens,
        )

    def _build_turns(self, text: str, messages: tuple[Message, ...], values: dict[str, Any]) -> list[dict[str, str]]:
        """The turns of a prompt or an example, without system turns; a single text as the user template shows it."""
        if not messages:
            return [{"role": "user", "content": self.templates.render_part("user", **values, text=text)}]
        return [{"role": m["role"], "content": m["content"] or ""} for m in messages if m["role"] != "system"]

    def _build_values(self, examples: list[dict[str, str]], format_: str) -> dict[str, Any]:
        return {
            "examples": examples,
            "labels": self.task.labels,
            "instructions": self.task.instructions,
            "item": self.task.item,
            "tools": self.task.tools,
            "reasoning": self.task.reasoning,
            "format": format_,
        }

    @staticmethod
    def _get_answer(example: FewShotExample) -> Any:
        return json.loads(example.answer) if example.answer is not None else example.label

    def _format_example(self, example: FewShotExample) -> dict[str, str]:
        answer = self.kind.format_answer(self._get_answer(example))
        reasoning = example.reasoning if self.task.reasoning else None
        written = format_with_reasoning(reasoning, answer) if reasoning else f"{ANSWER_MARK} {answer}"
        return {"text": format_transcript(example.messages) or example.text, "written": written}

    def _format_reply(self, example: FewShotExample, structured: bool) -> str:
        answer = self._get_answer(example)
        if not structured or is_refusal(answer):
            return self.kind.format_answer(answer)
        reasoning = {"reasoning": example.reasoning} if self.task.reasoning else {}
        return json.dumps(reasoning | {"answer": answer}, ensure_ascii=False)

    def _build_schema(self) -> dict[str, Any]:
        reasoning = {"reasoning": {"type": "string"}} if self.task.reasoning else {}
        fields = reasoning | {"answer": self.kind.build_schema()}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def _build_tools(self) -> list[dict[str, Any]] | None:
        if self.task.kind != "tool_call" or not takes_tools(self.endpoint.model, self.spec.response_format):
            return None
        return [{"type": "function", "function": tool.model_dump()} for tool in self.task.tools]

    def _describe_format(self, schema: dict[str, Any] | None, by_provider: bool) -> str:
        if schema is None:
            return ""
        fields = "`answer` is the answer alone."
        if self.task.reasoning:
            fields = f"`reasoning` says step by step how you come to the answer; {fields}"
        if by_provider:
            return f"Answer with a JSON object: {fields}"
        text = json.dumps(schema, ensure_ascii=False)
        return f"Answer with one JSON object and nothing else: {fields} It fits this JSON schema:\n{text}"
