"""Compare GGUF files with the adapter, in two stages, through the server that will answer from them.

Answers alone do not tell a layer that was not merged from a healthy file of 4 bits. So the f16 file is compared with
the adapter by log-probabilities, tokens, metadata and what the chat endpoint answers. A quantized file is compared with
the f16 file by its distributions, and on dev.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_dagster.core.formatting import count_noun
from distill_dagster.core.gguf_files import read_gguf_metadata
from distill_dagster.core.progress import report_progress
from distill_dagster.kinds import Question, is_refusal, read_answer
from distill_dagster.release.parity import DEV_P_VALUE, compare_on_dev, find_largest, judge_parity
from distill_dagster.release.runtimes.llama_requests import WrittenTokens
from distill_dagster.release.runtimes.llama_server import LlamaServerRuntime
from distill_dagster.release.types import ExportSource, Parity, ParityPrompt

MAX_LOG_PROB_DIFFERENCE = 0.05
MIN_PROB = 1e-4
"""Log-probabilities of less probable labels are not compared: rounding moves them most, and they decide nothing."""
TOP_TOKENS = 40
CHAT_PROMPTS, CHAT_TOKENS = 24, 64
"""How many prompts go through the chat endpoint, and how many tokens of a written answer are compared there."""
MAX_KL = {"q8_0": 0.01, "q4_k_m": 0.1}
MIN_Q8_AGREEMENT = 0.95
HARD_STRINGS = (
    "I'm, we've, they'll, DON'T, O'Brien's",
    "1234567890 3.14 1,000,000 2026-11-26 0x1F 50%",
    "  two  spaces,\ta tab\n\n\nnew lines \r\n end ",
    "naïve café Ångström Straße ﬁne Œuvre",
    "日本語 中文字 한국어 العربية עברית हिन्दी ไทย",
    "🚀🎉 👩\u200d👩\u200d👧 ✅ zero\u200bwidth no\u00a0break",
    "if (a != b) { return a[0] ** 2; }  # TODO camelCase snake_case",
    "https://example.com/a?b=c&d=%20 user@example.com C:\\temp\\x.txt",
    "=====-----!!!???... A" + "a" * 200,
)
"""Texts that a tokenizer with other rules splits differently."""

Distribution = Mapping[int, float]
"""Log-probabilities by label number, or by token."""


@dataclass(frozen=True)
class FileAnswers:
    """What a file answers to every parity prompt: a distribution over labels, or one over tokens at every place."""

    distributions: list[list[Distribution]]


def collect_answers(source: ExportSource, runtime: LlamaServerRuntime) -> FileAnswers:
    """Ask for the distributions over labels, or along the adapter's own written answers."""
    rows: list[list[Distribution]] = []
    for start in range(0, len(source.parity), runtime.batch_size):
        report_progress(f"comparing {runtime.name}", start, len(source.parity))
        part = source.parity[start : start + runtime.batch_size]
        if all(not one.answer_tokens for one in part):
            found = runtime.compute_label_probs([list(one.prompt_tokens) for one in part])
            rows += [[{label: math.log(max(prob, 1e-30)) for label, prob in enumerate(probs)}] for probs in found]
        else:
            rows += [_follow_answer(runtime, one) for one in part]
    return FileAnswers(rows)


def _follow_answer(runtime: LlamaServerRuntime, one: ParityPrompt) -> list[Distribution]:
    """Distributions at every place of the adapter's answer. Where the file writes another token, it is put right."""
    found: list[Distribution] = []
    while len(found) < len(one.answer_tokens):
        before = [*one.prompt_tokens, *one.answer_tokens[: len(found)]]
        [written] = runtime.write([before], len(one.answer_tokens) - len(found), TOP_TOKENS, cache=True)
        places = list(zip(written.tokens, written.top, strict=False))
        if not places:
            break
        for token, top in places:
            found.append(top)
            if token != one.answer_tokens[len(found) - 1]:
                break
    return found


