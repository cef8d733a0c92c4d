"""A task whose answers are written, from its folder to its report: reasoning captured, kept and learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREDICTIONS
from tests.e2e.project import Project
from tests.support.kind_folder import write_kind_folder
from tests.support.provider import FakeProvider

STUDENT: dict[str, Any] = {
    "architecture": "causal_lm",
    "epochs": 1,
    "batch_size": 4,
    "max_tokens": 96,
    "answer_tokens": 32,
    "lora": {"rank": 4},
}
TASK = "a_math"


@pytest.mark.slow
def test_a_math_task_end_to_end(tmp_path: Path, small_smollm2: Path) -> None:
    """What the student writes is no matter here (tests/student/test_writing.py), so two layers of a model will do."""
    with FakeProvider([]) as provider:
        said = {"two": '{"reasoning": "2 + 2", "answer": 4}'}
        provider.answer = lambda seen: said.get(seen.text.split()[0], '{"reasoning": "6 * 7", "answer": "6 * 7"}')
        folder = write_kind_folder(
            tmp_path,
            "math",
            provider.url,
            reasoning=True,
            students={"tiny": STUDENT | {"model": str(small_smollm2)}},
            curation={"min_rows": 2, "validation_share": 0.3},
            evaluation={"bootstrap_samples": 100, "latency_items": 1},
        )
        slice_ = {"description": "d", "seeds": [f"two and {n}" for n in range(6)]}
        (folder.path / "slices" / "two.yaml").write_text(yaml.safe_dump(slice_))
        project = Project(tmp_path)
        ended = project.distill("run", TASK, "--json")
    assert ended.code == 0, ended.err
    assert ended.partitions["eval_report"] == ["tiny"]
    assert ended.json["teacher_calls"] == 2 + 6 + 3 + 3, "once for each prompt: draws default to 1"
    lake = project.lake
    completions = lake.read(TASK, "teacher_completions", "two", COMPLETIONS)[0]
    assert set(completions["reasoning"]) == {"2 + 2"}
    assert set(completions["answer_kind"]) == {"number"}
    dataset = lake.read(TASK, "filtered_dataset", None, DATASET)[0]
    targets = {row["messages"][-1]["content"] for row in dataset.iter_rows(named=True)}
    assert targets == {
        "Reasoning: 2 + 2\nAnswer: 4",
        "Reasoning: 6 * 7\nAnswer: 42",
        "Reasoning: It says so.\nAnswer: 42",
    }
    predictions = lake.read(TASK, "predictions", "tiny", PREDICTIONS)[0]
    assert set(predictions["system"]) == {"teacher", "base", "seed_only", "distilled"}
    teacher = predictions.filter((pl.col("system") == "teacher") & (pl.col("split") == "golden"))
    assert teacher["correct"].all()
    prompt = json.loads((lake.get_folder(TASK, "student_adapter", "tiny") / "prompt.json").read_text())
    assert prompt["prompt"] == "chat"
    assert "Write your reasoning after `Reasoning:`" in prompt["sample"]["prompt"]
    report = project.home / "reports" / TASK / "tiny"
    figures = json.loads((report / "metrics.json").read_text())
    assert figures["systems"]["teacher"]["score"]["value"] == 1
    assert figures["labels"] == []
    assert "By label" not in (report / "report.html").read_text()
    again = project.distill("run", TASK, "--json")
    assert again.json["runs"] == [], "nothing to do"
    assert again.json["teacher_calls"] == 0
