"""Task folders of every kind: valid ones pass, and each mistake names its file, line, field and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.core.errors import Problem
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder
from tests.support.kind_folder import write_kind_folder
from tests.support.kinds import KINDS
from tests.support.task import merge_settings

Change = Callable[[Path], object]


def settings(**changes: Any) -> Change:
    def do(path: Path) -> None:
        file = path / "task.yaml"
        file.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(file.read_text()), changes), sort_keys=False))

    return do


def slice_of(**fields: Any) -> Change:
    text = yaml.safe_dump({"description": "d", "seeds": ["a text"]} | fields, sort_keys=False)
    return lambda path: (path / "slices" / "one.yaml").write_text(text)


def line(file: str, **fields: Any) -> Change:
    """Put one more line behind the three that are there."""

    def do(path: Path) -> None:
        with (path / f"{file}.jsonl").open("a") as rows:
            rows.write(json.dumps({"id": "x", "text": "x text"} | fields) + "\n")

    return do


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasoning", [False, True])
def test_a_folder_of_each_kind(tmp_path: Path, kind: str, reasoning: bool) -> None:
    folder = write_kind_folder(tmp_path, kind, "http://127.0.0.1:9", reasoning)
    assert [str(p) for p in check_task_folder(folder)] == []
    written = reasoning or kind not in ("classification", "nli")
    assert folder.task.teacher.max_tokens == (1024 if written else 16)
    assert folder.task.teacher.few_shot.draws == (1 if written else 3)


MISTAKES: list[tuple[str, Change, str, str | None, str, str]] = [
    ("math", settings(labels=[{"name": "a", "description": "a"}] * 2), "task.yaml", "labels", "has no labels", "Fix"),
    ("classification", settings(labels=None), "task.yaml", "labels", "field required", "Add it"),
    ("extraction", settings(answer_schema=None), "task.yaml", "answer_schema", "needs the JSON schema", "Add it"),
    ("extraction", settings(answer_schema={"type": "array"}), "task.yaml", "answer_schema", "type: object", "Fix"),
    (
        "extraction",
        settings(answer_schema={"properties": {"a": {"$ref": "http://x/y"}}}),
        "task.yaml",
        "answer_schema",
        "points outside the schema",
        "Fix",
    ),
    ("math", settings(answer_schema={"type": "object"}), "task.yaml", "answer_schema", "for kind extraction", "Fix"),
    ("tool_call", settings(tools=None), "task.yaml", "tools", "needs the tools", "Add it"),
    ("math", settings(tools=[{"name": "a", "description": "a"}]), "task.yaml", "tools", "for kind tool_call", "Fix"),
    ("math", settings(answer={"choices": True}), "task.yaml", "answer", "for kind qa only", "Fix"),
    ("math", settings(answer={"pattern": "is (.*)"}), "task.yaml", "answer.pattern", "a group", "Fix"),
    ("math", settings(answer={"pattern": "(?=a)(?P<answer>b)"}), "task.yaml", "answer.pattern", "look-around", "Fix"),
    ("math", settings(teacher={"soft_labels": "logprobs"}), "task.yaml", "teacher", "a kind with labels", "Fix"),
    (
        "math",
        settings(teacher={"calibration": "examples", "few_shot": {"draws": 2}}),
        "task.yaml",
        "teacher",
        "calibration is for kinds with labels",
        "Fix",
    ),
    (
        "nli",
        settings(teacher={"calibration": "examples", "few_shot": {"draws": 1}}),
        "task.yaml",
        "teacher",
        "several",
        "Fix",
    ),
    ("math", settings(teacher={"samples": 3}), "task.yaml", "teacher", "a temperature above 0", "Fix"),
    (
        "math",
        settings(students={"tiny": {"architecture": "encoder"}}),
        "task.yaml",
        "students.tiny",
        "chooses among labels",
        "Fix",
    ),
    ("math", line("golden", label="7"), "golden.jsonl", "label", "has no 'label'", "Write 'answer'"),
    ("nli", line("golden", answer="neutral"), "golden.jsonl", "answer", "has no 'answer'", "Write 'label'"),
    ("math", line("golden"), "golden.jsonl", "answer", "the answer is missing", "Add it"),
    ("math", line("golden", answer="many"), "golden.jsonl", "answer", "not a number", "kind math"),
    (
        "extraction",
        line("dev", answer={"item": "a"}),
        "dev.jsonl",
        "answer",
        "'count' is a required",
        "kind extraction",
    ),
    (
        "tool_call",
        line("dev", answer=[{"name": "x"}]),
        "dev.jsonl",
        "answer",
        "not one of the task's tools",
        "tool_call",
    ),
    (
        "math",
        slice_of(seeds=[{"text": "a", "reference": "x"}]),
        "one.yaml",
        "seeds.0.reference",
        "no number",
        "kind math",
    ),
    (
        "math",
        slice_of(seeds=[{"text": "a", "target_label": "x"}]),
        "one.yaml",
        "seeds.0.target_label",
        "no labels",
        "Remove it",
    ),
    ("nli", slice_of(refusal="wanted"), "one.yaml", "refusal", "a refusal is not a label", "Remove it"),
    ("math", slice_of(refusal="maybe"), "one.yaml", "refusal", "'wanted'", "Fix"),
    (
        "math",
        slice_of(seeds=[{"messages": [{"role": "user", "content": "a"}]}]),
        "one.yaml",
        "seeds.0.messages",
        "no conversations",
        "as `text`",
    ),
    (
        "conversation",
        slice_of(seeds=[{"messages": [{"role": "assistant", "content": "a"}], "text": "a"}]),
        "one.yaml",
        "seeds.0.messages",
        "the last turn must be the user's",
        "Fix",
    ),
]


@pytest.mark.parametrize(("kind", "change", "file", "field", "message", "remedy"), MISTAKES)
def test_mistakes(
    tmp_path: Path, kind: str, change: Change, file: str, field: str | None, message: str, remedy: str
) -> None:
    folder = write_kind_folder(tmp_path, kind, "http://127.0.0.1:9")
    change(folder.path)
    found = [p for p in check_task_folder(TaskFolder(folder.path)) if p.severity == "error"]
    assert found, "the mistake was not seen"
    one: Problem = found[0]
    assert (one.file.name, one.field) == (file, field)
    assert message in one.message
    assert remedy in one.remedy
    if file.endswith(".jsonl"):
        assert one.line == len((folder.path / file).read_text().splitlines())
    elif field != "students":
        assert one.line is not None


def test_examples_need_reasoning_if_the_task_asks_for_it(tmp_path: Path) -> None:
    folder = write_kind_folder(tmp_path, "math", "http://127.0.0.1:9", reasoning=True)
    line("examples", answer=3)(folder.path)
    [problem] = check_task_folder(TaskFolder(folder.path))
    assert (problem.field, problem.line) == ("reasoning", 4)


def test_a_person_may_answer_with_a_refusal(tmp_path: Path) -> None:
    folder = write_kind_folder(tmp_path, "generation", "http://127.0.0.1:9")
    line("golden", answer={"refusal": "I cannot help with that."})(folder.path)
    assert check_task_folder(TaskFolder(folder.path)) == []


def test_answers_are_read_in_one_form(tmp_path: Path) -> None:
    """The answers "3.0" and 3 are equal, so rewriting one as the other asks no teacher again."""
    folder = write_kind_folder(tmp_path, "math", "http://127.0.0.1:9")
    line("golden", answer="6 / 2")(folder.path)
    first = TaskFolder(folder.path)
    assert first.golden[-1].answer == 3
    text = (folder.path / "golden.jsonl").read_text()
    (folder.path / "golden.jsonl").write_text(text.replace('"6 / 2"', "3.0"))
    assert compute_source_version(TaskFolder(folder.path), "golden_set") == compute_source_version(first, "golden_set")


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"reasoning": True}, {"teacher_settings", "curation_settings", "student_settings", "evaluation_settings"}),
        (
            {"answer": {"tolerance": 0.1}},
            {"teacher_settings", "curation_settings", "student_settings", "evaluation_settings"},
        ),
        ({"teacher": {"samples": 2, "temperature": 1}}, {"teacher_settings"}),
        ({"teacher": {"response_format": "prompt"}}, {"teacher_settings"}),
        ({"students": {"tiny": {"answer_tokens": 10}}}, {"student_settings"}),
    ],
)
def test_a_setting_reaches_what_reads_it(tmp_path: Path, change: dict[str, Any], moved: set[str]) -> None:
    folder = write_kind_folder(tmp_path, "math", "http://127.0.0.1:9")
    names = ["teacher_settings", "curation_settings", "student_settings", "evaluation_settings"]

    def versions() -> dict[str, str]:
        fresh = TaskFolder(folder.path)
        return {n: compute_source_version(fresh, n, "tiny" if n == "student_settings" else None) for n in names}

    before = versions()
    settings(**change)(folder.path)
    after = versions()
    assert {name for name in names if before[name] != after[name]} == moved
