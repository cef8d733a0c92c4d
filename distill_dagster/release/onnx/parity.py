"""Compare ONNX files with the adapter, through the runtime that serves them.

The float32 file is compared by log-probabilities and tokens: answers alone do not tell a lost adapter layer from
rounding. The 8-bit file is compared by its distributions, its answers and its score on dev.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import ModelError
from distill_dagster.core.formatting import count_noun
from distill_dagster.release.parity import DEV_P_VALUE, compare_on_dev, judge_parity
from distill_dagster.release.runtimes.onnx import OnnxRuntime
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.release.types import ExportSource, Parity, ParityStage
from distill_dagster.student.types import StudentPrompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_LOG_PROB_DIFFERENCE = 0.05
MAX_INT8_KL = 0.01
MIN_INT8_AGREEMENT = 0.95
HARD_TEXTS = (
    "",
    " \t leading and   inner spaces \n\n\nnew lines \r\n",
    "I'm, we've, they'll, don't, O'Brien's",
    "1234567890 3.14 1,000,000 2026-11-26 0x1F 50%",
    "naïve café Ångström Straße \ufb01ne \u2167",
    "日本語 中文字 한국어 العربية עברית हिन्दी ไทย",
    "🚀🎉 👩\u200d👩\u200d👧 ✅ zero\u200bwidth no\u00a0break nul\u0000",
    "[CLS] [SEP] [MASK] <s> </s> <|im_end|> ##ing",
    "https://example.com/a?b=c&d=%20 user@example.com C:\\temp\\x.txt",
    "if (a != b) { return a[0] ** 2; }  # TODO",
    "A" * 300,
)
"""Texts that a tokenizer with other rules splits differently."""


def check_full(source: ExportSource, path: Path, tokenizer: Any) -> Parity:
    """Compare a float32 file with the adapter's own answers.

    Args:
        tokenizer: the student's own, of transformers.
    """

    def compare(runtime: OnnxRuntime, probs: NDArray[np.float64], expected: NDArray[np.float64]) -> Parity:
        figures = {
            **_compare_distributions(probs, expected),
            "tokens_equal": _compare_tokens(source, runtime, tokenizer),
        }
        at_most = {"max_log_prob_difference": MAX_LOG_PROB_DIFFERENCE}
        return judge_parity("conversion", _describe(source, path), figures, at_most, {"tokens_equal": 1.0})

    return _check("conversion", source, path, compare)


def check_int8(source: ExportSource, path: Path) -> Parity:
    """Compare an 8-bit file with the adapter's distributions and answers, and its score on dev with the adapter's."""

    def compare(runtime: OnnxRuntime, probs: NDArray[np.float64], expected: NDArray[np.float64]) -> Parity:
        answers = runtime.answer([item.prompt for item in source.dev])
        figures = {
            **_compare_distributions(probs, expected),
            **compare_on_dev(source, [answer.answer for answer in answers]),
        }
        at_most = {"mean_kl": MAX_INT8_KL, DEV_P_VALUE: 1 - source.confidence}
        what = _describe(source, path)
        return judge_parity("quantization", what, figures, at_most, {"agreement": MIN_INT8_AGREEMENT})

    return _check("quantization", source, path, compare)


def _check(stage: ParityStage, source: ExportSource, path: Path, compare: Any) -> Parity:
    import numpy as np

    if not source.parity:
        return Parity(stage, {"prompts": 0.0}, {"prompts": 1.0}, False, "There are no prompts to compare answers on.")
    setup = StudentSetup(source.spec, source.labels, source.settings, source.models)
    runtime = OnnxRuntime(path, setup)
    try:
        runtime.open()
        answers = runtime.answer([one.prompt for one in source.parity])
    except ModelError as error:
        return Parity(stage, {}, {}, False, str(error))
    probs = np.array([list((answer.label_probs or {}).values()) for answer in answers])
    parity: Parity = compare(runtime, probs, np.array([one.log_probs for one in source.parity]))
    runtime.close()
    return parity


def _compare_distributions(probs: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    import numpy as np

    log_probs = np.log(np.maximum(probs, np.finfo(np.float64).tiny))
    return {
        "prompts": float(len(expected)),
        "max_log_prob_difference": float(np.abs(log_probs - expected).max()),
        "mean_kl": float((np.exp(expected) * (expected - log_probs)).sum(1).mean()),
        "agreement": float((probs.argmax(1) == expected.argmax(1)).mean()),
    }


def _compare_tokens(source: ExportSource, runtime: OnnxRuntime, tokenizer: Any) -> float:
    """The share of texts with the same tokens: the prompts, hard texts, and one that is longer than `max_tokens`."""
    most = source.spec.max_tokens
    texts = [*HARD_TEXTS, "An example of a long text. " * most]
    expected = [list(one.prompt_tokens) for one in source.parity]
    expected += [list(ids) for ids in tokenizer(texts, truncation=True, max_length=most)["input_ids"]]
    asked = [one.prompt for one in source.parity] + [StudentPrompt.from_text(text) for text in texts]
    found = runtime.encode(asked)
    return sum(now == then for now, then in zip(found, expected, strict=True)) / len(asked)


def _describe(source: ExportSource, path: Path) -> str:
    return f"onnx/{path.name} on {count_noun(len(source.parity), 'prompt')}"
