"""An unknown field at any depth is reported with the field that was probably meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from distill_dagster.config import Task
from distill_dagster.curation.filters.settings import FilterSettings
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks.rows import LabelledRow, SliceFile
from distill_dagster.tasks.unknown_fields import find_close_name, list_paths, suggest_field
from tests.support.task import merge_settings, reload_folder, write_small_task


@pytest.mark.parametrize(
    ("root", "location", "remedy"),
    [
        (Task, ("lables",), "Did you mean 'labels'?"),
        (Task, ("teacher", "maxTokens"), "Did you mean 'max_tokens'?"),
        (Task, ("teachers", "big", "few-shot"), "Did you mean 'few_shot'?"),
        (Task, ("teacher", "few_shot", "draw"), "Did you mean 'draws'?"),
        (Task, ("students", "one", "lora", "rang"), "Did you mean 'rank'?"),
        (Task, ("curation", "dedup", "near", "treshold"), "Did you mean 'threshold'?"),
        (Task, ("imagine", "teacher", "modell"), "Did you mean 'model'?"),
        (Task, ("tools", 3, "params"), "Did you mean 'parameters'?"),
        (FilterSettings, ("min_confidense",), "Did you mean 'min_confidence'?"),
        (FilterSettings, ("own", 0, "SQL"), "Did you mean 'sql'?"),
        (SliceFile, ("seeds", 4, "messages", 1, "contents"), "Did you mean 'content'?"),
        (LabelledRow, ("Label",), "Did you mean 'label'?"),
        # A field of another block, exactly or with a slip.
        (
            Task,
            ("learning_rate",),
            "Did you mean 'students.<name>.learning_rate' or 'students.<name>.then.learning_rate'?",
        ),
        (Task, ("top_logprob",), "Did you mean 'teacher.top_logprobs' or 'teachers.<name>.top_logprobs'?"),
        # A filter's setting that was written beside the filters, or at the top.
        (Task, ("curation", "min_confidence"), "Did you mean 'curation.filters.min_confidence'?"),
        (Task, ("min_judge",), "Did you mean 'curation.filters.min_judge'?"),
        (Task, ("students", "one", "rank"), "Did you mean 'students.one.lora.rank'?"),
        # Nothing is alike: the fields of a small block, or the page of a large one.
        (Task, ("budget", "euro"), "one of: usd, tokens, month_usd, month_tokens."),
        (LabelledRow, ("prompt",), "one of: text, messages, id, label, answer, reasoning, slice, axes, source."),
        (Task, ("colour",), "docs/task-yaml.md lists all fields"),
    ],
)
def test_the_field_that_was_meant_is_suggested(
    root: type[BaseModel], location: tuple[int | str, ...], remedy: str
) -> None:
    assert remedy in suggest_field(root, location)


def test_parts_of_a_location_that_are_no_field_are_passed_over() -> None:
    """Pydantic names validators and the members of a union as steps of a location."""
    near = ("curation", "dedup", "function-before[x]", "near", "NearDuplicateSpec", "treshold")
    assert suggest_field(Task, near) == "Did you mean 'threshold'?"


def test_every_path_ends_with_a_field_of_its_block() -> None:
    paths = list_paths(Task)
    assert len(set(paths)) == len(paths) > 150
    assert {"kind", "teacher.few_shot.draws", "students.<name>.lora.rank", "inbox.rules.matches"} <= set(paths)
    assert not [path for path in paths if ".." in path]


@pytest.mark.parametrize(
    ("name", "known", "close"),
    [
        ("Refunds", ["login", "refund"], "refund"),
        ("log-in", ["login", "refund"], "login"),
        ("返款", ["返金", "登录"], None),
        ("登錄失败", ["登录失败", "退款"], "登录失败"),
        ("Größe", ["grösse", "farbe"], "grösse"),
        ("weather", ["login", "refund"], None),
        ("-", ["login", "refund"], None),
    ],
)
def test_a_close_name_in_any_script(name: str, known: list[str], close: str | None) -> None:
    assert find_close_name(name, known) == close


def test_a_label_with_a_slip(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    path = folder.path / "golden.jsonl"
    path.write_text(path.read_text() + '{"id": "x", "text": "where is it", "label": "Delivry"}\n')
    [problem] = check_task_folder(reload_folder(folder))
    assert problem.remedy == "Did you mean 'delivery'? Use one of: refund, delivery, login."


def _write_setting(path: Path, change: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(path.read_text()), change), sort_keys=False))


@pytest.mark.parametrize(
    ("file", "change", "field", "remedy"),
    [
        ("task.yaml", {"instruction": "Sort."}, "instruction", "Did you mean 'instructions'?"),
        ("task.yaml", {"students": {"tiny": {"epoch": 1}}}, "students.tiny.epoch", "Did you mean 'epochs'?"),
        ("task.yaml", {"gate": {"teacher_minimum": 0.5}}, "gate.teacher_minimum", "Did you mean 'teacher_min'?"),
        (
            "task.yaml",
            {"curation": {"filters": {"min_agrement": 0.5}}},
            "curation.filters.min_agrement",
            "Did you mean 'min_agreement'?",
        ),
        (
            "task.yaml",
            {"curation": {"filters": {"repetition": {"top_3grm": 0.5}}}},
            "curation.filters.repetition.top_3grm",
            "Did you mean 'top_3_gram'?",
        ),
        ("slices/shop.yaml", {"targets": 3}, "targets", "Did you mean 'target'?"),
    ],
)
def test_a_file_with_an_unknown_field(
    file: str, change: dict[str, Any], field: str, remedy: str, tmp_path: Path
) -> None:
    folder = write_small_task(tmp_path)
    _write_setting(folder.path / file, change)
    [problem] = check_task_folder(reload_folder(folder))
    assert (problem.file, problem.field, problem.message) == (folder.path / file, field, "an unknown field.")
    assert problem.line is not None
    assert remedy in problem.remedy


def test_a_row_with_an_unknown_field(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    path = folder.path / "dev.jsonl"
    path.write_text(path.read_text() + '{"id": "x", "text": "a refund", "label": "refund", "slices": "shop"}\n')
    [problem] = check_task_folder(reload_folder(folder))
    assert (problem.field, problem.remedy) == ("slices", "Did you mean 'slice'?")
