"""What is fresh, stale, missing or waiting, and the reason that the user reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distill_dagster.pipeline import freshness, stage_table
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.stage_table import list_sources, list_stages
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import PROMPT_CONTEXT
from distill_dagster.tasks import TaskFolder
from tests.support.task import reload_folder, write_small_task


class Made:
    """A task in which every artifact is fresh. Tables are empty, since only records matter."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder: TaskFolder = write_small_task(tmp_path)
        self.lake = Lake(tmp_path / "lake", tmp_path / "reports")
        for stage in self.now().stages.values():
            for partition in self.now().list_partitions(stage):
                self.make(stage.name, partition)

    def now(self) -> TaskState:
        return TaskState(reload_folder(self.folder), self.lake)

    def make(self, asset: str, partition: str | None = None, version: str = "v1", missing: int = 0) -> None:
        now = self.now()
        stage = now.stages[asset]
        inputs = {k: v for k, v in now.find_inputs(stage, partition).items() if v is not None}
        record = ArtifactRecord(asset, partition, version, stage.code_version, inputs, missing_rows=missing)
        self.lake.write(self.folder.name, PROMPT_CONTEXT.to_frame(), record)

    def remove(self, asset: str, partition: str | None = None) -> None:
        self.lake.get_path(self.folder.name, asset, partition).unlink()

    def not_fresh(self) -> dict[str, tuple[str, ...]]:
        return {s.name: s.why for s in self.now().list_statuses() if s.state != "fresh"}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_nothing_is_made(tmp_path: Path) -> None:
    found = {
        s.name: s for s in TaskState(write_small_task(tmp_path), Lake(tmp_path / "l", tmp_path / "r")).list_statuses()
    }
    assert found["seed_prompts[shop]"] == ArtifactStatus("seed_prompts", "shop", "missing", ("never made",))
    assert found["prompt_context"].state == "missing"
    assert found["teacher_completions[web]"].state == "waiting"
    lacks = ("seed_prompts[web]", "prompt_context", "teacher_gate")
    assert found["teacher_completions[web]"].why == tuple(f"{name} is missing" for name in lacks)
    assert set(found["filtered_dataset"].why) == {f"scored_completions[{k}] is missing" for k in ("shop", "web")}


def test_everything_is_fresh(made: Made) -> None:
    statuses = made.now().list_statuses()
    assert {(s.state, s.why) for s in statuses} == {("fresh", ())}
    assert all(s.record is not None for s in statuses)
    # Topological: nothing stands before what it is made from.
    places = {s.name: n for n, s in enumerate(statuses)}
    now = made.now()
    for status in statuses:
        for upstream in now.find_inputs(now.stages[status.asset], status.partition):
            assert places.get(upstream, -1) < places[status.name]


def test_a_changed_slice_makes_its_prompts_stale_and_no_other(made: Made) -> None:
    (made.folder.path / "slices" / "shop.yaml").write_text("description: d\nseeds: [another]\n")
    assert made.not_fresh() == {"seed_prompts[shop]": ("slice_files[shop] changed",)}
    made.make("seed_prompts", "shop", "v2")
    assert made.not_fresh() == {
        "teacher_completions[shop]": ("seed_prompts[shop] changed",),
        "scored_completions[shop]": ("seed_prompts[shop] changed",),
    }
    # The same answers as before: the wave ends here.
    made.make("teacher_completions", "shop", "v1")
    made.make("scored_completions", "shop", "v1")
    assert made.not_fresh() == {}


def test_a_changed_setting_makes_the_stages_that_read_it_stale(made: Made) -> None:
    path = made.folder.path / "task.yaml"
    value = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(value | {"curation": {"min_rows": 7}}))
    assert made.not_fresh() == {"filtered_dataset": ("curation_settings changed",)}


