"""`distill copy`: another task folder with one of the teachers or with other settings, whole or not at all."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from distill_dagster.cli import app
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.tasks import TaskFolder
from tests.support.task import TEXTS, jsonl, write_small_task

TEACHERS = """\
# the recording first
teachers:
  recorded: {model: replay/log, terms: {acknowledged: true}}
  # the small one
  small:
    model: embedded/smollm2-135m-instruct
    few_shot: {per_label: 1}
cascade: {}
"""
IMAGINED = {"kind": "prompt", "text": "the parcel never came", "method": "axes", "teacher": "m"}


class Place:
    """A project with one task: two teachers, a recording, imagined and accepted prompts, a hidden file."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root=root / "home", tasks=root / "tasks")
        self.environment = {"DISTILL_HOME": str(self.home.root), "DISTILL_TASKS": str(self.home.tasks)}
        self.folder = write_small_task(root, teacher=None)
        task = self.folder.path / "task.yaml"
        task.write_text(f"# Mail to a shop.\n{task.read_text()}{TEACHERS}")
        texts = [text for group in TEXTS.values() for text in group]
        self.write("recorded/log.jsonl", jsonl([{"text": text, "label": "refund"} for text in texts]))
        self.write("imagined/web.jsonl", jsonl([IMAGINED]))
        self.write(".notes", "mine")
        accepted = {"text": "the form is gone", "source": "log", "batch": "b", "accepted_at": "2026-01-01T00:00:00"}
        self.accepted = self.home.accepted / self.folder.name
        self.accepted.mkdir(parents=True)
        (self.accepted / "web.jsonl").write_text(jsonl([accepted]))

    def write(self, name: str, content: str) -> None:
        path = self.folder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)

    def copy(self, *arguments: str) -> Result:
        command = ["copy", self.folder.name, *arguments]
        return CliRunner().invoke(app, command, env=self.environment, catch_exceptions=False)

    def open(self, name: str) -> TaskFolder:
        return open_task(self.home.tasks, name, self.home.accepted)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_the_same_task_under_another_name(place: Place) -> None:
    ended = place.copy("second")
    assert ended.exit_code == 0, ended.output
    assert "Teacher: recorded, small." in ended.output
    assert "distill run second" in ended.output
    new = place.open("second")
    assert list_files(new.path) == list_files(place.folder.path) - {".notes"}
    assert (new.path / "task.yaml").read_bytes() == (place.folder.path / "task.yaml").read_bytes()
    before, after = place.open(place.folder.name).read_slice("web"), new.read_slice("web")
    assert after == before
    assert [len(part) for part in (after.seeds, after.shipped, after.accepted)] == [3, 1, 1]
    checked = CliRunner().invoke(app, ["check", "second"], env=place.environment)
    assert "0 errors, 0 warnings" in checked.output


def test_one_teacher_without_the_recording_and_without_imagined_prompts(place: Place) -> None:
    draws = ("--set", "teacher.few_shot.draws=2", "--set", "teacher.calibration=none")
    ended = place.copy("small_only", "--teacher", "small", "--no-imagined", *draws)
    assert ended.exit_code == 0, ended.output
    new = place.open("small_only")
    assert new.task.teachers == {}
    assert (new.task.teacher.model, new.task.teacher.few_shot.draws) == ("embedded/smollm2-135m-instruct", 2)
    assert not (new.path / "recorded").exists()
    assert not (new.path / "imagined").exists()
    text = (new.path / "task.yaml").read_text()
    assert "# Mail to a shop." in text
    assert "# the small one" in text
    assert "recording" not in text


def test_a_replay_teacher_keeps_its_recording(place: Place) -> None:
    assert place.copy("replayed", "--teacher", "recorded").exit_code == 0
    assert (place.home.tasks / "replayed" / "recorded" / "log.jsonl").is_file()


def test_json_is_one_object(place: Place) -> None:
    ended = place.copy("second", "--json")
    assert json.loads(ended.stdout) == {"task": "second", "copied_from": place.folder.name, "problems": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Second",), "cannot be a task name"),
        (("shop_mail",), "there is a task of this name"),
        (("second", "--teacher", "large"), "no teacher 'large'. Known: recorded, small."),
        (("second", "--set", "teachers.small.few_shot.drawz=1"), "Did you mean 'draws'?"),
        (("second", "--set", "curation={filters: {min_wordz: 1}}"), "min_wordz"),
        (("second", "--set", "kind.of=1"), "kind is not a mapping of fields"),
        (("second", "--set", "kind"), "--set kind names no field"),
        (("second", "--set", "item=[1"), "the value is not YAML"),
    ],
)
def test_a_copy_that_cannot_be_leaves_nothing(place: Place, arguments: tuple[str, ...], message: str) -> None:
    before = list_files(place.home.tasks) | list_files(place.home.accepted)
    ended = place.copy(*arguments)
    assert ended.exit_code != 0
    assert message in ended.output
    assert list_files(place.home.tasks) | list_files(place.home.accepted) == before
    assert sorted(path.name for path in place.home.tasks.iterdir()) == [place.folder.name]


def test_prompts_of_an_earlier_task_do_not_become_the_copys(place: Place) -> None:
    old = place.home.accepted / "second" / "web.jsonl"
    old.parent.mkdir()
    old.write_text("{}\n")
    ended = place.copy("second")
    assert ended.exit_code != 0
    assert "accepted prompts of an earlier task" in ended.output
    assert old.read_text() == "{}\n"
    assert not (place.home.tasks / "second").exists()


def test_a_mistake_in_the_task_is_named_before_anything_is_copied(place: Place) -> None:
    place.write("task.yaml", "kind: [")
    ended = place.copy("second")
    assert ended.exit_code != 0
    assert f"{place.folder.path}/task.yaml" in ended.output
    assert not (place.home.tasks / "second").exists()


def test_comments_of_the_settings_stay(place: Place) -> None:
    assert place.copy("second", "--set", "gate.teacher_min=0.5").exit_code == 0
    text = (place.home.tasks / "second" / "task.yaml").read_text()
    assert yaml.safe_load(text)["gate"] == {"teacher_over_base": None, "teacher_min": 0.5}
    assert "# the recording first" in text


def test_the_demo_with_the_embedded_teacher_copies_the_bundled_task(tmp_path: Path) -> None:
    bundled = PROJECT_FOLDER / "data" / "tasks" / "support_triage"
    tasks = tmp_path / "tasks"
    shutil.copytree(bundled, tasks / bundled.name)
    command = ["make", "-n", "demo", "TEACHER=embedded", f"DISTILL_TASKS={tasks}"]
    shown = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, check=True).stdout
    [copying] = re.findall(r"distill (copy .*)", shown)
    environment = {"DISTILL_HOME": str(tmp_path / "home"), "DISTILL_TASKS": str(tasks)}
    ended = CliRunner().invoke(app, shlex.split(copying), env=environment, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert "distill run support_triage_embedded --student minilm --student smollm2" in shown
    new = open_task(tasks, "support_triage_embedded", tmp_path / "home" / "accepted")
    assert new.task.teacher.model == "embedded/smollm2-135m-instruct"
    assert (new.task.teacher.calibration, new.task.teacher.soft_labels) == ("examples", "logprobs")
    assert {path.name for path in new.path.iterdir()} == {path.name for path in bundled.iterdir()} - {
        "imagined",
        "recorded",
    }
    checked = CliRunner().invoke(app, ["check", new.name], env=environment)
    assert "0 errors, 0 warnings" in checked.output
