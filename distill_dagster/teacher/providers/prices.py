"""The price of a model, and the most that a request can cost."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config import TeacherSpec
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.teacher.providers.transport import DIRECT_PREFIXES

if TYPE_CHECKING:
    from distill_dagster.teacher.providers.exchange import Request

TOKEN_MARGIN = 1.25
"""A safety factor: the tokenizer of the model may need more tokens than the one that counts here."""
TOKENS_PER_MESSAGE = 8
TOKENIZER = "cl100k_base"
"""Counts tokens where nobody reported them: the tokenizer of OpenAI's GPT-4, in the tiktoken package."""


@dataclass(frozen=True)
class TokenPrice:
    """The price of a model, in USD per million tokens."""

    input_usd: float
    output_usd: float

    def compute_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of a request in USD."""
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


def find_price(spec: TeacherSpec) -> TokenPrice | None:
    """Return the declared price, else the price in litellm's list, else None. It never guesses.

    The embedded teacher costs nothing, and so does a replay: its declared price is for the report, and nothing is
    billed. A price of 0 in the list is ignored: it marks self-hosted models.
    """
    if spec.price is not None and not spec.is_replay:
        return TokenPrice(spec.price.input_usd, spec.price.output_usd)
    if spec.is_free:
        return TokenPrice(0.0, 0.0)
    own_server = spec.has_no_server or (spec.api_base is not None and spec.model.startswith(DIRECT_PREFIXES))
    return _find_listed_price(spec.model) or (None if own_server else _find_litellm_price(spec.model))


def _find_listed_price(model: str) -> TokenPrice | None:
    """Look up a model in litellm's list, by its name with or without the provider."""
    prices = _load_price_list()
    entry = prices.get(model) or prices.get(model.partition("/")[2]) or {}
    return _build_price(entry.get("input_cost_per_token"), entry.get("output_cost_per_token"))


@lru_cache(maxsize=1)
def _load_price_list() -> dict[str, Any]:
    """Read the list from litellm's package without importing litellm, which takes seconds."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    file = Path(spec.origin).parent / "model_prices_and_context_window_backup.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


@lru_cache(maxsize=64)
def _find_litellm_price(model: str) -> TokenPrice | None:
    """Ask litellm, which understands regions and versions in model names."""
    import litellm

    try:
        input_usd, output_usd = litellm.cost_per_token(model=model, prompt_tokens=1, completion_tokens=1)
    except Exception:  # the model is unknown; the type of the error depends on the version of litellm
        return None
    return _build_price(input_usd, output_usd)


def _build_price(input_usd: float | None, output_usd: float | None) -> TokenPrice | None:
    if not input_usd and not output_usd:
        return None
    return TokenPrice(round((input_usd or 0.0) * 1e6, 6), round((output_usd or 0.0) * 1e6, 6))


@dataclass(frozen=True)
class WorstCase:
    """The most that a request can take: its prompt and the longest possible answer, with hidden reasoning."""

    tokens: int
    usd: float | None


def compute_worst_case(request: Request, price: TokenPrice | None, *, exact: bool = True) -> WorstCase:
    """Compute what to reserve for a request.

    Args:
        exact: count the tokens of the prompt. Otherwise estimate them from its length, which is enough without a cap.
    """
    texts = _list_texts(request)
    whole = "\n".join(text for text in texts if text)
    counted = count_tokens(whole) if exact else math.ceil(len(whole.encode()) / 3)
    prompt = math.ceil(counted * TOKEN_MARGIN) + TOKENS_PER_MESSAGE * (len(texts) + 1)
    answer = request.max_answer_tokens
    return WorstCase(prompt + answer, price.compute_cost(prompt, answer) if price is not None else None)


def count_request_tokens(request: Request) -> int:
    """Count the tokens of all texts of a request, without those that a provider puts between the turns."""
    return count_tokens("\n".join(_list_texts(request)))


def _list_texts(request: Request) -> list[str]:
    texts = [request.prompt] if request.prompt is not None else [m.get("content") or "" for m in request.messages or []]
    extra = [value for value in (request.tools, request.response_format) if value]
    return [str(text) for text in texts] + [to_canonical_json(value) for value in extra]


def count_tokens(text: str) -> int:
    """Count the tokens of a text with `TOKENIZER`, whatever the model that reads it."""
    return len(_load_encoding().encode(text, disallowed_special=()))


@lru_cache(maxsize=1)
def _load_encoding() -> Any:
    """Load the copy of the tokenizer in litellm's package: tiktoken would download it, and litellm takes seconds."""
    import tiktoken

    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    return tiktoken.get_encoding(TOKENIZER)
