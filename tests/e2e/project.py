"""A tiny project on disk, and the `distill` command on it: in this process, or as a process that can be killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import yaml
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tables.lake import ArtifactRecord, Lake
from distill_dagster.teacher.completions.store import CompletionStore
from tests.support.task import jsonl, merge_settings, write_small_task

TASK = "shop_mail"
STUDENT: dict[str, Any] = {"model": "all-minilm-l6-v2", "architecture": "encoder", "epochs": 1, "learning_rate": 2e-3}
SEEDS = {
    "shop": [
        "I want a refund",
        "the refund never came",
        "a delivery arrived broken",
        "who pays the delivery back",
        "login asks me twice",
        "my login is gone",
    ],
    "web": [
        "can I refund this online",
        "a refund button is missing",
        "the delivery form is empty",
        "a delivery to my office",
        "a login by mail, please",
        "the login page is white",
    ],
}
SEED_REQUESTS, HELD_OUT_REQUESTS = 2 * 12, 2 * 12
"""Two draws of 12 seeds, and of 6 golden and 6 dev rows."""
GROUP = {"seed_prompts", "teacher_completions", "scored_completions"}
STUDENT_ASSETS = {"seed_only_adapter", "student_adapter", "predictions", "eval_report"}


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it wrote. `json` is all of stdout, where `--json` was given."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def partitions(self) -> dict[str, list[str | None]]:
        made: dict[str, list[str | None]] = self.json["partitions"]
        return made


@dataclass(frozen=True)
class Project:
    """Task folders in `root/tasks`, everything generated in `root/home`."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def folder(self) -> Path:
        return self.root / "tasks" / TASK

    def slices(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "slices").glob("*.yaml"))

    @property
    def lake(self) -> Lake:
        return Lake(self.home / "lake", self.home / "reports")

    def environment(self, **more: str) -> dict[str, str]:
        return {"DISTILL_HOME": str(self.home), "DISTILL_TASKS": str(self.root / "tasks"), **more}

    def distill(self, *arguments: str) -> CommandResult:
        """The command in this process: the libraries are loaded once for all tests."""
        with mock.patch.dict(os.environ, self.environment()):
            os.environ.pop("DAGSTER_HOME", None)
            result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    def run(self, *arguments: str) -> CommandResult:
        return self.distill("run", TASK, "--json", *arguments)

    def start(self, *arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """The command as a process of its own, in a session of its own. `log` takes what it writes: nobody reads a
        pipe while a long command runs, and a full one stops it."""
        clean = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        with log.open("w") if log else nullcontext(subprocess.PIPE) as out:
            return subprocess.Popen(
                [sys.executable, "-m", "distill_dagster", *arguments],
                env=clean | self.environment(PYTHONPATH=str(PROJECT_FOLDER), **environment),
                cwd=self.root,
                stdout=out,
                stderr=out,
                text=True,
                start_new_session=True,
            )

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home / "instance"))

    def record(self, asset: str, partition: str | None = None) -> ArtifactRecord:
        found = self.lake.read_record(TASK, asset, partition)
        assert found is not None, f"{asset}[{partition}] was not made"
        return found

    def stored_answers(self) -> int:
        store = CompletionStore.open_in_folder(self.home / "store")
        try:
            return store.count()
        finally:
            store.close()

    def change_task(self, **changes: Any) -> None:
        path = self.folder / "task.yaml"
        path.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(path.read_text()), changes), sort_keys=False))

    def change_slice(self, key: str, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.folder / "slices" / f"{key}.yaml"
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value, sort_keys=False))

    def add_seeds(self, key: str, *seeds: str) -> None:
        self.change_slice(key, lambda value: value["seeds"].extend(seeds))

    def append(self, file: str, row: dict[str, Any]) -> None:
        with (self.folder / file).open("a") as rows:
            rows.write(jsonl([row]))

    def copy(self, root: Path) -> Project:
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Project(root)


def create_project(root: Path, url: str, **changes: Any) -> Project:
    """A task that was never run: 3 labels, 2 slices of 6 seeds, students `one` and `two`, a teacher at `url`."""
    settings: dict[str, Any] = {
        "teacher": {"api_base": url, "max_retries": 0},
        "students": {"tiny": None, "one": STUDENT, "two": STUDENT | {"seed": 1}},
        "default_student": "one",
        "curation": {"min_rows": 4, "validation_share": 0.2},
        "evaluation": {"bootstrap_samples": 100, "latency_items": 2},
    }
    folder = write_small_task(root, TASK, **merge_settings(settings, changes))
    for key, seeds in SEEDS.items():
        value = {"description": f"The {key}.", "seeds": seeds}
        (folder.path / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    return Project(root)


def hash_files(folder: Path) -> dict[str, str]:
    """Every file below a folder by its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
