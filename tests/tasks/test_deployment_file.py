"""`deployment.yaml`: defaults, which file is read, what the environment overrides, and how mistakes are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dagster.config.deployment import DeploymentSpec
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.tasks import deployment_file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(deployment_file, "PROJECT_FOLDER", tmp_path)
    for name in (deployment_file.DEPLOYMENT_VARIABLE, deployment_file.LAKE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "deployment.yaml"


def test_without_a_file_one_machine_does_everything(path: Path) -> None:
    spec = deployment_file.read_deployment()
    assert spec == DeploymentSpec()
    assert (spec.runs.launch, spec.ray, spec.lake.url) == (False, None, None)


def test_the_file_next_to_dagster_yaml_is_read(path: Path) -> None:
    path.write_text("runs: {launch: true}\nray: {stages: true}\nlake: {url: s3://bucket/a/b}\n")
    spec = deployment_file.read_deployment()
    assert spec.runs.launch
    assert spec.ray is not None
    assert (spec.ray.address, spec.ray.runs, spec.ray.stages) == ("auto", False, True)
    assert spec.lake.url == "s3://bucket/a/b"


def test_variables_win(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("runs: {launch: true}")
    other = tmp_path / "other.yaml"
    other.write_text("lake: {url: s3://bucket/file}")
    monkeypatch.setenv(deployment_file.DEPLOYMENT_VARIABLE, str(other))
    monkeypatch.setenv(deployment_file.LAKE_VARIABLE, "s3://bucket/variable")
    spec = deployment_file.read_deployment()
    assert (spec.runs.launch, spec.lake.url) == (False, "s3://bucket/variable")


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("runs:\n  lunch: true", 2, "runs.lunch", "Did you mean 'launch'?"),
        ("runs:\n  launch: perhaps", 2, "runs.launch", "docs/deployment.md"),
        ("ray: {}\nlake:\n  url: s3://key:hush@bucket/x", 3, "lake.url", "s3://BUCKET/PREFIX"),
        ("lake: {url: /tmp/lake}", 1, "lake.url", "s3://BUCKET/PREFIX"),
        ("runs: {", 1, None, "Fix the YAML"),
    ],
)
def test_a_mistake_names_file_line_and_field(path: Path, text: str, line: int, field: str | None, words: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        deployment_file.read_deployment()
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.field) == (path, line, field)
    assert words in str(problem)
    assert "hush" not in str(problem)


def test_a_missing_file_and_a_wrong_variable_are_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deployment_file.LAKE_VARIABLE, "https://bucket")
    with pytest.raises(DistillError, match=r"DISTILL_LAKE_URL cannot be used: .* s3://BUCKET/PREFIX"):
        deployment_file.read_deployment()
    monkeypatch.setenv(deployment_file.DEPLOYMENT_VARIABLE, "/nowhere/deployment.yaml")
    with pytest.raises(InputError, match="the file is missing"):
        deployment_file.read_deployment()
