"""A batch is written as each of its rows alone, and rows that have ended leave it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from distill_dagster.student import greedy
from distill_dagster.student.greedy import write_greedily
from tests.support.tiny_model import write_tiny_model

MOST = 24
PROMPTS = ["ab", "refund me", "x", "what is the price of it?", "zzz", "Hello: 12"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), size=32)
    # Large random weights: what is written depends on what was read.
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(1)
    for weight in loaded.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return loaded


def _pad(texts: list[str]) -> dict[str, torch.Tensor]:
    """Characters as token ids, padded on the left."""
    width = max(map(len, texts))
    ids = torch.zeros((len(texts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = torch.tensor([2 + ord(c) % 60 for c in text])
        mask[row, width - len(text) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _choose_stops(alone: list[list[int]]) -> list[int]:
    """A token that ends some rows early, some late and some never."""
    found = {}
    for token in range(2, 68):
        ends = [ids.index(token) if token in ids else MOST for ids in alone]
        found[token] = len({*ends})
    best = max(found, key=lambda token: (found[token], -token))
    assert found[best] >= 3
    return [best]


def test_a_batch_is_written_as_each_row_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        endless = [write_greedily(model, _pad([text]), MOST, [1], 0)[0] for text in PROMPTS]
        assert len({tuple(ids) for ids in endless}) == len(PROMPTS)
        stops = _choose_stops(endless)
        alone = [write_greedily(model, _pad([text]), MOST, stops, 0)[0] for text in PROMPTS]
        sizes = []
        generate = model.generate

        def count(**arguments: Any) -> Any:
            sizes.append(len(arguments["input_ids"]))
            return generate(**arguments)

        monkeypatch.setattr(model, "generate", count)
        together = write_greedily(model, _pad(PROMPTS), MOST, stops, 0)
        assert together == alone
        assert [ids[-1] in stops for ids in together] != [True] * len(PROMPTS), "one is cut"
        assert sizes[0] == len(PROMPTS)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < len(PROMPTS), "rows that have ended are not computed to the end"
        monkeypatch.setattr(greedy, "_can_cut", lambda _: False)
        sizes.clear()
        assert write_greedily(model, _pad(PROMPTS), MOST, stops, 0) == alone
        assert sizes == [len(PROMPTS)]


def test_what_has_no_end_is_cut_at_the_most_tokens(model: Any) -> None:
    with torch.inference_mode():
        for most in (1, 4, 5, 13):
            written = write_greedily(model, _pad(PROMPTS), most, [1], 0)
            assert max(map(len, written)) == most
            assert all(len(ids) == most or ids[-1] == 1 for ids in written)