def check_conversion(
    source: ExportSource, path: Path, runtime: LlamaServerRuntime, answers: FileAnswers, template: str
) -> Parity:
    """Compare an f16 file with the adapter.

    Args:
        template: the chat template that the file must have.
    """
    wrong = _find_wrong_metadata(source, path, runtime, template)
    figures = {
        "prompts": float(len(source.parity)),
        "max_log_prob_difference": _find_largest_difference(source.parity, answers),
        "agreement": _compare_answers(source.parity, answers),
        "tokens_equal": _compare_tokens(source, runtime),
        "wrong_metadata": float(len(wrong)),
        **_compare_chat(source, runtime),
    }
    at_most = {"max_log_prob_difference": MAX_LOG_PROB_DIFFERENCE, "wrong_metadata": 0.0}
    at_least = {"prompts": 1.0, "tokens_equal": 1.0, "chat_equal": 1.0}
    parity = judge_parity("conversion", _describe(source, path), figures, at_most, at_least)
    return replace(parity, text=" ".join([parity.text, *wrong]))


def check_quantized(
    source: ExportSource, path: Path, runtime: LlamaServerRuntime, quantized: str, full: FileAnswers
) -> Parity:
    """Compare a quantized file with the f16 file, and its answers on dev with the adapter's."""
    answers = collect_answers(source, runtime)
    pairs = [
        (before, after)
        for row, now in zip(full.distributions, answers.distributions, strict=True)
        for before, after in zip(row, now, strict=False)
    ]
    figures = {
        "prompts": float(len(source.parity)),
        "mean_kl": sum(_compute_kl(*pair) for pair in pairs) / len(pairs),
        "agreement": sum(_pick(before) == _pick(after) for before, after in pairs) / len(pairs),
        **compare_on_dev(source, _answer_dev(source, runtime)),
    }
    at_most, at_least = {"mean_kl": MAX_KL[quantized]}, {}
    if quantized == "q8_0":
        at_least["agreement"] = MIN_Q8_AGREEMENT
    else:
        at_most[DEV_P_VALUE] = 1 - source.confidence
    return judge_parity("quantization", _describe(source, path), figures, at_most, at_least)


def _find_largest_difference(expected: Sequence[ParityPrompt], answers: FileAnswers) -> float:
    """Between log-probabilities of the adapter and of a file. Infinite if the file ended its answer too early."""
    largest = 0.0
    for one, row in zip(expected, answers.distributions, strict=True):
        if one.answer_tokens:
            if len(row) < len(one.answer_tokens):
                return math.inf
            pairs = [
                # Of a token that is not among the most probable ones, only an upper bound is known.
                (top.get(token, min(then, *top.values())), then)
                for token, top, then in zip(one.answer_tokens, row, one.log_probs, strict=True)
            ]
        else:
            pairs = [(row[0][label], then) for label, then in enumerate(one.log_probs) if then >= math.log(MIN_PROB)]
        largest = find_largest([largest, *(abs(now - then) for now, then in pairs)])
    return largest


def _compare_answers(expected: Sequence[ParityPrompt], answers: FileAnswers) -> float:
    """The share of prompts with the adapter's label, or with its whole written answer."""
    equal = 0
    for one, row in zip(expected, answers.distributions, strict=True):
        wanted = one.answer_tokens or [max(range(len(one.log_probs)), key=one.log_probs.__getitem__)]
        equal += [_pick(places) for places in row] == list(wanted)
    return equal / max(1, len(expected))


def _pick(distribution: Distribution) -> int:
    return max(distribution, key=distribution.__getitem__)


def _compute_kl(before: Distribution, after: Distribution) -> float:
    """KL(before || after) in nats over the tokens or labels of `before`, with all others as one."""
    least = min(after.values())
    pairs = [(math.exp(value), math.exp(after.get(token, least))) for token, value in before.items()]
    pairs.append((1 - sum(p for p, _ in pairs), 1 - sum(q for _, q in pairs)))
    return max(0.0, sum(p * math.log(p / max(q, 1e-12)) for p, q in pairs if p > 1e-9))


def _compare_tokens(source: ExportSource, runtime: LlamaServerRuntime) -> float:
    """The share of texts with the same tokens in the file and in the student's tokenizer, and of equal prompts."""
    encoded = runtime.encode([one.prompt for one in source.parity])
    equal = [tuple(now.ids) == one.prompt_tokens for now, one in zip(encoded, source.parity, strict=True)]
    tokenizer = runtime.renderer.tokenizer
    texts = [*HARD_STRINGS, *(one.prompt.text for one in source.parity)]
    equal += [runtime.tokenize(text) == list(tokenizer(text)["input_ids"]) for text in texts]
    return sum(equal) / len(equal)


