"""Write what an ONNX file needs next to it: the tokenizer with its rules of truncation and padding, and the labels.

The names and contents of the files are those that transformers.js reads for a text classification model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill_dagster.core import models
from distill_dagster.release.onnx.graph import UnsupportedModelError
from distill_dagster.release.runtimes.onnx import CONFIG_FILE, TOKENIZER_FILE

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_LOCAL_FIELDS = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of")
"""Fields of tokenizer_config.json that say how the tokenizer was last used here, not what it is."""


def write_tokenizer(tokenizer: Any, max_tokens: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which cut texts to `max_tokens` as in training.

    Raises:
        UnsupportedModelError: the tokenizer has no form in JSON.
    """
    from tokenizers import Tokenizer

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError("Its tokenizer cannot be written as tokenizer.json, which ONNX runtimes read.")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token or "[PAD]",
    )
    backend.save(str(folder / TOKENIZER_FILE))
    with TemporaryDirectory() as temporary, models.silence_transformers():
        tokenizer.save_pretrained(temporary)
        config = json.loads((Path(temporary) / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _LOCAL_FIELDS}
    _write_json(folder / TOKENIZER_CONFIG_FILE, kept | {"model_max_length": max_tokens})


def write_config(config: Any, labels: Sequence[str], folder: Path) -> None:
    """Write config.json of the encoder, with the labels in the order of the logits.

    Args:
        config: the configuration of the encoder, as transformers has it.
    """
    value = {name: part for name, part in config.to_diff_dict().items() if not name.startswith("_")}
    value |= {
        "model_type": config.model_type,
        "architectures": [f"{type(config).__name__.removesuffix('Config')}ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    _write_json(folder / CONFIG_FILE, value)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
