"""Split a model's thinking from its answer, where a server left the thinking in the text.

Thinking is what a text begins with: a tag further on is part of the answer, which may be about such tags. The families
are those of the models' chat templates and of the reasoning parsers of vLLM, SGLang and llama.cpp.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

_FLAGS = re.IGNORECASE | re.ASCII
"""ASCII: with Unicode, `i` also matches İ, which is another letter."""
_NAME = (
    r"(?:[\w.-]+[:_])?think(?:ing)?|ant-?thinking|thoughts?|reasoning|scratchpad|reflection|analysis"
    r"|(?:inner|internal)_(?:monologue|thoughts?)|chain_of_thought"
)


@dataclass(frozen=True)
class SplitText:
    """The thinking and the answer of one text.

    `thinking` is None if the text has none; then `answer` is the text without special tokens. `start` is the index in
    the text at which the answer begins. `ended` is False if the thinking never ended: then there is no answer.
    """

    thinking: str | None
    answer: str
    start: int = 0
    ended: bool = True


@dataclass(frozen=True)
class _Family:
    """A pair of tags.

    `may_be_open`: without its closing tag, the opening one still begins thinking. `may_end_alone`: the closing tag ends
    thinking without an opening one, which some chat templates write themselves.
    """

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    may_be_open: bool = True
    may_end_alone: bool = True


def _make_family(opening: str, closing: str, *, may_be_open: bool = True, may_end_alone: bool = True) -> _Family:
    return _Family(re.compile(opening, _FLAGS), re.compile(closing, _FLAGS), may_be_open, may_end_alone)


_FAMILIES = (
    _make_family(
        rf"(?:<|&lt;)\s?(?P<name>{_NAME})(?:\s[^<>&]*)?(?:>|&gt;)", rf"(?:<|&lt;)\s?/\s?(?P<name>{_NAME})\s?(?:>|&gt;)"
    ),
    _make_family(r"\[think(?:ing)?\]", r"\[/think(?:ing)?\]"),  # Mistral
    _make_family("◁think▷", "◁/think▷"),  # Kimi
    _make_family(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Cohere
    _make_family(r"<\|begin_of_(?:thought|thinking)\|>", r"<\|end_of_(?:thought|thinking)\|>"),  # OpenThinker, Sky-T1
    _make_family(r"<[|｜]think(?:ing)?[|｜]>", r"<[|｜]/think(?:ing)?[|｜]>|<[|｜]end_?think(?:ing)?[|｜]>"),
    _make_family(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    _make_family(r"<\|channel>(?:thought|thinking|analysis)?[ \t]*\n?", r"<channel\|>"),  # Gemma 4
    _make_family(r"<unused94>(?:thought)?[ \t]*\n?", r"<unused95>"),  # MedGemma
    _make_family(r"<details\s[^<>]*\btype=[\"']?reasoning\b[^<>]*>", r"</details>", may_end_alone=False),  # Open WebUI
    _make_family(r"```(?:think(?:ing)?|thoughts?|reasoning)[ \t]*\n", r"\n```", may_end_alone=False),
    # These words may begin an answer too, so they count only if the answer is announced as well.
    _make_family(
        r"here(?: is|'s|’s) my thought process:",  # Granite
        r"here(?: is|'s|’s) my response:",
        may_be_open=False,
        may_end_alone=False,
    ),
    _make_family(
        r"here are my reasoning steps:",  # Apriel
        r"(?=\[BEGIN FINAL RESPONSE\])",
        may_be_open=False,
        may_end_alone=False,
    ),
    _make_family(r"thinking\.\.\.[ \t]*\n", r"\.\.\.done thinking\.", may_be_open=False, may_end_alone=False),  # Ollama
)
_BEGINNING = re.compile(
    r"(?:[\s\ufeff\u200b]|<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>(?:assistant)?|<\|assistant\|>"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model)*",
    _FLAGS,
)
_END = re.compile(
    r"(?:<\|(?:im_end|end|return|eot_id|eom_id|end_of_text|endoftext|END_OF_TURN_TOKEN)\|>"
    r"|<[|｜]end[_▁]of[_▁]sentence[|｜]>|</s>|<eos>|<end_of_turn>|<turn\|>)\Z",
    _FLAGS,
)
_LONGEST_END = 32
_SIGN = re.compile(r"[<\[◁`&\ufeff\u200b]")
_FIRST_WORD = re.compile(r"\s*(?:here|thinking|analysis)", _FLAGS)
"""A text with thinking or special tokens has one of the signs, or begins with one of the words. Most texts do not."""
_JSON = re.compile(r"(?:```\w*\s*)?[\[{]\s*[\"'\[{]")
"""A text that begins like this is JSON, so a closing tag in it is part of a string."""
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "(": ")"}
_IN_SENTENCE = re.compile(r"[.,;:!?](?:\s|\Z)")
_ANSWER_TAGS = tuple(
    (re.compile(rf"\s*{opening}", _FLAGS), re.compile(closing, _FLAGS))
    for opening, closing in (
        (r"<(?:final_)?answer>", r"</(?:final_)?answer>"),
        (r"<(?:final_)?response>", r"</(?:final_)?response>"),
        (r"<output>", r"</output>"),
        (r"<\|begin_of_(?:solution|box)\|>", r"<\|end_of_(?:solution|box)\|>"),
        (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
        (r"\[BEGIN FINAL RESPONSE\]", r"\[END FINAL RESPONSE\]"),
    )
)
_HARMONY = re.compile(
    r"(?:<\|start\|>\s?assistant\s?(?:to=[\w.]+\s?)?)?(?:(?=<\|channel\|>)|(?=(?:analysis|commentary|final)\s?<\|message\|>))",
    _FLAGS,
)
_HARMONY_MESSAGE = re.compile(
    r"(?:<\|channel\|>\s?)?(?P<channel>\w+)(?P<header>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>"
    r"(?P<content>.*?)(?P<end><\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    _FLAGS | re.DOTALL,
)
_BARE_FINAL = re.compile(r"assistant(?:final|(?=commentary\s+to=))")


def split_thinking(text: str) -> SplitText:
    """Split the thinking at the head of a text from the answer after it.

    A closing tag without an opening one ends the thinking too: some chat templates write the opening tag themselves.
    """
    if not _SIGN.search(text) and not _FIRST_WORD.match(text):
        return SplitText(None, text)
    place = _skip_beginning(text, 0)
    if found := _split_harmony(text, place) or _split_bare_harmony(text, place):
        return found
    thoughts: list[str] = []
    while block := _find_block(text, place):
        thought, place = block
        thoughts.append(thought)
        if place < 0:
            return SplitText(_join(thoughts), "", len(text), ended=False)
        place = _skip_beginning(text, place)
    if not thoughts and (block := _find_end_alone(text, place)):
        thoughts.append(block[0])
        place = _skip_beginning(text, block[1])
    if thoughts:
        return _build_split(thoughts, text, place)
    start = place if text[:place].strip() else 0
    end = _find_end(text)
    return SplitText(None, text[start:end], start) if (start, end) != (0, len(text)) else SplitText(None, text)


def _build_split(thoughts: list[str], text: str, start: int, end: int | None = None) -> SplitText:
    """The result for an answer from `start` to `end`, by default to the end of the text, without tags around it."""
    end = _find_end(text) if end is None else end
    for opening, closing in _ANSWER_TAGS:
        if found := opening.match(text, start, end):
            start = found.end()
            end = next((tag.start() for tag in reversed(list(closing.finditer(text, start, end)))), end)
            break
    return SplitText(_join(thoughts), text[start:end].strip(), start)


def _skip_beginning(text: str, place: int) -> int:
    """The index after the white space and special tokens at a place."""
    found = _BEGINNING.match(text, place)
    return found.end() if found else place


def _find_end(text: str) -> int:
    """The index of the special tokens that end a text, or its length."""
    rest = text.rstrip()
    while found := _END.search(rest, max(0, len(rest) - _LONGEST_END)):
        rest = rest[: found.start()].rstrip()
        text = rest
    return len(text)


def _join(thoughts: list[str]) -> str:
    return "\n\n".join(part for part in (thought.strip() for thought in thoughts) if part)


def _is_mentioned(text: str, tag: re.Match[str]) -> bool:
    """Whether a sentence mentions a closing tag: in quotation marks, or with punctuation after it."""
    before, after = text[max(0, tag.start() - 1) : tag.start()], text[tag.end() : tag.end() + 1]
    return (before != "" and _QUOTES.get(before) == after) or bool(_IN_SENTENCE.match(text, tag.end()))


def _find_block(text: str, place: int) -> tuple[str, int] | None:
    """The thinking between tags at a place, and the index after it; -1 if it never ends."""
    for family in _FAMILIES:
        opening = family.opening.match(text, place)
        if opening is None:
            continue
        closings = list(family.closing.finditer(text, opening.end()))
        if name := opening.groupdict().get("name"):  # "<think>… a <thought> element …</thought> …</think>"
            closings = [tag for tag in closings if tag["name"].casefold() == name.casefold()] or closings
        closing = next((tag for tag in closings if not _is_mentioned(text, tag)), closings[0] if closings else None)
        if closing is not None:
            closing = _skip_nested(text, opening, closing, closings, family)
            return text[opening.end() : closing.start()], closing.end()
        if family.may_be_open:
            return text[opening.end() :], -1
    return None


def _skip_nested(
    text: str, opening: re.Match[str], closing: re.Match[str], closings: list[re.Match[str]], family: _Family
) -> re.Match[str]:
    """The closing tag that matches the opening one, if tags are nested and all of them are closed."""
    inner = [tag.start() for tag in family.opening.finditer(text, opening.end())]
    later = closings[closings.index(closing) :]
    return next((tag for number, tag in enumerate(later) if bisect_left(inner, tag.start()) <= number), closing)


def _find_end_alone(text: str, place: int) -> tuple[str, int] | None:
    """The thinking before a closing tag whose opening tag the chat template wrote, and the index after it."""
    if _JSON.match(text, place):
        return None
    for family in _FAMILIES:
        closings = family.closing.finditer(text, place) if family.may_end_alone else iter(())
        closing = next((tag for tag in closings if not _is_mentioned(text, tag)), None)
        if closing is None:
            continue
        thought = text[place : closing.start()]
        if not family.opening.search(thought) and thought.count("```") % 2 == 0:
            return thought, closing.end()
    return None


def _split_harmony(text: str, place: int) -> SplitText | None:
    """Split gpt-oss's channels: `final` is the answer, a call belongs to it, and the others are thinking."""
    opening = _HARMONY.match(text, place)
    if opening is None:
        return None
    message = _HARMONY_MESSAGE.match(text, opening.end())
    thoughts: list[str] = []
    final: tuple[int, int] | None = None
    call: int | None = None
    ended = place  # where the last message ended; the name of a tool may come before the channel
    while message is not None:
        if "to=" in text[ended : message.start("content")]:
            call = ended if call is None else call
        elif message["channel"].casefold() == "final":
            final = message.span("content")
        else:
            thoughts.append(message["content"])
        ended = message.end()
        following = text.find("<|channel|>", ended)
        message = _HARMONY_MESSAGE.match(text, following) if following >= 0 else None
    if call is not None:
        return SplitText(_join(thoughts), text[call:].strip(), call)
    if final is not None:
        return _build_split(thoughts, text, *final)
    return SplitText(_join(thoughts), "", len(text), ended=False)


def _split_bare_harmony(text: str, place: int) -> SplitText | None:
    """Split what gpt-oss wrote if its special tokens are lost: "analysisThe user asks …assistantfinalOslo"."""
    word = "analysis"
    if not text.startswith(word, place):
        return None
    start = place + len(word)
    if final := next(reversed(list(_BARE_FINAL.finditer(text, start))), None):
        return _build_split([text[start : final.start()]], text, final.end())
    # No sentence begins like "analysisThe".
    return SplitText(text[start:].strip(), "", len(text), ended=False) if text[start : start + 1].isupper() else None
