"""The reference of task.yaml and its JSON Schema: complete, current, and true for the files that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from distill_dagster.config import Task, TaskKind
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.curation.filters.settings import FilterSettings
from distill_dagster.pipeline.task_reference import (
    DOCS,
    REFERENCE_PAGE,
    SCHEMA_FILES,
    render_reference,
    render_reference_page,
)
from distill_dagster.pipeline.task_schema import SchemaFile, build_file_schema, render_file_schema
from distill_dagster.tasks import LabelledRow
from distill_dagster.tasks.rows import SliceFile
from distill_dagster.tasks.unknown_fields import list_paths
from tests.support.task import SLICES, TASK, merge_settings

TASKS = sorted((PROJECT_FOLDER / "data" / "tasks").iterdir())


def _list_models(annotation: Any, seen: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Every model that fields of a model lead to, by its name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.__name__ not in seen:
        seen[annotation.__name__] = annotation
        for field in annotation.model_fields.values():
            _list_models(field.annotation, seen)
    for part in get_args(annotation):
        _list_models(part, seen)
    return seen


def _list_all_models() -> dict[str, type[BaseModel]]:
    seen: dict[str, type[BaseModel]] = {}
    for root in (Task, FilterSettings, SliceFile, LabelledRow):
        _list_models(root, seen)
    return seen


def _find_errors(file: SchemaFile, value: Any) -> list[str]:
    """What the schema says about a value as an editor sees it: plain JSON."""
    validator = jsonschema.Draft202012Validator(build_file_schema(file))
    return [error.message for error in validator.iter_errors(json.loads(json.dumps(value, default=str)))]


def _read_yaml_blocks(page: Path) -> Iterator[dict[str, Any]]:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        value = yaml.safe_load(block) if block.count("\nteacher:") < 2 else None
        if isinstance(value, dict):
            yield value


@pytest.mark.parametrize("model", _list_all_models().values(), ids=lambda model: model.__name__)
def test_every_field_says_what_it_means(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        blocks = _list_models(field.annotation, {})
        assert field.description or any(block.__doc__ for block in blocks.values()), f"{model.__name__}.{name}"


def test_every_field_is_on_the_page() -> None:
    page = REFERENCE_PAGE.read_text(encoding="utf-8")
    tables: dict[str, str] = {}
    for heading, text in re.findall(r"^##+ (\S+)(?: \(\w+\))?\n(.*?)(?=^##|\Z)", page, flags=re.M | re.S):
        tables[heading] = tables.get(heading, "") + text  # a block of several kinds has a table for each
    also = {path: heading for heading, text in tables.items() for path in re.findall(r"`([^`]+)`[,.]", text)}
    missing = []
    parameters = [path for path in list_paths(Task) if re.match(r"curation\.filters\.(?!own\.)\w+\.", path)]
    assert len(parameters) > 40, "those of filters are in a table of their own"
    for path in sorted(set(list_paths(Task)) - set(parameters)):
        block, _, name = path.rpartition(".")
        block = block if block in tables or not block else also.get(block, block)
        if f"| `{name}` |" not in tables.get(block or "task.yaml", ""):
            missing.append(path)
    assert missing == []
    for name, field in FilterSettings.model_fields.items():
        assert f"| `{name}` |" in tables["curation.filters"], name
        for model in _list_models(field.annotation, {}).values():
            if name != "own":
                assert all(
                    f"[`{name}`](filters.md#{name})`.{one}`" in page for one in set(model.model_fields) - {"enabled"}
                )


def test_the_page_and_the_schemas_are_current() -> None:
    remedy = "run `python -m distill_dagster.pipeline.task_reference`"
    assert REFERENCE_PAGE.read_text(encoding="utf-8") == render_reference_page(), remedy
    for file, name in SCHEMA_FILES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == render_file_schema(file), remedy


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    text = render_reference()
    headings = re.findall(r"^##+ (.*)$", text, flags=re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links
    assert links <= anchors
    filters = (DOCS / "filters.md").read_text(encoding="utf-8")
    assert all(f"### {name}\n" in filters for name in re.findall(r"\(filters\.md#(\w+)\)", text))


@pytest.mark.parametrize("file", get_args(SchemaFile))
def test_a_schema_is_valid_and_refers_to_its_own_blocks(file: SchemaFile) -> None:
    schema = build_file_schema(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    found = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)))
    assert found == set(schema["$defs"])


@pytest.mark.parametrize("folder", TASKS, ids=lambda folder: folder.name)
def test_the_bundled_tasks_pass(folder: Path) -> None:
    assert _find_errors("task", yaml.safe_load((folder / "task.yaml").read_text(encoding="utf-8"))) == []
    slices = sorted((folder / "slices").glob("*.yaml"))
    assert slices
    for path in slices:
        assert _find_errors("slice", yaml.safe_load(path.read_text(encoding="utf-8"))) == [], path.name
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert _find_errors("row", json.loads(line)) == [], path.name


def test_what_the_documentation_shows_passes() -> None:
    settings = slices = 0
    for page in [*sorted(DOCS.glob("*.md")), PROJECT_FOLDER / "README.md"]:
        for block in _read_yaml_blocks(page):
            if "seeds" in block:
                slices += 1
                assert _find_errors("slice", block) == [], page.name
            elif any("/" in name for name in block.get("teachers", {})):
                continue  # deployment.yaml has models there, task.yaml has names
            elif set(block) <= set(Task.model_fields):
                settings += 1
                assert _find_errors("task", merge_settings(TASK, block)) == [], page.name
    assert settings > 20
    assert slices > 1


@pytest.mark.parametrize("change", [{}, *({"kind": kind} for kind in get_args(TaskKind))])
def test_a_small_task_passes(change: dict[str, Any]) -> None:
    assert _find_errors("task", merge_settings(TASK, change)) == []
    assert all(_find_errors("slice", value) == [] for value in SLICES.values())


SHORT_FORMS: list[dict[str, Any]] = [
    {"teacher": "openai/gpt-4o-mini"},
    {"teachers": {"small": "openai/a", "large": {"model": "openai/b"}}},
    {"imagine": {"teacher": "openai/a"}},
    {"curation": {"dedup": {"near": False, "semantic": True}, "decontamination": False}},
    {"curation": {"filters": {"echo": True, "language": ["en"], "pii": "mask", "answer_words": 20, "prose": None}}},
    {"refresh": {"cron": None}, "gate": {"teacher_over_base": None}},
    {"curation": {"balance": {"caps": {"label": 10, "slice": {"shop": 5}}}}},
]


@pytest.mark.parametrize("change", SHORT_FORMS, ids=str)
def test_short_forms_pass_and_mean_what_the_models_read(change: dict[str, Any]) -> None:
    task = {name: value for name, value in TASK.items() if name != "teacher" or "teachers" not in change} | change
    Task.model_validate(task)
    FilterSettings.model_validate(task.get("curation", {}).get("filters", {}))
    assert _find_errors("task", task) == []


MISTAKES: list[dict[str, Any]] = [
    {"lables": []},
    {"teacher": {"model": "openai/a", "few_shot": {"draw": 2}}},
    {"teacher": {"model": "openai/a", "temperature": 3}},
    {"teacher": {}},
    {"students": {}},
    {"students": {"one": {"model": "a", "architecture": "encodr"}}},
    {"curation": {"filters": {"repetitions": True}}},
    {"curation": {"filters": {"repetition": {"top_3": 0.5}}}},
    {"curation": {"dedup": {"near": "off"}}},
    {"budget": {"usd": -1}},
]


@pytest.mark.parametrize("change", MISTAKES, ids=str)
def test_mistakes_are_marked(change: dict[str, Any]) -> None:
    assert _find_errors("task", TASK | change)


def test_a_task_needs_a_teacher_and_a_row_a_text() -> None:
    assert _find_errors("task", {name: value for name, value in TASK.items() if name != "teacher"})
    assert _find_errors("row", {"id": "1"})
    assert not _find_errors("row", {"id": 1, "messages": [{"role": "user", "content": "Hello"}]})
    assert _find_errors("slice", {"description": "The shop.", "seeds": [{"id": "1"}]})
