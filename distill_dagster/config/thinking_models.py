"""Which models think before they answer unless they are told not to, and what they are allowed for it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

THINKING_TOKENS = 4096
"""Default of `thinking_tokens` for a model that thinks. Most thinking about one prompt is shorter."""
LEAST_THINKING_TOKENS = 1024
"""With fewer tokens, a model that thinks is often cut before its answer."""
THINKING_TIMEOUT_S = 300.0
"""Default of `timeout_s` for a model that thinks: 4096 tokens take minutes on a small server."""

# By the documentation of the models, 2026. Models that think only on request (Claude, gpt-5.1, DeepSeek's chat model)
# are not here.
_THINKS = re.compile(
    r"""
      (?:^|[/_-])o[1-9](?:$|[-_:.@])                 # OpenAI o1, o3-mini; Marco-o1
    | gpt-5(?![.\d]|.*chat) | gpt-oss
    | deepseek[-_]?r1 | r1[-_]distill
    | qwq | qwen[-_]?3(?:\.\d+)?(?![-_.\d]*(?:max|coder|embedding|reranker|asr|tts|guard)|.*(?:instruct|coder))
    | gemini-(?:2\.5-pro|2\.5-flash(?!-lite)|[3-9])(?!.*(?:image|tts|embedding))
    | grok-(?:3-mini|4|code)
    | magistral | minimax[-_]m[1-9] | kimi-k2\.\d | seed-oss | mimo-v\d | step-3 | ring-(?:1t|flash|mini|lite)
    | glm-(?:4\.[5-9]|[5-9]|z1) | smollm3 | exaone-deep | hunyuan-a13b | sky-t1 | nemotron-(?:nano|3) | falcon-h1r
    | think | reason
    """,
    re.VERBOSE | re.ASCII,
)
_DOES_NOT_THINK = re.compile(r"no[nt]?[-_]?(?:think|reason)", re.ASCII)


@lru_cache(maxsize=256)
def is_thinking_model(model: str) -> bool:
    """Whether a model, by its litellm id, is known to think before it answers by default."""
    name = model.casefold()
    return bool(_THINKS.search(name)) and not _DOES_NOT_THINK.search(name)


def fill_thinking_defaults(value: Any) -> Any:
    """The settings of a model as written in task.yaml, with the time that a model takes which thinks."""
    if isinstance(value, dict) and isinstance(value.get("model"), str) and is_thinking_model(value["model"]):
        return {"timeout_s": THINKING_TIMEOUT_S} | value
    return value
