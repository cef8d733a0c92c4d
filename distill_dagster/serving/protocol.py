"""OpenAI's chat completions and completions, and labels: reading requests and formatting answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.intake.request_log import Feedback
from distill_dagster.kinds import InvalidAnswerError, Kind, Question
from distill_dagster.serving.answering import ServedAnswer
from distill_dagster.serving.errors import RequestError
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.messages import Message, make_message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_INPUTS = 64
"""Texts in one request of /v1/classify or /v1/completions."""
MAX_NOTE_CHARS = 4000
_ID_PREFIX = re.compile(r"\A(?:chatcmpl|cmpl|classify)-")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion."""

    prompt: StudentPrompt
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class TextsRequest:
    """A request with one or several texts: a completion for each, or a label."""

    prompts: list[StudentPrompt]


def parse_body(body: bytes) -> dict[str, Any]:
    """The object in the body of a request.

    Raises:
        RequestError: the body is no JSON object in UTF-8.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}. Send a JSON object.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("The body is not a JSON object. Send {…}.", code="invalid_json")
    return value


def read_chat_request(value: dict[str, Any], keep_system: bool, tools: str | None = None) -> ChatRequest:
    """Read a request for a chat completion. Settings of sampling are ignored: a student's answer is the likeliest.

    Args:
        tools: the functions of the task that the student was trained with, as `TaskSettings.tools`.

    Raises:
        RequestError: a field is malformed, or asks for what a student cannot do.
    """
    _refuse_choices(value)
    given = value.get("messages")
    if not isinstance(given, list) or not given:
        raise RequestError("messages is missing or empty. Send a list with a user message.", "messages")
    messages = [_read_message(message, number) for number, message in enumerate(given)]
    if not keep_system:
        messages = [message for message in messages if message["role"] != "system"]
    if not any(message["role"] == "user" and (message["content"] or "").strip() for message in messages):
        raise RequestError("messages has no user message with a text. Add one.", "messages")
    if messages[-1]["role"] != "user":
        raise RequestError("The last of the messages is not the user's. End with a user message.", "messages")
    stream, options = value.get("stream") or False, value.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise RequestError("stream is neither true nor false.", "stream")
    if not isinstance(options, dict):
        raise RequestError("stream_options is not an object.", "stream_options")
    prompt = StudentPrompt.from_messages(messages, _choose_tools(value.get("tools"), tools))
    return ChatRequest(prompt, stream, bool(options.get("include_usage")))


def _choose_tools(given: Any, own: str | None) -> str | None:
    """The functions of a request, if they are others than the task's. None: the student reads those of its training.

    A client of OpenAI sends its tools with every request, its keys in an order of its own. A student of a task without
    tools was trained without any, and calls none.
    """
    if own is None or not isinstance(given, list) or not given:
        return None
    try:
        listed = [to_canonical_json(tool) for tool in given]
    except ValueError:
        raise RequestError("tools has NaN or Infinity, which JSON does not have.", "tools") from None
    trained = [to_canonical_json(tool) for tool in json.loads(own)]
    return None if sorted(listed) == sorted(trained) else to_canonical_json(given)


def read_texts_request(value: dict[str, Any], field: str) -> TextsRequest:
    """Read the texts of a request: one text, or a list of at most `MAX_INPUTS`.

    Raises:
        RequestError: a field is malformed, or asks for what a student cannot do.
    """
    _refuse_choices(value)
    if value.get("stream"):
        raise RequestError("Only /v1/chat/completions streams. Leave stream out.", "stream")
    given = value.get(field)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{field} is not a text or a list of texts. Send one or several texts.", field)
    if len(texts) > MAX_INPUTS:
        raise RequestError(f"{field} has {len(texts)} texts; {MAX_INPUTS} are allowed. Send several requests.", field)
    if not all(text.strip() for text in texts):
        raise RequestError(f"{field} has an empty text. Leave it out.", field)
    return TextsRequest([StudentPrompt.from_text(_check_text(text.strip(), field)) for text in texts])


def _refuse_choices(value: dict[str, Any]) -> None:
    if value.get("n") not in (None, 1):
        raise RequestError("n is not 1. A student has one answer to a prompt. Leave n out.", "n")


def _read_message(value: Any, number: int) -> Message:
    field = f"messages[{number}]"
    if not isinstance(value, dict):
        raise RequestError(f"{field} is not an object. Send role and content.", field)
    role = ROLES.get(str(value.get("role")))
    if role is None:
        raise RequestError(f"{field}.role is not one of {', '.join(ROLES)}.", f"{field}.role")
    content = value.get("content")
    if isinstance(content, list):
        parts = [str(part["text"]) for part in content if _is_text_part(part)]
        if len(parts) < len(content):
            raise RequestError(f"{field}.content has a part that is not a text. Send texts only.", f"{field}.content")
        content = "\n".join(parts)
    if not isinstance(content, str):
        raise RequestError(f"{field}.content is not a text.", f"{field}.content")
    return make_message(role, _check_text(content.strip(), f"{field}.content"))


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_text(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{field} contains an unpaired surrogate. Send valid Unicode.", field) from None
    return text


def read_feedback_request(value: dict[str, Any], kind: Kind) -> Feedback:
    """Read what a user says about an answer.

    Raises:
        RequestError: a field is malformed, or nothing is said.
    """
    given, is_right, note, answer = (value.get(name) for name in ("id", "right", "note", "answer"))
    if not isinstance(given, str) or not given:
        raise RequestError("id is missing. Send the id of the answer, or its header x-request-id.", "id")
    if is_right is not None and not isinstance(is_right, bool):
        raise RequestError("right is neither true nor false.", "right")
    if note is not None and (not isinstance(note, str) or len(note) > MAX_NOTE_CHARS):
        raise RequestError(f"note is not a text of at most {MAX_NOTE_CHARS} characters.", "note")
    if answer is not None:
        try:
            answer = kind.canonicalize(answer, Question())
        except InvalidAnswerError as error:
            raise RequestError(f"answer is no answer of this task: {error}.", "answer") from None
        is_right = bool(is_right)
    if is_right is None:
        raise RequestError("Neither right nor answer is given. Send right: true or false, or the right answer.")
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Feedback(given, at, is_right, answer, note)


def list_possible_ids(given: str) -> list[str]:
    """The requests that an id may name: it is a request's own, or that of its answer."""
    return [given, _ID_PREFIX.sub("", given)]


