"""Settings and fixtures of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.support.profile  # noqa: F401
from tests.intake.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
