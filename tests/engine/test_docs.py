"""What the pages in docs/ show as YAML is valid as it stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from distill_dagster.config.deployment import DeploymentSpec
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import Slice
from tests.support.task import merge_settings, reload_folder, write_small_task

PARTS = {"imagine.md": {"slice", "imagine", "curation"}, "judge.md": {"judge", "curation", "evaluation"}}


def blocks(page: str) -> list[dict[str, Any]]:
    text = (PROJECT_FOLDER / "docs" / page).read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]


def list_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a model and of the models in it, as a path. Names that a user chooses are `MODEL`."""
    for name, field in model.model_fields.items():
        inner = next((one for one in [field.annotation, *get_args(field.annotation)] if is_model(one)), None)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            is_named = get_origin(field.annotation) is dict
            yield from list_fields(inner, f"{prefix}{name}.{'MODEL.' if is_named else ''}")


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_the_page_on_deployment_has_every_field_and_its_yaml_is_valid() -> None:
    text = (PROJECT_FOLDER / "docs" / "deployment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    assert documented == set(list_fields(DeploymentSpec))
    [block] = blocks("deployment.md")
    assert DeploymentSpec.model_validate(block).runs.at_once == 20


@pytest.mark.parametrize("page", PARTS)
def test_the_yaml_of_a_page_is_valid(page: str, tmp_path: Path) -> None:
    found: set[str] = set()
    changes: dict[str, Any] = {}
    for block in blocks(page):
        if "seeds" in block:
            assert Slice.model_validate(block).target == 60
            found.add("slice")
            continue
        found |= set(block)
        changes = merge_settings(changes, block)
    assert found == PARTS[page]
    folder = write_small_task(tmp_path, **changes)
    assert [problem for problem in check_task_folder(reload_folder(folder)) if problem.severity == "error"] == []


@pytest.mark.parametrize(
    "page", ["budget.md", "teachers.md", "own-teachers.md", "curation.md", "students.md", "serving.md", "release.md"]
)
def test_every_block_of_a_page_on_teachers_is_valid(page: str, tmp_path: Path) -> None:
    found = blocks(page)
    assert found
    for number, block in enumerate(found):
        if any("/" in name for name in block.get("teachers", {})):  # deployment.yaml has models, task.yaml has names
            assert DeploymentSpec.model_validate(block).teachers
            continue
        if block.get("reasoning"):  # the small task's teacher and examples are without
            block = merge_settings(block, {"teacher": {"soft_labels": "verbalized", "api": "chat"}})
        folder = write_small_task(tmp_path / str(number), **block)
        if "teachers" in block:
            path = folder.path / "task.yaml"
            task = yaml.safe_load(path.read_text())
            del task["teacher"]
            path.write_text(yaml.safe_dump(task))
        problems = [str(p) for p in check_task_folder(reload_folder(folder)) if p.severity == "error"]
        assert [problem for problem in problems if ".jsonl" not in problem] == []


def test_the_teachers_of_the_readme_are_valid(tmp_path: Path) -> None:
    text = (PROJECT_FOLDER / "README.md").read_text(encoding="utf-8")
    section = text.split("## Use your own teacher")[1].split("## Use your own student")[0]
    first, budget = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    teachers = [yaml.safe_load(one) for one in re.findall(r"^teacher: .*?(?=^teacher:|\Z)", first, re.M | re.S)]
    assert len(teachers) == 10
    for number, block in enumerate([*teachers, yaml.safe_load(budget)]):
        folder = write_small_task(tmp_path / str(number))
        path = folder.path / "task.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | block))
        _ = reload_folder(folder).task


def test_the_readme_shows_what_the_demo_measured() -> None:
    """The first table of the README is the result file of `benchmarks/demo.py`, rounded."""
    figures = json.loads((PROJECT_FOLDER / "benchmarks" / "results" / "demo.json").read_text())["figures"]
    measured = {(row["system"], row["student"]): row for row in figures["systems"]}
    names = {
        "teacher": ("teacher", None),
        "linear probe": ("linear_probe", None),
        "class centroids": ("centroid", None),
        **{f"distilled `{student}`": ("distilled", student) for student in ("minilm", "smollm2")},
        **{f"`{student}`, human labels only": ("seed_only", student) for student in ("minilm", "smollm2")},
        **{f"`{student}`, untrained": ("base", student) for student in ("minilm", "smollm2")},
    }
    text = (PROJECT_FOLDER / "README.md").read_text(encoding="utf-8").partition("| system | accuracy")[2]
    lines = text.partition("\n\n")[0].splitlines()[2:]
    shown = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.replace("**", "").strip("|").split("|"))
        shown[next(key for start, key in names.items() if name.startswith(start))] = cells
    assert shown.keys() == measured.keys()
    for key, (accuracy, latency, size, usd) in shown.items():
        row = measured[key]
        low, high = row["interval"]
        assert accuracy == f"{row['accuracy']:.2f} [{low:.2f}, {high:.2f}]"
        assert latency == (f"{1000 * row['latency_s']:.0f} ms" if row["latency_s"] else "not recorded")
        assert size == (f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else "–")
        assert float(usd.removeprefix("$")) == float(f"{row['usd_per_1k']:.{3 if key[0] == 'teacher' else 1}g}")
    taken = figures["distillation"]["minilm"]
    assert f"distillation took ${taken['usd']:.2f}" in " ".join(text.split())
    assert f"after about {100 * math.ceil(taken['break_even_requests'] / 100):,} requests" in " ".join(text.split())
