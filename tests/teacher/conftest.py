"""Settings and fixtures of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.support.profile  # noqa: F401
from distill_dagster.teacher.completions.store import CompletionStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CompletionStore]:
    store = CompletionStore.open_in_folder(tmp_path / "store")
    yield store
    store.close()
