"""A small task folder of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.tasks import TaskFolder
from tests.support.kinds import ANSWERS, EXTRA
from tests.support.task import jsonl, merge_settings

TEACHER: dict[str, Any] = {
    "model": "openai/fake",
    "terms": {"acknowledged": True},
    "few_shot": {"per_label": 2},
    "concurrency": 2,
    "max_retries": 0,
    "timeout_s": 120,
}


def write_kind_folder(tmp_path: Path, kind: str, url: str, reasoning: bool = False, **changes: Any) -> TaskFolder:
    """Two slices of two seeds, and three rows in each labelled file, all with the kind's answer."""
    path = tmp_path / "tasks" / f"a_{kind}"
    (path / "slices").mkdir(parents=True)
    base: dict[str, Any] = {
        "kind": kind,
        "description": "d",
        "reasoning": reasoning,
        "teacher": TEACHER | {"api_base": url},
        "gate": {"teacher_over_base": None},
        "students": {"tiny": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}},
    }
    (path / "task.yaml").write_text(
        yaml.safe_dump(merge_settings(base | EXTRA.get(kind, {}), changes), sort_keys=False)
    )
    for key in ("one", "two"):
        slice_ = {"description": f"The {key}.", "seeds": [f"{key} first text", f"{key} second text"]}
        (path / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(slice_))
    name = "label" if kind in ("classification", "nli") else "answer"
    for file in ("examples", "dev", "golden"):
        rows = [{"id": f"{file}{n}", "text": f"{file} text {n}", name: ANSWERS[kind]} for n in range(3)]
        if name == "label" and file == "examples":
            others = {"classification": ["delivery"], "nli": ["entailment", "contradiction"]}[kind]
            rows += [
                row | {"id": f"{row['id']}-{o}", "text": f"{o} {row['text']}", "label": o}
                for o in others
                for row in rows
            ]
        if reasoning and file == "examples":
            rows = [row | {"reasoning": "It says so."} for row in rows]
        (path / f"{file}.jsonl").write_text(jsonl(rows))
    return build_task_folder(path)
