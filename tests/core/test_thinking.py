"""Thinking that a server left in the text: every family of tags, and texts that only mention one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.thinking import SplitText, split_thinking

TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<antThinking>", "</antThinking>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ('<think signature="a b">', "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|think|>", "<|/think|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ('<details type="reasoning" done="true">', "</details>"),
    ("```thinking\n", "\n```"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]
ANNOUNCED = [
    ("Here is my thought process:\n", "\nHere is my response:\n"),
    ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    ("Thinking...\n", "\n...done thinking.\n"),
    ("analysis", "assistantfinal"),
]
# Without signs that tags are made of, and without white space or quotation marks at the ends.
PLAIN = st.text(st.characters(categories=["L", "N"]) | st.sampled_from(" .,İß\n"), min_size=1).map(str.strip)
WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1)


@pytest.mark.parametrize(("opening", "closing"), [*TAGS, *ANNOUNCED])
@pytest.mark.parametrize("before", ["", "\n", "\ufeff", "<|im_start|>assistant\n"])
def test_thinking_at_the_head_is_no_answer(opening: str, closing: str, before: str) -> None:
    text = f"{before}{opening}İt may be Rome; no, it may not.{closing}\nOslo"
    found = split_thinking(text)
    assert (found.thinking, found.answer, found.ended) == ("İt may be Rome; no, it may not.", "Oslo", True)
    assert text[found.start :].strip() == "Oslo"


@pytest.mark.parametrize(("opening", "closing"), TAGS)
@given(thought=PLAIN, answer=WORDS)
def test_any_thought_is_split_from_any_answer(opening: str, closing: str, thought: str, answer: str) -> None:
    found = split_thinking(f"{opening}{thought}{closing}{answer}")
    assert (found.thinking, found.answer) == (thought, answer)


@pytest.mark.parametrize(("opening", "_"), TAGS)
def test_thinking_that_never_ends_is_no_answer(opening: str, _: str) -> None:
    assert split_thinking(f"{opening}It may be Rome") == SplitText(
        "It may be Rome", "", len(opening) + len("It may be Rome"), ended=False
    )


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("It may be Rome.</think>Oslo", "It may be Rome."),
        ("</think>\n\nOslo", ""),
        ("<think>\n\n</think>\n\nOslo", ""),
        ("hm\n[/THINK]\nOslo", "hm"),
        ("I close it with `</think>`.\n</think>\nOslo", "I close it with `</think>`."),
        ("<think>one</think>\n<think>two</think>Oslo", "one\n\ntwo"),
        ("<think>one <think>two</think> three</think>Oslo", "one <think>two</think> three"),
        ("<think>I write <think> first</think>Oslo", "I write <think> first"),
        ("<think>a `</think>` here</think>Oslo", "a `</think>` here"),
        ("<think>a <thought>x</thought> element</think>Oslo", "a <thought>x</thought> element"),
        ("<think>the tags differ</thinking>Oslo", "the tags differ"),
        ("<think>hm</think><answer>Oslo</answer>", "hm"),
        ("<think>hm</think>\n<response>Oslo</response>", "hm"),
        ("<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>Oslo<|end_of_solution|>", "hm"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Oslo<|END_RESPONSE|>", "hm"),
        ("Here are my reasoning steps:\nhm\n[BEGIN FINAL RESPONSE]\nOslo\n[END FINAL RESPONSE]", "hm"),
        ("<think>hm</think>Oslo<|im_end|>\n<|endoftext|>", "hm"),
        ("analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Oslo<|return|>", "hm"),
        ("<|channel|>final<|message|>Oslo", ""),
        ("analysisThe user asks.assistantanalysisSo.assistantfinalOslo", "The user asks.assistantanalysisSo."),
    ],
)
def test_forms_of_one_family(text: str, thinking: str) -> None:
    found = split_thinking(text)
    assert (found.thinking, found.answer) == (thinking, "Oslo")


@pytest.mark.parametrize(
    "text",
    [
        "Use the <think> element, and close it with </think>. Then save.",
        "The tag <thought> opens it and </thought> closes it.",
        "Close the block with `</think>` and save.",
        'Close the block with "</reasoning>" and save.',
        "It ends at </think>.",
        '{"answer": "it ends with </think> alone"}',
        '```json\n{"answer": "it ends with </think> alone"}\n```',
        "An example:\n```\nhm</think>Oslo\n```\nThat is all.",
        "<details><summary>More</summary>Text</details>Rest",
        "Here is my thought process: first I look, then I leap.",
        "Thinking...\nof you.",
        "analysis of the finals",
        "Oslo",
        " Oslo\n",
        "",
    ],
)
def test_a_text_about_tags_stays(text: str) -> None:
    assert split_thinking(text) == SplitText(None, text)


def test_special_tokens_around_an_answer_are_no_part_of_it() -> None:
    assert split_thinking("<|im_start|>assistant\nOslo<|im_end|>").answer == "Oslo"


def test_a_call_in_a_channel_of_its_own_is_kept() -> None:
    call = '<|channel|>commentary to=functions.find_order <|constrain|>json<|message|>{"number": 7}<|call|>'
    found = split_thinking(f"<|channel|>analysis<|message|>An order.<|end|><|start|>assistant{call}")
    assert (found.thinking, found.answer) == ("An order.", f"<|start|>assistant{call}")


SIGNS = ["<think>", "</think>", "[THINK]", "<|channel|>", "final", "<|message|>", "<|end|>", "analysis", "assistant"]
SIGNS += ["<answer>", "</answer>", "`", "İ", "\n", "{", '"', "<|im_end|>", "Oslo"]


@given(st.text() | st.lists(st.sampled_from(SIGNS), max_size=12).map("".join))
def test_any_text_is_split_at_a_place_in_it(text: str) -> None:
    found = split_thinking(text)
    assert found.answer in text[found.start :]
    assert found.ended or found.answer == ""


@pytest.mark.parametrize(
    "text", [" " * 100_000 + "x", "<" * 100_000, "</" * 100_000, "<think>" * 20_000, "</a" + "a_" * 50_000]
)
def test_long_texts_are_split_quickly(text: str) -> None:
    assert split_thinking(text).answer in text


def test_many_channels_end() -> None:
    text = "<|channel|>analysis<|message|>a<|end|>" * 2_000 + "b " * 50_000
    assert not split_thinking(text).ended