def test_a_new_and_a_removed_slice(made: Made) -> None:
    slices = made.folder.path / "slices"
    (slices / "app.yaml").write_text("description: d\nseeds: [x]\n")
    (slices / "web.yaml").unlink()
    found = {s.name: s for s in made.now().list_statuses()}
    assert found["seed_prompts[app]"].state == "missing"
    assert found["scored_completions[app]"].state == "waiting"
    assert "seed_prompts[web]" not in found
    assert found["filtered_dataset"].state == "stale"
    assert set(found["filtered_dataset"].why) == {
        "slice_manifest changed",
        "scored_completions[web] is gone",
    }


def test_a_malformed_slice_is_named_and_keeps_what_was_made(made: Made) -> None:
    (made.folder.path / "slices" / "web.yaml").write_text("description: d\nseeds: 7\n")
    found = {s.name: s for s in made.now().list_statuses()}
    assert found["seed_prompts[web]"].state == "malformed"
    assert "web.yaml:2 [seeds]" in found["seed_prompts[web]"].why[0]
    assert {name for name, s in found.items() if s.state != "fresh"} == {"seed_prompts[web]"}


def test_a_dataset_can_be_made_without_slices_that_were_never_made(made: Made) -> None:
    made.remove("filtered_dataset")
    made.remove("scored_completions", "web")
    assert made.now().get_status("filtered_dataset").state == "missing", "it can be made"
    made.remove("scored_completions", "shop")
    assert made.now().get_status("filtered_dataset").state == "waiting"


def test_a_new_artifact_is_read_after_forget(made: Made) -> None:
    state = made.now()
    assert state.get_status("scored_completions", "shop").state == "fresh"
    made.make("teacher_completions", "shop", "v9")
    assert state.get_status("scored_completions", "shop").state == "fresh", "read once"
    state.forget([("teacher_completions", "shop")])
    assert state.get_status("scored_completions", "shop").why == ("teacher_completions[shop] changed",)


def test_a_removed_artifact_is_missing_and_named_below(made: Made) -> None:
    made.remove("prompt_context")
    found = made.not_fresh()
    assert found["prompt_context"] == ("never made",)
    assert found["golden_completions"] == ("prompt_context is missing",)


def test_a_new_code_version(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = list_stages()
    stages["filtered_dataset"] = replace(stages["filtered_dataset"], code_version="7")
    monkeypatch.setattr(freshness, "list_stages", lambda *_: stages)
    old = stage_table.STAGES["filtered_dataset"].code_version
    assert made.not_fresh() == {"filtered_dataset": (f"code version {old} became 7",)}


def test_missing_rows_are_stale(made: Made) -> None:
    made.make("teacher_completions", "shop", missing=3)
    assert made.not_fresh() == {"teacher_completions[shop]": ("3 rows have no answer yet",)}


def test_chosen_students_and_slices(made: Made) -> None:
    names = {s.name for s in made.now().list_statuses(students=[], slices=["web"])}
    assert "seed_prompts[web]" in names
    assert "filtered_dataset" in names
    assert not names & {"seed_prompts[shop]", "student_adapter[tiny]"}


def test_slices_that_are_labels_have_one_more_stage() -> None:
    plain, labelled = list_stages(), list_stages({"slice_labels"})
    assert set(labelled) - set(plain) == {"slice_label_adapter"}
    assert "slice_label_adapter" in labelled["predictions"].upstream
    assert list(labelled).index("slice_label_adapter") < list(labelled).index("predictions")


def test_every_upstream_is_a_source_or_an_earlier_stage() -> None:
    for stages in (list_stages(), list_stages({"slice_labels"})):
        seen = set(list_sources())
        for stage in stages.values():
            assert set(stage.upstream) <= seen, stage.name
            seen.add(stage.name)


def test_a_file_without_a_record_is_not_taken_for_an_artifact(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", tmp_path / "reports")
    path = lake.get_path("task", "prompt_context").with_name(
        f".{format_artifact_name('prompt_context')}.parquet.writing-1"
    )
    write_parquet(PROMPT_CONTEXT.to_frame(), path, {})
    assert lake.read_record("task", "prompt_context") is None
