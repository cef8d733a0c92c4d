"""Model card and dataset card: what the Hub reads in them, and that what they say was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData

from distill_dagster.config import Task
from distill_dagster.core.checks import CheckResult
from distill_dagster.release.cards import (
    CardFacts,
    DatasetCardFacts,
    DatasetFacts,
    build_dataset_card,
    build_model_card,
    find_base,
)
from distill_dagster.release.types import Export, LeftOut, Parity
from distill_dagster.tables.messages import append_answer, make_user_messages
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.kinds import build_task

TERMS = {
    "summary": "The terms of X restrict training with its answers; the task acknowledges it.",
    "note": None,
    "clauses": [
        {"quote": "No | training.", "document": "Terms", "url": "https://x.example/t", "date_read": "2026-01-02"}
    ],
}


def build_dataset() -> pl.DataFrame:
    rows = [
        dict.fromkeys(DATASET)
        | {"prompt_id": str(n), "slice": "mail", "origin": "human", "answer": json.dumps(answer), "teacher": teacher}
        | {"messages": append_answer(make_user_messages("secret text"), answer), "split": split}
        for n, (answer, teacher, split) in enumerate(
            [("refund", "gpt", "train"), ("refund", "gpt", "validation"), ("delivery", None, "train")]
        )
    ]
    return build_frame(rows, DATASET, ("prompt_id",))


def build_system(score: float | None, cost: float | None = 0.1) -> dict[str, Any]:
    interval = (
        {"value": score, "low": 0.5, "high": 0.9} if score is not None else dict.fromkeys(("value", "low", "high"))
    )
    latency = {"p50": None, "items": 0}
    return {"metric": "accuracy", "score": interval, "n": 40, "model": "m|odel", "latency_s": latency} | {
        "cost_usd_per_1k": cost
    }


def build_facts(task: Task, model: str = "all-minilm-l6-v2") -> CardFacts:
    spec = task.students["tiny"].model_copy(update={"model": model})
    filters = [{"filter": "min_words", "parameters": "2"}]
    reasons = {"too_short": 4, "refused": 0}
    facts = DatasetFacts.from_table(build_dataset(), "abc123", task.has_labels, reasons, 7, filters)
    parity = Parity("conversion", {}, {}, True, "equal on 60 prompts.")
    return CardFacts(
        task=task,
        task_name="mail",
        student="tiny",
        number=3,
        spec=spec,
        dataset=facts,
        metrics={
            "systems": {"teacher": build_system(0.8, None), "distilled": build_system(0.7)},
            "per_slice": {"distilled": {"mail": {"n": 40, "score": 0.7}}},
            "statistics": {"confidence": 0.95},
            "retention": {"value": 0.875, "low": 0.8, "high": 0.95},
            "verdict": {"text": "Yes, distilling pays."},
            "distillation": {"answers": 5, "answers_usd": 1.5, "training_s": 60.0, "usd": None},
            "cost_method": "By the hour.",
        },
        terms=[TERMS],
        gate=[CheckResult("answers_readable", True, details={"readable": 1.0})],
        exports=[Export("onnx", "onnx/model.onnx", ("onnx/model.onnx",), 90_000_000, (parity,), "onnx")],
        left_out=[LeftOut("onnx-int8", "It agrees on 0.9 only.")],
        routing={"exports": {"onnx": {"threshold": 0.91, "source": "dev"}}},
    )


def test_the_hub_reads_score_base_and_licence_from_the_model_card(tmp_path: Path) -> None:
    build_model_card(build_facts(build_task("classification"))).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.license == "apache-2.0"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.7, "golden")
    assert yaml.safe_load(card.content.split("---")[1])["model-index"][0]["name"] == "mail-tiny"


def test_the_model_card_says_what_was_measured_checked_and_left_out() -> None:
    text = build_model_card(build_facts(build_task("classification"))).text
    for part in (
        "release 3",
        "0.700 [0.500, 0.900]",
        "m\\|odel",
        "It keeps 0.875 [0.800, 0.950] of the teacher's score.",
        "- answers_readable: passed (readable 1.0)",
        "| onnx | `onnx/model.onnx` | 90.0 MB | equal on 60 prompts.",
        "onnx-int8: It agrees on 0.9 only.",
        "the student answers from a confidence of 0.9100 (chosen on dev)",
        "5 answers of the teacher ($1.50)\nand 60 s of training, unknown together.",
        "restrict training with its answers",
        "40 golden items give wide intervals",
        "refund, delivery",
    ):
        assert part in text, part
    assert "secret text" not in text


@pytest.mark.parametrize("kind", ["generation", "tool_call", "nli"])
def test_every_kind_and_a_base_of_unknown_licence_have_a_card(kind: str, tmp_path: Path) -> None:
    facts = build_facts(build_task(kind), model=str(tmp_path))
    unknown = facts.metrics["distillation"] | {"training_s": None}
    card = build_model_card(replace(facts, routing=None, metrics={**facts.metrics, "distillation": unknown}))
    assert "a training of unknown length" in card.text
    assert isinstance(card.data, ModelCardData)
    assert card.data.license == "other"
    assert card.data.base_model is None
    assert "is not known here. Read it before you pass this model on." in card.text


def test_the_licence_of_a_folder_is_that_of_its_own_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA base.\n")
    assert find_base(str(tmp_path)) == (str(tmp_path), "mit")


@pytest.mark.parametrize("has_data", [False, True])
def test_the_dataset_card_has_counts_drop_reasons_and_quoted_terms(has_data: bool, tmp_path: Path) -> None:
    facts = build_facts(build_task("classification"))
    about = DatasetCardFacts(facts.task, "mail", facts.dataset, [TERMS], has_data)
    build_dataset_card(about).save(tmp_path / "README.md")
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.size_categories == ["n<1K"]
    for part in (
        "| all | 3 |",
        "| split train | 2 |",
        "| answered by people | 1 |",
        '| answer "refund" | 2 |',
        "7 candidates were filtered.",
        "| min_words | 2 |",
        "| too_short | 4 |",
        "> No \\| training. (Terms, <https://x.example/t>, read 2026-01-02)",
    ):
        assert part in card.text, part
    assert "| refused |" not in card.text
    assert ("distill export mail --dataset parquet" in card.text) != has_data
