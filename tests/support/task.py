"""A small valid task folder, and the doors that a stage needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from distill_dagster.config import TeacherSpec
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.gate import PASSED_VERSION
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.templates import Templates, get_template_names
from distill_dagster.tables.lake import ArtifactRecord, Lake
from distill_dagster.tables.schemas import PREDICTIONS
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.asking.ask import Asker
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import Endpoint, resolve_endpoint

LABELS = ["refund", "delivery", "login"]
TEXTS = {
    "refund": ["please refund me", "a refund is due", "no refund came", "refund the second charge"],
    "delivery": ["the delivery is late", "delivery to Spain?", "where is my delivery", "delivery left outside"],
    "login": ["login fails", "the login page loops", "my login is rejected", "login on a new phone"],
}

TASK: dict[str, Any] = {
    "kind": "classification",
    "description": "Sort messages to a shop.",
    "labels": [{"name": name, "description": f"is about {name}"} for name in LABELS],
    "teacher": {
        "model": "openai/fake",
        "api": "text",
        "soft_labels": "logprobs",
        "max_tokens": 4,
        "few_shot": {"per_label": 1, "draws": 2},
        "concurrency": 4,
        "max_retries": 1,
        "timeout_s": 300,
        "terms": {"acknowledged": True},  # `openai/…` restricts; what a test is not about must not stop it
    },
    "students": {"tiny": {"model": "all-minilm-l6-v2", "architecture": "encoder"}},
    "gate": {"teacher_over_base": None},  # no student's model is loaded where a test is not about it
}
SLICES: dict[str, dict[str, Any]] = {
    "shop": {
        "description": "The shop.",
        "seeds": [
            "I want a refund",
            "a delivery arrived broken",
            {"text": "login asks twice", "target_label": "login"},
        ],
    },
    "web": {"description": "The web page.", "seeds": ["can I refund this", "the delivery form", "a login by mail"]},
}


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def build_labelled_rows(prefix: str, words: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{prefix}-{label}-{n}", "text": f"{words} {text}", "label": label}
        for label, texts in TEXTS.items()
        for n, text in enumerate(texts[:count])
    ]


def merge_settings(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes`, mappings within mappings merged; None removes a key."""
    out = deepcopy(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge_settings(out[key], value)
        else:
            out[key] = value
    return out


def write_small_task(tmp_path: Path, name: str = "shop_mail", **changes: Any) -> TaskFolder:
    """Write a valid task folder; `changes` go into task.yaml. Three labels, two slices of three seeds."""
    path = tmp_path / "tasks" / name
    (path / "slices").mkdir(parents=True)
    (path / "task.yaml").write_text(yaml.safe_dump(merge_settings(TASK, changes), sort_keys=False))
    for key, slice_ in SLICES.items():
        (path / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(slice_, sort_keys=False))
    (path / "examples.jsonl").write_text(jsonl(build_labelled_rows("e", "example:", 3)))
    (path / "dev.jsonl").write_text(jsonl(build_labelled_rows("d", "tried:", 2)))
    (path / "golden.jsonl").write_text(jsonl(build_labelled_rows("g", "held out:", 2)))
    return build_task_folder(path)


def reload_folder(folder: TaskFolder) -> TaskFolder:
    """The same folder, read afresh."""
    return build_task_folder(folder.path, folder.accepted)


@contextmanager
def _endpoint(spec: TeacherSpec) -> Iterator[Endpoint]:
    yield resolve_endpoint(spec)


def build_stage_context(folder: TaskFolder, home: Path) -> StageContext:
    """The doors of a stage, all below `home`. The caller closes the store."""
    store = CompletionStore.open_in_folder(home / "store")
    lake = Lake(home / "lake", home / "reports")
    training = home / "training"
    return StageContext(
        folder, lake, store, home / "models", home / "reports", _endpoint, training=training, releases=home / "releases"
    )


def pass_gate(env: StageContext) -> None:
    """What is left of a gate that the teacher passed, with today's settings, for tests that ask slices alone."""
    inputs = StageInputs(replace(env, folder=reload_folder(env.folder)), "teacher_gate", None)
    inputs.note_source("teacher_settings")
    record = ArtifactRecord("teacher_gate", None, PASSED_VERSION, inputs.stage.code_version, inputs.versions)
    env.lake.write(env.task_name, pl.DataFrame(schema=PREDICTIONS), record)


def build_request_builder(folder: TaskFolder) -> RequestBuilder:
    task = folder.task
    context = build_prompt_context(folder.examples, collect_held_out_keys(folder.golden, folder.dev))
    names = get_template_names(task.kind, task.reasoning, task.teacher.has_stated_soft_labels)
    templates = Templates(folder.read_templates(), names)
    return RequestBuilder(task, templates, read_example_pool(context), resolve_endpoint(task.teacher))


def build_asker(folder: TaskFolder, store: CompletionStore) -> Asker:
    return Asker(build_request_builder(folder), store)
