"""Find what a model answered in a record of a log, and recognise calls that failed.

Bodies of OpenAI, Anthropic, Gemini, Bedrock and Ollama are understood, and the envelopes of their batches and of trace
stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill_dagster.intake.chats import (
    ChatTurn,
    find_reasoning,
    is_chat,
    join_text,
    parse_cell,
    read_calls,
    read_chat,
    read_turn,
)

_RESPONSE_FIELDS = (
    *("response", "response_body", "responseBody", "raw_response", "modelOutput", "result"),
    *("outputs", "output", "completion", "response_message"),
)
_TEXT_FIELDS = (
    "completion",
    "output",
    "response",
    "answer",
    "generation",
    "generated_text",
    "output_text",
    "response_message",
)
_FINISH_REASONS = {"end_turn": "stop", "max_tokens": "length", "STOP": "stop", "MAX_TOKENS": "length"}
"""Other providers' words for the usual ends of an answer."""
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_ERROR_FIELDS = ("error", "errors", "exception", "error_message", "errorMessage", "error_type", "response_errors")
_STATUS_FIELDS = ("status_code", "statusCode", "http_status", "response_status", "status")
_FAILED_WORDS = {"error", "errored", "failed", "failure", "timeout", "timed_out", "expired", "canceled", "cancelled"}


