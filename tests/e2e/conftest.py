"""One complete run, made once; every test changes a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.project import Ended, Project, new_project
from tests.support.provider import FakeProvider
from tests.support.task import LABELS


@dataclass(frozen=True)
class Complete:
    """A project after `distill run --student one --student two`, how that ended, and what the teacher was asked."""

    project: Project
    ended: Ended
    requests: int


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    with FakeProvider(LABELS) as provider:
        project = new_project(tmp_path_factory.mktemp("complete"), provider.url)
        ended = project.run("--student", "one", "--student", "two")
        return Complete(project, ended, len(provider.requests))


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A teacher that has not been asked anything."""
    with FakeProvider(LABELS) as provider:
        yield provider


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
    return new_project(tmp_path / "fresh", provider.url)
