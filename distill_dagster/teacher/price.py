"""What a request costs: before it is sent, at worst, and when its answer came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from distill_dagster.hashing import canonical_json
from distill_dagster.spec import TeacherSpec

if TYPE_CHECKING:
    from distill_dagster.teacher.client import Request

MARGIN = 1.25
"""Prompt tokens are counted with one tokenizer; others may need more for the same text."""
PER_MESSAGE = 8


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input_usd: float
    output_usd: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD."""
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


def price_of(spec: TeacherSpec) -> Price | None:
    """The declared price, else the one in litellm's list, else None: never a guess.

    The embedded teacher and a replay cost nothing. A 0 in the list is no price either: it stands there for models that
    one hosts oneself.
    """
    if spec.price is not None:
        return Price(spec.price.input_usd, spec.price.output_usd)
    return Price(0.0, 0.0) if spec.free else _listed(spec.model)


@lru_cache(maxsize=64)
def _listed(model: str) -> Price | None:
    import litellm

    try:
        input_usd, output_usd = litellm.cost_per_token(model=model, prompt_tokens=10**6, completion_tokens=10**6)
    except Exception:  # the list does not know the model; which error says so changed between versions
        return None
    return Price(input_usd, output_usd) if input_usd > 0 or output_usd > 0 else None


@dataclass(frozen=True)
class Worst:
    """The most that a request can take: its prompt's tokens and as many as it may answer, hidden reasoning included."""

    tokens: int
    usd: float | None


def worst_case(request: Request, price: Price | None, *, exact: bool = True) -> Worst:
    """What to reserve for a request.

    Args:
        exact: count the prompt's tokens; otherwise they are guessed from its length, for where nothing depends on it.
    """
    texts = [request.prompt] if request.prompt is not None else [m.get("content") or "" for m in request.messages or []]
    extra = [value for value in (request.tools, request.response_format) if value]
    texts += [canonical_json(value) for value in extra]
    whole = "\n".join(str(text) for text in texts if text)
    counted = _tokens(whole) if exact else math.ceil(len(whole.encode()) / 3)
    prompt = math.ceil(counted * MARGIN) + PER_MESSAGE * (len(texts) + 1)
    answer = int(request.params.get("max_tokens") or request.params.get("max_completion_tokens") or 4096)
    return Worst(prompt + answer, price.of(prompt, answer) if price is not None else None)


def _tokens(text: str) -> int:
    return len(_encoding().encode(text, disallowed_special=()))


@lru_cache(maxsize=1)
def _encoding() -> Any:
    from litellm.litellm_core_utils.default_encoding import encoding  # comes with litellm: tiktoken would load it

    return encoding
