"""The chat template that a server gets renders the prompts that the student was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.student.chat_prompts import ChatRenderer
from distill_dagster.student.prompts import ANSWER_CUE, LABEL_CUE, REASONING_CUE, PlainRenderer, PromptRenderer
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.messages import Message, make_message
from tests.student.test_chat_prompts import TEMPLATES, TOOLS, USED_TOOL, decode_turns, make_tokenizer

SETTINGS = TaskSettings("Ticket", "Sort the ticket.\nSay 'why' and \"how\" {{ not }} {% this %}, é.")
CONVERSATIONS: list[list[Message]] = [
    [make_message("user", " My parcel is late. ")],
    [make_message("user", "One."), make_message("assistant", "Two."), make_message("user", "Three?")],
]
WITH_SYSTEM = [make_message("system", "Be brief."), make_message("user", "One.")]


def apply_served(renderer: PromptRenderer, turns: list[Message], cue: str) -> str:
    """What a server renders of the messages of a request, with the tokenizer's template replaced by the served one."""
    tokenizer = renderer.tokenizer
    kept, tokenizer.chat_template = tokenizer.chat_template, renderer.build_served_template(cue)
    try:
        return str(tokenizer.apply_chat_template(decode_turns(turns), tokenize=False, add_generation_prompt=True))
    finally:
        tokenizer.chat_template = kept


def encode(renderer: PromptRenderer, turns: list[Message], cue: str) -> str:
    [prompt] = renderer.encode_prompts([StudentPrompt.from_messages(turns)], cue)
    return str(renderer.tokenizer.decode(prompt.ids))


@pytest.mark.parametrize("cue", [LABEL_CUE, ANSWER_CUE, REASONING_CUE])
@pytest.mark.parametrize("turns", [*CONVERSATIONS, WITH_SYSTEM])
def test_a_plain_prompt(turns: list[Message], cue: str, models_folder: Path) -> None:
    renderer = PlainRenderer(make_tokenizer(models_folder, None), SETTINGS, 512)
    assert apply_served(renderer, turns, cue) == encode(renderer, turns, cue)


@pytest.mark.parametrize("cue", [ANSWER_CUE, REASONING_CUE])
@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_a_chat_prompt_has_the_instructions_of_the_task(name: str | None, cue: str, models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, name), SETTINGS, 512, [])
    for turns in CONVERSATIONS:
        assert apply_served(renderer, turns, cue) == encode(renderer, turns, cue)
        assert "Sort the ticket." in apply_served(renderer, turns, cue)


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "gemma", "phi3"])
def test_system_text_of_a_request_follows_the_instructions(name: str, models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, name), SETTINGS, 512, [])
    assert apply_served(renderer, WITH_SYSTEM, ANSWER_CUE) == encode(renderer, WITH_SYSTEM, ANSWER_CUE)


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "gemma", "phi3"])
def test_tools_of_the_task_are_in_the_prompt(name: str, models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, name), TaskSettings(tools=TOOLS), 1024, [])
    rendered: Any = apply_served(renderer, CONVERSATIONS[0], ANSWER_CUE)
    assert rendered == encode(renderer, CONVERSATIONS[0], ANSWER_CUE)
    assert "find_order" in rendered


@pytest.mark.parametrize("name", ["llama3_1", "qwen3"])
def test_a_conversation_that_used_tools(name: str, models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, name), replace(SETTINGS, tools=TOOLS), 1024, [])
    assert apply_served(renderer, USED_TOOL, ANSWER_CUE) == encode(renderer, USED_TOOL, ANSWER_CUE)
