"""The gate: a teacher that is not good enough is asked for golden and dev, and for no slice."""

from __future__ import annotations

import dagster as dg

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.tables.schemas import PREDICTIONS
from tests.e2e.project import HELD_OUT_REQUESTS, SEED_REQUESTS, STUDENT_ASSETS, TASK, Project
from tests.support.provider import FakeProvider


def test_a_teacher_that_says_one_thing_is_paid_for_no_slice(fresh: Project, provider: FakeProvider) -> None:
    provider.labels = ["login"]  # its answer to everything: right for a third of dev
    fresh.change_task(gate={"teacher_min": 0.5})
    ended = fresh.run()
    assert ended.code == 1
    why = ended.json["failed"]["teacher_gate"]
    assert "teacher_good_enough" in why
    assert "gate.teacher_min is 0.5" in why
    assert "teacher 0.3333" in why
    assert ended.json["blocked"]["teacher_completions[shop]"] == "teacher_gate did not pass teacher_good_enough"
    assert ended.json["blocked"]["seed_only_adapter[one]"] == "teacher_gate did not pass teacher_good_enough"
    assert not STUDENT_ASSETS & set(ended.partitions), "nothing is trained"
    lines = ended.err.splitlines()
    mark = next(number for number, line in enumerate(lines) if line.startswith("✗"))
    assert "teacher_gate: did not pass teacher_good_enough" in lines[mark], "the reason stands where it failed"
    assert len(provider.requests) == HELD_OUT_REQUESTS
    assert fresh.run().code == 1
    assert len(provider.requests) == HELD_OUT_REQUESTS, "nothing is asked again while nothing is mended"

    fresh.change_task(gate={"teacher_min": 0.3})
    ended = fresh.run()
    assert ended.partitions["teacher_gate"] == [None]
    assert ended.partitions["teacher_completions"] == ["shop", "web"]
    assert "golden_completions" not in ended.partitions
    assert len(provider.requests) == HELD_OUT_REQUESTS + SEED_REQUESTS


def test_a_teacher_below_the_untrained_student_has_nothing_to_teach(fresh: Project, provider: FakeProvider) -> None:
    provider.labels = ["login"]
    fresh.change_task(gate={"teacher_over_base": 0.0})
    ended = fresh.run()
    assert ended.code == 1
    assert "nothing to distil" in ended.json["failed"]["teacher_gate"]
    assert len(provider.requests) == HELD_OUT_REQUESTS
    table, record = fresh.lake.read(TASK, "teacher_gate", None, PREDICTIONS)
    assert sorted(table["system"].unique()) == ["base", "teacher"]
    assert set(table["split"]) == {"dev"}, "golden is for the report alone"
    assert record.extra["blocked"] == ["teacher_good_enough"]


def test_a_passed_gate_has_one_version_whatever_its_figures(project: Project, provider: FakeProvider) -> None:
    before = project.record("teacher_gate")
    project.change_task(gate={"teacher_over_base": 0.0})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {"teacher_gate": [None]}
    after = project.record("teacher_gate")
    assert after.rows == 2 * before.rows, "the base answered too"
    assert after.data_version == before.data_version
    assert provider.requests == []


def test_no_slice_is_asked_with_settings_that_passed_no_gate(project: Project, provider: FakeProvider) -> None:
    """As from the UI, where somebody materializes a slice alone."""
    project.change_task(teacher={"few_shot": {"seed": 9}})
    job = build_definitions(
        Home(root=project.home, tasks=project.root / "tasks")
    ).resolve_implicit_global_asset_job_def()
    with project.instance() as instance:
        result = job.execute_in_process(
            instance=instance,
            partition_key="shop",
            asset_selection=[dg.AssetKey([TASK, "teacher_completions"])],
            raise_on_error=False,
        )
    assert not result.success
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "settings changed after it passed teacher_gate" in (failure.user_failure_data.description or "")
    assert provider.requests == []
