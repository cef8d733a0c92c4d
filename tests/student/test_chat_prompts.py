"""Chat templates are those of the installed package trl, on a tokenizer that knows their special tokens."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import StudentSpec
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.student.chat_prompts import PINNED_DAY, ChatRenderer
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.prompts import ANSWER_CUE, REASONING_CUE, PlainRenderer, make_renderer
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from distill_dagster.tables.messages import Message, make_message

pytest.importorskip("trl")
SETTINGS = TaskSettings("Ticket", "Sort the ticket.")
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "find_order",
                "description": "Find an order.",
                "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
            },
        }
    ]
)
ASKED = StudentPrompt.from_text("My parcel is late.")
TEMPLATES = {
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
}
"""The token that ends an answer by the template's name."""


def read_template(name: str) -> str:
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def make_tokenizer(models_folder: Path, name: str | None) -> Any:
    """The tokenizer of SmolLM2 with another model's template and its special tokens; without a name, its own."""
    import transformers

    source = models.resolve_model("smollm2-135m-instruct", models_folder).location
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if name is not None:
        template = read_template(name)
        found = set(re.findall(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>", template))
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
        tokenizer.chat_template = template
    return tokenizer


def render(renderer: ChatRenderer, prompt: StudentPrompt = ASKED, cue: str = ANSWER_CUE) -> str:
    [encoded] = renderer.encode_prompts([prompt], cue)
    return str(renderer.tokenizer.decode(encoded.ids))


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_the_prompt_is_a_prefix_of_prompt_and_answer(name: str | None, models_folder: Path) -> None:
    """What a student learns after its prompt is what the template itself renders, up to the end token."""
    tokenizer = make_tokenizer(models_folder, name)
    renderer = ChatRenderer(tokenizer, SETTINGS, 512, [])
    turns = [{"role": "system", "content": SETTINGS.instructions}, {"role": "user", "content": ASKED.text}]
    if name == "gemma":  # refuses a system turn
        turns = [{"role": "user", "content": f"{SETTINGS.instructions}\n\n{ASKED.text}"}]
    answered = [*turns, {"role": "assistant", "content": "delivery"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    [prompt] = renderer.encode_prompts([ASKED], ANSWER_CUE)
    learned = [*prompt.ids, *renderer.encode_answer("delivery", ANSWER_CUE), renderer.end]
    assert whole.startswith(tokenizer.decode(learned))
    asked = whole[: whole.index("delivery")]
    assert prompt.ids == tokenizer(asked, add_special_tokens=False)["input_ids"], "the ids that a server makes"
    assert tokenizer.decode([renderer.end]) == TEMPLATES.get(name or "", "<|im_end|>")
    assert {renderer.end, tokenizer.eos_token_id} <= set(renderer.stops)
    assert not prompt.is_cut
    assert SETTINGS.instructions in tokenizer.decode(prompt.ids)
    assert "SmolLM" not in tokenizer.decode(prompt.ids), "the default system text is replaced"


def test_a_saved_template_renders_the_same_prompt_on_another_day(models_folder: Path, tmp_path: Path) -> None:
    """Llama 3.2 shows the day. A server that reads the saved template shows that of the training."""
    import transformers

    tokenizer = make_tokenizer(models_folder, "llama3_2")
    renderer = ChatRenderer(tokenizer, SETTINGS, 512, [])
    assert f"Today Date: {PINNED_DAY}" in render(renderer)
    tokenizer.save_pretrained(tmp_path)
    served = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": SETTINGS.instructions}, {"role": "user", "content": ASKED.text}]
    text = served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string="1 Jan 2030")
    assert text == render(renderer)
    again = ChatRenderer(served, SETTINGS, 512, [])
    assert render(again) == render(renderer)
    assert served.chat_template == tokenizer.chat_template, "a template is pinned once"


def test_a_template_with_its_own_clock_is_pinned_too(models_folder: Path) -> None:
    tokenizer = make_tokenizer(models_folder, None)
    tokenizer.chat_template = "{{- strftime_now('%d %B %Y') + '\n' }}" + tokenizer.chat_template
    assert render(ChatRenderer(tokenizer, SETTINGS, 512, [])).startswith(f"{PINNED_DAY}\n")


def test_qwen3_does_not_think_and_the_empty_block_is_prompt(models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, "qwen3"), SETTINGS, 512, [])
    assert render(renderer).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    answer = renderer.encode_answer("delivery", ANSWER_CUE)
    assert renderer.tokenizer.decode(answer) == "delivery"


def test_gemma_has_two_stop_tokens_and_system_text_in_the_first_turn(models_folder: Path) -> None:
    tokenizer = make_tokenizer(models_folder, "gemma3")
    renderer = ChatRenderer(tokenizer, SETTINGS, 512, [5])
    assert renderer.stops == sorted({5, renderer.end, tokenizer.eos_token_id})
    assert "<start_of_turn>user\nSort the ticket.\n\nMy parcel is late.<end_of_turn>" in render(renderer)
    written = [*renderer.encode_answer("late", ANSWER_CUE), 5, 7, 8]
    assert renderer.decode_answer(written, ANSWER_CUE) == "late"


def test_turns_of_a_conversation_stay_turns(models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, "qwen3"), SETTINGS, 512, [])
    turns = [make_message("system", "Be brief."), make_message("user", "Hi."), make_message("assistant", "Hello.")]
    text = render(renderer, StudentPrompt.from_messages([*turns, make_message("user", "Where is it?")]))
    assert text.startswith(
        "<|im_start|>system\nSort the ticket.\n\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>"
    )
    assert "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>" in text


@pytest.mark.parametrize("name", [None, "llama3_2", "qwen3", "gemma3", "phi3_5"])
def test_only_the_last_turn_of_a_conversation_is_learned(name: str | None, models_folder: Path) -> None:
    spec = StudentSpec(model="smollm2-135m-instruct", architecture="causal_lm", prompt="chat")
    student = FreeTextStudent(spec, [], SETTINGS, models_folder)
    student.renderer = ChatRenderer(make_tokenizer(models_folder, name), SETTINGS, 512, [])
    student.end = student.renderer.end
    turns = [make_message("user", "Hi."), make_message("assistant", "Hello."), make_message("user", "Where is it?")]
    items = student.encode([TrainRow("t", StudentPrompt.from_messages(turns), "late", target="On its way.")])
    learned = [token for token in student.collate(items)["answers"][0].tolist() if token >= 0]
    assert learned[-1] == student.renderer.end
    assert student.renderer.tokenizer.decode(learned[:-1]).strip() == "On its way."
    assert "Hello." in student.renderer.tokenizer.decode(items[0]["ids"][: -items[0]["target"]])


CALL = {"id": "call12345", "type": "function", "function": {"name": "find_order", "arguments": '{"id": "7"}'}}
USED_TOOL: list[Message] = [
    make_message("user", "Where is order 7?"),
    {**make_message("assistant", None), "tool_calls": json.dumps([CALL])},
    {**make_message("tool", '{"state": "sent"}'), "tool_call_id": "call12345", "name": "find_order"},
    make_message("assistant", "It was sent."),
    make_message("user", "And order 8?"),
]
"""A conversation in OpenAI's form: the arguments are JSON in a string."""


def decode_turns(messages: list[Message]) -> list[dict[str, Any]]:
    """As servers give a conversation to a chat template: with the arguments of a call as an object."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn = {name: value for name, value in message.items() if value is not None}
        if message["tool_calls"]:
            functions = [call["function"] for call in json.loads(message["tool_calls"])]
            decoded = [function | {"arguments": json.loads(function["arguments"])} for function in functions]
            turn |= {"content": "", "tool_calls": [{"type": "function", "function": one} for one in decoded]}
        turns.append(turn)
    return turns


@pytest.mark.parametrize("name", ["llama3_1", "qwen3"])
def test_calls_and_results_of_tools_stay_in_the_conversation(name: str, models_folder: Path) -> None:
    """As the template itself renders them, with the arguments as an object."""
    renderer = ChatRenderer(make_tokenizer(models_folder, name), TaskSettings("Request", "Help.", tools=TOOLS), 512, [])
    turns = [{"role": "system", "content": "Help."}, *decode_turns(USED_TOOL)]
    expected = renderer.tokenizer.apply_chat_template(
        turns, json.loads(TOOLS), tokenize=False, add_generation_prompt=True
    )
    text = render(renderer, StudentPrompt.from_messages(USED_TOOL))
    assert text == expected
    assert re.search(r'\{"name": "find_order", "(arguments|parameters)": \{"id": "7"\}\}', text)
    assert text.index("find_order", text.index("order 7")) < text.index("sent") < text.index("And order 8?")


def test_reasoning_is_asked_for_and_written_with_its_mark(models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, None), SETTINGS, 512, [])
    assert "after `Reasoning:`" in render(renderer, cue=REASONING_CUE)
    assert "Reasoning:" not in render(renderer)
    ids = renderer.encode_answer("It is late.\nAnswer: delivery", REASONING_CUE)
    assert renderer.decode_answer([*ids, renderer.end, 9], REASONING_CUE) == "Reasoning: It is late.\nAnswer: delivery"


def test_reasoning_alone_is_asked_for_without_the_answer(models_folder: Path) -> None:
    """The second task of multitask ends behind the reasoning, so its prompt must not ask for more."""
    settings = {"model": "smollm2-135m-instruct", "architecture": "causal_lm", "prompt": "chat"}
    spec = StudentSpec.model_validate(settings | {"objective": "multitask"})
    student = FreeTextStudent(
        spec, [], TaskSettings(item="Ticket", instructions="Sort it.", reasoning=True), models_folder
    )
    [item] = student.encode([TrainRow("t", ASKED, "late", target="late", reasoning="It is.")])
    [both] = student.renderer.encode_prompts([ASKED], REASONING_CUE)
    text = student.tokenizer.decode(item["rationale"]["ids"])
    assert "Sort it.\n\nWrite your reasoning after `Reasoning:`, without the answer." in text
    assert "Answer:" not in text
    assert "Answer:" in student.tokenizer.decode(both.ids)


@pytest.mark.parametrize("name", ["llama3_2", "qwen3"])
def test_long_prompts_lose_text_but_no_template(name: str, models_folder: Path) -> None:
    renderer = ChatRenderer(make_tokenizer(models_folder, name), SETTINGS, 80, [])
    [short, long] = renderer.encode_prompts([ASKED, StudentPrompt.from_text("begin " + "word " * 300)])
    assert (short.is_cut, long.is_cut, len(long.ids)) == (False, True, 80)
    text, whole = renderer.tokenizer.decode(long.ids), render(renderer)
    before, after = whole.split(ASKED.text)
    assert text.startswith(f"{before}begin word word")
    assert text.endswith(f" word{after}")
    turns = [
        make_message("user", "old " * 100),
        make_message("assistant", "Yes."),
        make_message("user", "new question"),
    ]
    [kept] = renderer.encode_prompts([StudentPrompt.from_messages(turns)])
    assert kept.is_cut
    assert renderer.tokenizer.decode(kept.ids) == f"{before}new question{after}"
    with pytest.raises(DistillError, match="`max_tokens` is 12"):
        ChatRenderer(make_tokenizer(models_folder, name), SETTINGS, 12, []).encode_prompts([ASKED])


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", None])
def test_tools_are_shown_and_called_as_the_template_does(name: str | None, models_folder: Path) -> None:
    """A template without tools lists them in the system text, and calls are JSON."""
    settings = TaskSettings("Request", "Help.", tools=TOOLS)
    renderer = ChatRenderer(make_tokenizer(models_folder, name), settings, 512, [])
    assert "find_order" in render(renderer)
    calls = '[{"name": "find_order", "arguments": {"id": "7"}}]'
    ids = renderer.encode_answer(calls, ANSWER_CUE)
    text = renderer.decode_answer([*ids, renderer.end], ANSWER_CUE)
    assert ("<tool_call>" in text, text == calls) == (name == "qwen3", name is None)

    from distill_dagster.config import ToolSpec
    from distill_dagster.kinds.written_calls import find_written_calls

    tool = ToolSpec.model_validate(json.loads(TOOLS)[0]["function"])
    assert find_written_calls(text, [tool]).calls == json.loads(calls)
    assert renderer.decode_answer(renderer.encode_answer("[]", ANSWER_CUE), ANSWER_CUE) == "[]"


def test_templates_that_cannot_be_trained_on_are_refused(models_folder: Path) -> None:
    tokenizer = make_tokenizer(models_folder, "deepseek_r1_distill")
    with pytest.raises(DistillError, match="puts other text before an answer"):
        ChatRenderer(tokenizer, SETTINGS, 512, [])
    tokenizer.chat_template = None
    with pytest.raises(DistillError, match="has no chat template"):
        ChatRenderer(tokenizer, SETTINGS, 512, [])


@pytest.mark.parametrize(
    ("name", "max_tokens", "style"),
    [("deepseek_r1_distill", 256, "plain"), ("qwen3", 12, "plain"), ("qwen3", 256, "chat"), (None, 256, "chat")],
)
def test_auto_is_plain_where_chat_does_not_work(
    name: str | None, max_tokens: int, style: str, models_folder: Path
) -> None:
    """A template that cannot be trained on, or that leaves no room for a text, stops only `prompt: chat`."""
    tokenizer = make_tokenizer(models_folder, name)
    template = tokenizer.chat_template
    values: dict[str, Any] = {"model": "some/model", "architecture": "causal_lm", "max_tokens": max_tokens}
    renderer = make_renderer(StudentSpec(**values), SETTINGS, tokenizer)
    assert renderer.style == renderer.describe(ANSWER_CUE, "yes")["prompt"] == style
    assert (tokenizer.chat_template == template) == (style == "plain"), "a template that is not used is not pinned"
    assert len(renderer.encode_prompts([StudentPrompt.from_text("word " * 300)])[0].ids) <= max_tokens
    if style == "plain":
        with pytest.raises(DistillError, match=r"prompt: plain"):
            make_renderer(StudentSpec(prompt="chat", **values), SETTINGS, tokenizer).encode_prompts([ASKED])


def test_a_plain_answer_is_cut_at_the_first_stop_token(models_folder: Path) -> None:
    renderer = PlainRenderer(make_tokenizer(models_folder, None), SETTINGS, 64, [7])
    ids = renderer.encode_answer("Answer: yes", ANSWER_CUE)
    assert renderer.decode_answer([*ids, 7, *ids], ANSWER_CUE) == "Answer: yes"
