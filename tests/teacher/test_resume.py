"""A process is killed while it asks: received answers are not asked for again, and the tables are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.data_versions import VOLATILE_COLUMNS, compute_data_version
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.teacher.asking.ask import AskResult, run_ask
from distill_dagster.teacher.completions.store import CompletionStore
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, build_asker, write_small_task
from tests.support.waiting import HANG_S

SEEDS = [f"{label} number {n}" for n in range(6) for label in LABELS]
TOTAL = 2 * len(SEEDS)

DIES = """
import os, sys
from pathlib import Path
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.store import CompletionStore
from tests.teacher import test_resume

left = 7
commit = CompletionStore.commit

def commit_and_die(self, answers, *more):
    global left
    verdicts = commit(self, answers, *more)
    left -= len(answers)
    if left <= 0:
        os._exit(9)
    return verdicts

CompletionStore.commit = commit_and_die
test_resume.ask(TaskFolder(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def ask(folder: TaskFolder, store_folder: Path) -> AskResult:
    store = CompletionStore.open_in_folder(store_folder)
    try:
        prompts = build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": SEEDS}))
        return run_ask(build_asker(folder, store), prompts)
    finally:
        store.close()


def test_a_run_continues_after_a_kill(tmp_path: Path) -> None:
    least, root = 7, Path(__file__).resolve().parents[2]
    with FakeProvider(LABELS, pause_s=0.01) as provider:
        folder = write_small_task(tmp_path, teacher={"api_base": provider.url})
        command = [sys.executable, "-c", DIES, str(folder.path), str(tmp_path / "store")]
        killed = subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, timeout=HANG_S, check=False
        )
        assert killed.returncode == 9
        paid = len(provider.requests)
        store = CompletionStore.open_in_folder(tmp_path / "store")
        stored = store.count()
        open_ = store.read_ledger().filter(pl.col("state") == "reserved").height
        store.close()
        assert least <= stored < TOTAL
        assert stored <= paid <= stored + open_ <= stored + folder.task.teacher.concurrency

        resumed = ask(folder, tmp_path / "store")
        assert (resumed.usage.calls, resumed.usage.cached) == (TOTAL - stored, stored)
        assert len(provider.requests) == paid + TOTAL - stored

        undisturbed = ask(folder, tmp_path / "another store")
        assert undisturbed.usage.calls == TOTAL
    volatile = [c for c in VOLATILE_COLUMNS if c in resumed.completions.columns]
    assert resumed.completions.drop(volatile).equals(undisturbed.completions.drop(volatile))
    assert compute_data_version(resumed.completions) == compute_data_version(undisturbed.completions)
