"""What Ollama and llama.cpp need next to a GGUF file: a Modelfile, and a grammar that allows nothing but labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_dagster.student.prompts import PromptRenderer


def build_modelfile(weights: str, renderer: PromptRenderer, cue: str, answer_tokens: int) -> str:
    """The Modelfile of a student: greedy, with the student's own prompt, its ends and its lengths.

    A chat template in Jinja is in the GGUF file, and current versions of Ollama render it. A plain prompt is also given
    as Ollama's own TEMPLATE, for older ones.

    Args:
        weights: the name of the GGUF file next to the Modelfile.
    """
    lines = [
        "# Create the model with: ollama create NAME -f Modelfile",
        f"FROM ./{weights}",
    ]
    if renderer.style == "plain":
        lines.append(f'TEMPLATE """{renderer.settings.item}: {{{{ .Prompt }}}}{cue}"""')
    stops = [renderer.tokenizer.decode([token]) for token in renderer.stops]
    lines += ["PARAMETER temperature 0"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]  # Ollama knows no escapes between quotes
    lines += [
        f"PARAMETER num_predict {answer_tokens}",
        f"PARAMETER num_ctx {renderer.max_tokens + answer_tokens}",
    ]
    return "\n".join(lines) + "\n"


def build_label_grammar(labels: Sequence[str]) -> str:
    """A GBNF grammar for llama.cpp that allows one of the labels, with or without a space before it."""
    choices = " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)
    return f'root ::= " "? ({choices})\n'
