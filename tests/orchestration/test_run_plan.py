"""Which runs can start at the same time, and what shares one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
import yaml

from distill_dagster.core.paths import Home
from distill_dagster.orchestration.launcher import divide_into_ranges
from distill_dagster.orchestration.run_plan import Batch, RunPlanner
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.teacher_pauses import TeacherPauses
from distill_dagster.tables.lake import ArtifactRecord
from tests.support.task import write_small_task

SHARED = ["prompt_context", "teacher_prior", "golden_completions", "teacher_gate"]
CHAIN = ["seed_prompts", "teacher_completions", "scored_completions"]


class PlannedTask:
    """A small task whose artifacts are made by writing their records."""

    def __init__(self, root: Path) -> None:
        self.folder = write_small_task(root)
        self.home = Home(root / "home", root / "tasks")
        self.lake = open_lake(self.home)
        self.made = 0

    def read_state(self) -> TaskState:
        return TaskState(self.folder, self.lake)

    def make(self, assets: Iterable[str], partition: str | None = None) -> None:
        for asset in assets:
            state = self.read_state()
            stage = state.stages[asset]
            inputs = {name: version for name, version in state.find_inputs(stage, partition).items() if version}
            self.made += 1
            record = ArtifactRecord(asset, partition, f"version {self.made}", stage.code_version, inputs)
            self.lake.write(self.folder.name, pl.DataFrame({"x": [1]}), record)

    def edit(self, key: str) -> None:
        path = self.folder.path / "slices" / f"{key}.yaml"
        value = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(value | {"seeds": [*value["seeds"], f"one more login of {key}"]}))

    def plan(self, tried: Iterable[str] = ()) -> tuple[list[list[str]], list[str]]:
        """All runs that can start now, and the one that would be next where one follows the other."""
        state = self.read_state()
        statuses = state.list_statuses(["tiny"])
        with TeacherPauses(self.folder, self.home) as pauses:
            planner = RunPlanner(state, pauses, None, set())
            together = planner.plan_all(statuses, set(tried), RunSummary())
            return [_name(batch) for batch in together], _name(planner.plan_next(statuses, set(tried), RunSummary()))


def _name(batch: Batch) -> list[str]:
    return [status.name for status in batch]


@pytest.fixture
def task(tmp_path: Path) -> PlannedTask:
    return PlannedTask(tmp_path)


def test_what_slices_share_comes_first_then_all_slices_at_once(task: PlannedTask) -> None:
    together, following = task.plan()
    assert together == [following] == [SHARED]
    task.make(SHARED)
    together, following = task.plan()
    chains = [[f"{asset}[{key}]" for asset in CHAIN] for key in ("shop", "web")]
    assert together == chains
    assert following == chains[0]


def test_the_dataset_waits_for_every_slice_that_is_due(task: PlannedTask) -> None:
    task.make(SHARED)
    task.make(CHAIN, "shop")
    together, _ = task.plan()
    assert together == [[f"{asset}[web]" for asset in CHAIN]]
    failed = [f"{asset}[web]" for asset in CHAIN]
    together, following = task.plan(tried=failed)
    assert together == [following] == [["filtered_dataset"]], "a slice that failed holds nothing back"


def test_an_edit_runs_stage_by_stage_so_that_equal_content_stops_it(task: PlannedTask) -> None:
    task.make(SHARED)
    for key in ("shop", "web"):
        task.make(CHAIN, key)
    task.make(["filtered_dataset"])
    task.edit("web")
    assert task.plan()[0] == [["seed_prompts[web]"]], "nothing that reads the edited slice starts beside it"
    task.edit("shop")
    assert task.plan()[0] == [["seed_prompts[shop]"], ["seed_prompts[web]"]]


@pytest.mark.parametrize(
    ("keys", "size", "expected"),
    [
        ({"a", "b", "c", "d"}, 2, [["a", "b"], ["c", "d"]]),
        ({"a", "b", "d"}, 5, [["a", "b"], ["d"]]),
        ({"a", "c"}, 1, [["a"], ["c"]]),
        ({"b", "new"}, 3, [["b"], ["new"]]),
        (set(), 3, []),
    ],
)
def test_slices_that_are_next_to_each_other_share_a_run(keys: set[str], size: int, expected: list[list[str]]) -> None:
    assert divide_into_ranges(keys, ["a", "b", "c", "d"], size) == expected
