"""Fixtures that several test folders share."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from distill_dagster.core.openmp import limit_openmp_spin
from tests.support.provider import FakeProvider
from tests.support.task import LABELS

# As the command line does, before any library loads OpenMP.
limit_openmp_spin()
# At the end, DuckDB prints what it takes for leaks.
atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True, scope="module")
def leave_out_old_objects() -> None:
    """Let no garbage collection of this module's tests look at the million objects of libraries and earlier tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what all workers of a session use: whoever comes first makes it, under a lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def models_folder(shared_folder: Path) -> Path:
    """Converted models, made once per session; DISTILL_TEST_MODELS keeps them between sessions."""
    kept = os.environ.get("DISTILL_TEST_MODELS")
    folder = Path(kept).expanduser() if kept else shared_folder / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small_smollm2(shared_folder: Path, models_folder: Path) -> Path:
    """The first two layers of SmolLM2 as a model of its own, for tests that need no wits."""
    folder = shared_folder / "two-layers"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            import torch
            import transformers

            from distill_dagster.core import models

            source = models.resolve_model("smollm2-135m-instruct", models_folder).location
            model = transformers.AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=2, dtype=torch.float32)
            temporary = shared_folder / "two-layers.new"
            model.save_pretrained(temporary)
            transformers.AutoTokenizer.from_pretrained(source).save_pretrained(temporary)
            temporary.rename(folder)
    return folder


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A teacher that has not been asked anything."""
    with FakeProvider(LABELS) as provider:
        yield provider
