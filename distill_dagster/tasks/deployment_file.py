"""Read `deployment.yaml`, which says which engines run this deployment and where its lake is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from distill_dagster.config.deployment import DeploymentSpec, LakeSpec, TeacherLimitsSpec
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tasks.unknown_fields import REFERENCE
from distill_dagster.tasks.yaml_files import convert_validation_error, find_line, read_yaml

DEPLOYMENT_FILE = "deployment.yaml"
DEPLOYMENT_VARIABLE = "DISTILL_DEPLOYMENT"
LAKE_VARIABLE = "DISTILL_LAKE_URL"
DEPLOYMENT_REFERENCE = "docs/deployment.md"


def find_deployment_file() -> Path | None:
    """The file that `DISTILL_DEPLOYMENT` names, or the one next to dagster.yaml, or None if there is none."""
    if named := os.environ.get(DEPLOYMENT_VARIABLE, "").strip():
        return Path(named).expanduser().resolve()
    path = PROJECT_FOLDER / DEPLOYMENT_FILE
    return path if path.exists() else None


def read_deployment() -> DeploymentSpec:
    """Read the deployment's settings. Environment variables win. Without a file all settings have their defaults.

    Raises:
        InputError: The file has a mistake, or `DISTILL_DEPLOYMENT` names no readable file.
        DistillError: `DISTILL_LAKE_URL` is no address of a lake.
    """
    path = find_deployment_file()
    spec = DeploymentSpec() if path is None else _read_file(path)
    if url := os.environ.get(LAKE_VARIABLE, "").strip():
        try:
            spec = spec.model_copy(update={"lake": LakeSpec.model_validate({**spec.lake.model_dump(), "url": url})})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise DistillError(f"{LAKE_VARIABLE} cannot be used: {message}. Fix the variable, or unset it.") from None
    return spec


def find_teacher_limits(model: str) -> TeacherLimitsSpec:
    """The limits of a teacher for the whole deployment. `model` is as in task.yaml. By default there are none."""
    return read_deployment().teachers.get(model, TeacherLimitsSpec())


def _read_file(path: Path) -> DeploymentSpec:
    problems: list[Problem] = []
    value, tree = read_yaml(path, problems)
    if not problems:
        try:
            return _resolve_paths(path, DeploymentSpec.model_validate(value if value is not None else {}))
        except ValidationError as error:
            problems = convert_validation_error(path, error, DeploymentSpec, lambda location: find_line(tree, location))
    raise InputError([replace(p, remedy=p.remedy.replace(REFERENCE, DEPLOYMENT_REFERENCE)) for p in problems])


def _resolve_paths(path: Path, spec: DeploymentSpec) -> DeploymentSpec:
    """Make the paths in a deployment file absolute: they are relative to the file."""
    if spec.runs.workspace is None:
        return spec
    workspace = str(path.parent / Path(spec.runs.workspace).expanduser())
    return spec.model_copy(update={"runs": spec.runs.model_copy(update={"workspace": workspace})})