@dataclass(frozen=True)
class RecordedChoice:
    """One choice of a response."""

    text: str
    reasoning: str | None = None
    finish: str | None = None
    calls: list[dict[str, Any]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the model said nothing, and nothing says why."""
        return not self.text.strip() and not self.calls and self.finish in (None, "stop")


def find_choices(record: dict[str, Any]) -> tuple[dict[str, Any], list[RecordedChoice]]:
    """The response in a record, and its choices: several if the request asked for several, none if there are none.

    The response is the record itself if it has no other.

    Raises:
        ValueError: the text of a cell begins as a response and cannot be read.
    """
    responses = [*_iterate_responses(record), record]
    for response in responses:
        if choices := list(_iterate_choices(response)):
            return response, choices
    plain = _find_plain_choice(record, _TEXT_FIELDS)
    if plain is None and responses[0] is not record:
        plain = _find_plain_choice(responses[0], (*_TEXT_FIELDS, "text", "content"))
    return responses[0], [plain] if plain is not None else []


def _find_plain_choice(fields: dict[str, Any], names: Sequence[str]) -> RecordedChoice | None:
    """The text, or the assistant's turn, in the first field that has one."""
    cells = [parse_cell(fields.get(name)) for name in names]
    turns = (find_last_assistant(read_chat(cell)) for cell in cells if is_chat(cell))
    if said := next((turn for turn in turns if turn is not None), None):
        return build_choice(said)
    # An answer that is a number, such as that of a sum, is its digits.
    cells = [str(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else cell for cell in cells]
    texts = [cell for cell in cells if isinstance(cell, str)]
    text = next((text for text in texts if text.strip()), texts[0] if texts else None)
    if text is None:
        return None
    reasoning = fields.get("reasoning")
    return RecordedChoice(text, reasoning if isinstance(reasoning, str) else None, None, read_calls(fields))


def build_choice(turn: ChatTurn) -> RecordedChoice:
    """An assistant's turn as the choice of a response."""
    return RecordedChoice(turn.text, turn.reasoning, None, turn.tool_calls)


def find_last_assistant(turns: list[ChatTurn]) -> ChatTurn | None:
    """The last turn of the assistant, or None."""
    return next((turn for turn in reversed(turns) if turn.role == "assistant"), None)


def is_failed_call(record: dict[str, Any]) -> bool:
    """Whether a record without a completion says that its call failed."""
    parts = [record, *_iterate_responses(record, unwrap=False), *_iterate_responses(record)]
    return any(_is_failed(part) for part in parts)


def has_response(record: dict[str, Any]) -> bool:
    """Whether a record has a completion, in whatever form."""
    return any(record.get(name) not in _EMPTY for name in (*_RESPONSE_FIELDS, *_TEXT_FIELDS))


def has_place_for_response(record: dict[str, Any]) -> bool:
    """Whether a record has a field for a completion, be it empty."""
    return any(name in record for name in (*_RESPONSE_FIELDS, *_TEXT_FIELDS))


def has_empty_value(value: Any, path: str) -> bool:
    """Whether a path ends, or breaks off, at a value that is empty; not so if the record has no such field."""
    if isinstance(value, dict) and path in value:
        return value[path] in _EMPTY
    for step in path.removeprefix("/").split("/") if path.startswith("/") else path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.removeprefix("-").isdecimal() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return False
        if value in _EMPTY:
            return True
    return False


def _iterate_responses(record: dict[str, Any], unwrap: bool = True) -> Iterator[dict[str, Any]]:
    for name in _RESPONSE_FIELDS:
        part = parse_cell(record.get(name))
        if not isinstance(part, dict):
            continue
        if unwrap:
            body = parse_cell(part.get("body", part.get("message") if part.get("type") == "succeeded" else None))
            part = body if isinstance(body, dict) else part
        yield part


def _iterate_choices(response: dict[str, Any]) -> Iterator[RecordedChoice]:
    """The choices of a provider's body."""
    if isinstance(response.get("choices"), list):  # OpenAI's chat and text completions
        yield from (_read_choice(choice) for choice in response["choices"] if isinstance(choice, dict))
    elif isinstance(response.get("candidates"), list):  # Gemini
        for candidate in response["candidates"]:
            if isinstance(candidate, dict):  # without a content if the answer was filtered
                content = candidate.get("content")
                yield _read_message(content if isinstance(content, dict) else {}, candidate.get("finishReason"))
    elif _is_responses(response):
        yield from _read_output(response)
    elif isinstance(response.get("output"), dict) and isinstance(response["output"].get("message"), dict):
        yield _read_message(response["output"]["message"], response.get("stopReason"))  # Bedrock's Converse
    elif isinstance(message := response.get("message"), dict) and _is_answer(message):  # Ollama, Cohere
        yield _read_message(message, response.get("done_reason", response.get("finish_reason")))
    elif isinstance(response.get("generations"), list):  # LangChain
        for group in response["generations"]:
            for generation in group if isinstance(group, list) else [group]:
                if isinstance(generation, dict):
                    yield _read_choice(generation)
    elif response.get("role", response.get("type")) in ("assistant", "model", "ai", "message"):  # Anthropic, a message
        if response.get("content") is not None or response.get("tool_calls") or response.get("function_call"):
            yield _read_message(response, response.get("stop_reason"))
    elif isinstance(response.get("content"), list) and all(isinstance(part, dict) for part in response["content"]):
        yield _read_message(response, response.get("stop_reason"))


def _is_answer(message: dict[str, Any]) -> bool:
    return "content" in message and message.get("role") in (None, "assistant", "model")


def _is_responses(response: dict[str, Any]) -> bool:
    output = response.get("output")
    return isinstance(output, list) and (response.get("object") == "response" or not is_chat(output))


def _read_choice(choice: dict[str, Any]) -> RecordedChoice:
    message = choice.get("message")
    if not isinstance(message, dict):
        text = choice.get("text")
        return RecordedChoice(text if isinstance(text, str) else "", None, _read_finish(choice.get("finish_reason")))
    return _read_message(message, choice.get("finish_reason"))


def _read_message(message: dict[str, Any], finish: Any) -> RecordedChoice:
    turn = read_turn(message, "assistant")
    refusal = message.get("refusal")
    if not turn.text and isinstance(refusal, str) and refusal:
        return RecordedChoice(refusal, turn.reasoning, "refusal", turn.tool_calls)
    return RecordedChoice(turn.text, turn.reasoning, _read_finish(finish), turn.tool_calls)


def _read_output(response: dict[str, Any]) -> Iterator[RecordedChoice]:
    """The one choice of OpenAI's Responses, whose message, reasoning and calls are items of a list."""
    items = [item for item in response["output"] if isinstance(item, dict)]
    if not items:
        return
    text = "".join(join_text(item.get("content")) for item in items if item.get("type") == "message")
    thought = "".join(join_text(item.get("summary")) for item in items if item.get("type") == "reasoning")
    calls = [{"function": item} for item in items if item.get("type") == "function_call"]
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    finish = "length" if reason == "max_output_tokens" else _read_finish(reason)
    yield RecordedChoice(text, thought or find_reasoning(response), finish, read_calls({"tool_calls": calls}))


def _read_finish(word: Any) -> str | None:
    return _FINISH_REASONS.get(word, word) if isinstance(word, str) and word else None


def _is_failed(part: dict[str, Any]) -> bool:
    if any(part.get(name) for name in _ERROR_FIELDS) or part.get("choices") == [] or part.get("candidates") == []:
        return True
    feedback = part.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):  # Gemini
        return True
    if part.get("success") is False or part.get("ok") is False or str(part.get("level")).lower() == "error":
        return True
    if isinstance(part.get("type"), str) and part["type"] in _FAILED_WORDS:
        return True
    for name in _STATUS_FIELDS:
        status = part.get(name)
        word = str(status).strip().lower() if isinstance(status, str | int) and not isinstance(status, bool) else ""
        if word in _FAILED_WORDS or (word.isdecimal() and not 200 <= int(word[:9]) < 300):
            return True
    choices = part.get("choices")
    return isinstance(choices, list) and any(isinstance(one, dict) and one.get("error") for one in choices)
