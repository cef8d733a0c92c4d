"""One complete run, made once for all workers; every test changes a copy of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.e2e.project import CommandResult, Project, create_project
from tests.support.provider import FakeProvider
from tests.support.task import LABELS


@dataclass(frozen=True)
class Complete:
    """A project after `distill run --student one --student two`, how that ended, and what the teacher was asked."""

    project: Project
    ended: CommandResult
    requests: int


@pytest.fixture(scope="session")
def complete(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """What is shared is a copy that no worker opens: databases in use could not be copied from it."""
    kept = shared_folder / "complete"
    own = tmp_path_factory.mktemp("complete")
    with FileLock(f"{kept}.lock"):
        if kept.exists():
            said = json.loads((kept / "ended.json").read_text())
            return Complete(Project(kept).copy(own), CommandResult(**said["ended"]), said["requests"])
        with FakeProvider(LABELS) as provider:
            project = create_project(own, provider.url)
            ended = project.run("--student", "one", "--student", "two")
            made = Complete(project, ended, len(provider.requests))
        temporary = shared_folder / "complete.new"
        shutil.copytree(own, temporary)
        (temporary / "ended.json").write_text(json.dumps({"ended": asdict(ended), "requests": made.requests}))
        temporary.rename(kept)
        return made


@pytest.fixture
def project(complete: Complete, provider: FakeProvider, tmp_path: Path) -> Project:
    """A copy of the complete project, with the test's own teacher; nothing is stale in it."""
    assert complete.ended.code == 0, complete.ended.err
    copy = complete.project.copy(tmp_path / "project")
    copy.change_task(teacher={"api_base": provider.url})
    return copy


@pytest.fixture
def fresh(provider: FakeProvider, tmp_path: Path) -> Project:
    """The same task, never run."""
    return create_project(tmp_path / "fresh", provider.url)
