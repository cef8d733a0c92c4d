"""Answers of the fake provider: new prompts, scores of a judge, or else the label in the text."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from tests.support.provider import ReceivedRequest
from tests.support.task import LABELS


def get_request_text(seen: ReceivedRequest) -> str:
    """All text that a request shows to the model."""
    if "prompt" in seen.body:
        return str(seen.body["prompt"])
    return "\n".join(message["content"] for message in seen.body["messages"])


def is_imagine_request(seen: ReceivedRequest) -> bool:
    return get_request_text(seen).startswith("A collection of texts")


def is_judge_request(seen: ReceivedRequest) -> bool:
    return get_request_text(seen).startswith("You ")


def build_imagined_texts(seen: ReceivedRequest) -> list[str]:
    """As many new texts as requested, each with the category's name. The same request returns the same texts."""
    asked = get_request_text(seen)
    counted = re.search(r"Write (\d+) new texts", asked)
    label = re.search(r'category "([^"]+)"', asked)
    assert counted is not None
    tag = hashlib.sha256(json.dumps(seen.body, sort_keys=True).encode()).hexdigest()[:8]
    return [f"{tag} wants {label[1] if label else LABELS[0]} {n}" for n in range(int(counted[1]))]


def format_prompt_list(seen: ReceivedRequest, texts: list[str]) -> str:
    """Format texts as the request demands."""
    if "response_format" in seen.body:
        return json.dumps({"prompts": texts})
    rest = "".join(f"\n{n}. {text}" for n, text in enumerate(texts[1:], start=2))
    return f"{'' if 'prompt' in seen.body else '1. '}{texts[0]}{rest}"


def answer_as_teacher(seen: ReceivedRequest) -> str:
    if is_imagine_request(seen):
        return format_prompt_list(seen, build_imagined_texts(seen))
    return next((label for label in LABELS if label in seen.text), LABELS[0])


def build_judge_answer(**scores: int) -> dict[str, Any]:
    """The judge's answer with these scores."""
    return {name: {"reason": f"because of {name}", "score": score} for name, score in scores.items()}