def _compare_chat(source: ExportSource, runtime: LlamaServerRuntime) -> dict[str, float]:
    """Compare what the chat endpoint answers with what the file writes after the student's own prompt.

    `chat_equal` is the share with the same text, end and number of prompt tokens, on prompts that need no cutting.
    `chat_agreement` is the share with the adapter's answer: greedy text that is not restricted to labels.
    """
    prompts = [one for one in source.parity if _is_plain_conversation(one)]
    uncut = [
        (one, encoded.ids)
        for one, encoded in zip(prompts, runtime.encode([one.prompt for one in prompts]), strict=True)
        if not encoded.is_cut
    ][:CHAT_PROMPTS]
    most = runtime.count_answer_tokens(CHAT_TOKENS)
    equal = agreeing = 0
    for number, (one, ids) in enumerate(uncut):
        report_progress(f"asking the chat endpoint of {runtime.name}", number, len(uncut))
        messages = [{"role": turn["role"], "content": turn["content"] or ""} for turn in one.prompt.messages]
        reply = runtime.chat(messages, most)
        choice = reply["choices"][0]
        text = (choice["message"].get("content") or "").strip()
        [written] = runtime.write([ids], most)
        expected = _read_text(runtime, written)
        ends = {True: "length", False: "stop"}
        is_same_prompt = reply["usage"]["prompt_tokens"] == len(ids)
        equal += text == expected and choice["finish_reason"] == ends[written.is_cut] and is_same_prompt
        agreeing += text == runtime.strip_mark(one.answer)
    count = len(uncut)
    return {
        "chat_prompts": float(count),
        "chat_equal": equal / count if count else 1.0,
        "chat_agreement": agreeing / count if count else 1.0,
    }


def _is_plain_conversation(one: ParityPrompt) -> bool:
    roles = {"system", "user", "assistant"}
    is_text = all(turn["role"] in roles and not turn["tool_calls"] for turn in one.prompt.messages)
    return is_text and one.prompt.tools is None


def _read_text(runtime: LlamaServerRuntime, written: WrittenTokens) -> str:
    return runtime.strip_mark(runtime.renderer.decode_answer(written.tokens, runtime.cue))


def _find_wrong_metadata(source: ExportSource, path: Path, runtime: LlamaServerRuntime, template: str) -> list[str]:
    """A sentence for every value of the file's metadata that is not the student's."""
    config = json.loads((source.merged / "config.json").read_text(encoding="utf-8"))
    tokenizer = runtime.renderer.tokenizer
    rope = config.get("rope_parameters") or {}
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    found = read_gguf_metadata(path)
    architecture = found["general.architecture"]
    expected = {
        "tokenizer.chat_template": template,
        "tokenizer.ggml.eos_token_id": runtime.renderer.end,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.add_bos_token": starts,
        f"{architecture}.rope.freq_base": rope.get("rope_theta", config.get("rope_theta")),
        f"{architecture}.context_length": config.get("max_position_embeddings"),
        f"{architecture}.block_count": config.get("num_hidden_layers"),
    }
    # llama.cpp has a value of its own for what a file does not say, which tokens and log-probabilities then show. It
    # guesses the end of an answer.
    needed = ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id")
    return [
        f"{key} is {_shorten(found.get(key))}, expected {_shorten(value)}."
        for key, value in expected.items()
        if value is not None and (key in found or key in needed) and found.get(key) != value
    ]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _answer_dev(source: ExportSource, runtime: LlamaServerRuntime) -> list[Any]:
    """Canonical answers to the dev rows. None is no answer."""
    answers: list[Any] = []
    for start in range(0, len(source.dev), runtime.batch_size):
        report_progress(f"answering dev.jsonl with {runtime.name}", start, len(source.dev))
        part = source.dev[start : start + runtime.batch_size]
        for item, found in zip(part, runtime.answer([item.prompt for item in part]), strict=True):
            if found.label_probs is not None:
                answers.append(found.answer)
                continue
            question, stop = Question(item.prompt.text, is_refusal(item.reference)), f"\n\n{source.settings.item}:"
            read = read_answer(source.kind, found.raw_text, question, finish_reason=found.finish_reason, stop=stop)
            answers.append(None if read.answer is None else json.loads(read.answer))
    return answers


def _describe(source: ExportSource, path: Path) -> str:
    return f"gguf/{path.name} on {count_noun(len(source.parity), 'prompt')}"