def build_item_ids(id_: str, count: int) -> list[str]:
    """The ids of the texts of one request: its own if there is one text."""
    return [id_] if count == 1 else [f"{id_}-{number}" for number in range(count)]


def read_request_id(value: str | None, new: str) -> str:
    """The id that the client gives its request, if it is a plain one; otherwise `new`."""
    return value if value is not None and _REQUEST_ID.fullmatch(value) else new


def format_details(found: ServedAnswer, names: dict[str, Any]) -> dict[str, Any]:
    """The field `distill` of an answer: who gave it, and why. Clients of OpenAI ignore it."""
    return {
        "route": found.route,
        "confidence": found.student.confidence,
        **names,
        **({"student_answer": found.student_value} if found.route == "teacher" else {}),
        **({"fallback_failed": True} if found.teacher_error is not None else {}),
    }


def format_usage(answers: Sequence[ServedAnswer]) -> dict[str, int]:
    """The tokens of some answers."""
    prompt = sum(found.prompt_tokens for found in answers)
    completion = sum(found.completion_tokens for found in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def format_chat(id_: str, model: str, found: ServedAnswer, names: dict[str, Any], calls_tools: bool) -> dict[str, Any]:
    """The body of a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": found.text}
    if found.reasoning:
        message["reasoning_content"] = found.reasoning
    finish = found.finish_reason
    if calls_tools and isinstance(found.answer, list) and found.answer:
        message["tool_calls"], finish = _format_tool_calls(id_, found.answer), "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return {
        "id": f"chatcmpl-{id_}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": format_usage([found]),
        "distill": format_details(found, names),
    }


def _format_tool_calls(id_: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{id_}_{number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for number, call in enumerate(calls)
    ]


def format_completions(id_: str, model: str, answers: Sequence[ServedAnswer], names: dict[str, Any]) -> dict[str, Any]:
    """The body of a completion of one or several texts."""
    choices = [
        {"index": number, "text": found.text, "finish_reason": found.finish_reason, "logprobs": None}
        for number, found in enumerate(answers)
    ]
    return {
        "id": f"cmpl-{id_}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": format_usage(answers),
        "distill": [
            {"id": item} | format_details(found, names)
            for item, found in zip(build_item_ids(id_, len(answers)), answers, strict=True)
        ],
    }


def format_labels(id_: str, model: str, answers: Sequence[ServedAnswer], names: dict[str, Any]) -> dict[str, Any]:
    """The body of /v1/classify: for each text its label, and the student's probability of every label."""
    data = [
        {"index": number, "id": item, "label": found.answer, "probs": found.student.label_probs}
        | format_details(found, names)
        for number, (item, found) in enumerate(zip(build_item_ids(id_, len(answers)), answers, strict=True))
    ]
    return {
        "id": f"classify-{id_}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": format_usage(answers),
    }
