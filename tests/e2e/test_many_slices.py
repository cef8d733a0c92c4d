"""Many slices in one run of Dagster: each keeps its own data version, checks and failure."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from tests.e2e.project import GROUP, TASK, Project
from tests.support.provider import FakeProvider, Fault, ReceivedRequest

SLICES = ("shop", "phone", "web")


@pytest.fixture
def three(project: Project) -> Project:
    """A third slice that was never made, between the others."""
    text = yaml.safe_dump({"description": "By phone.", "seeds": ["a refund by phone", "a login by phone"]})
    (project.folder / "slices" / "phone.yaml").write_text(text)
    with project.instance() as instance:
        instance.add_dynamic_partitions(get_slices_partitions_name(TASK), ["phone"])
    return project


def launch(project: Project, instance: dg.DagsterInstance, first: str, last: str, *assets: str, **tags: str) -> bool:
    """One run of a range, as a backfill by a single run and `dg launch --partition-range` make it."""
    job = build_definitions(
        Home(root=project.home, tasks=project.root / "tasks")
    ).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey([TASK, name]) for name in assets or sorted(GROUP)],
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
            "dagster/backfill": f"{first}-{last}",
            **{f"distill/{name}": value for name, value in tags.items()},
        },
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    return result.success


def versions(instance: dg.DagsterInstance, asset: str) -> dict[str, str]:
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey([TASK, asset]), dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
    )
    return {key: found["dagster/data_version"] for key, found in tags.items()}


def test_three_slices_together_then_one_alone(three: Project, provider: FakeProvider) -> None:
    for key in SLICES:
        three.change_slice(key, lambda value: value["seeds"].append("one more refund"))
    with three.instance() as instance:
        assert instance.get_dynamic_partitions(get_slices_partitions_name(TASK)) == ["shop", "web", "phone"]
        runs = instance.get_runs_count()
        assert launch(three, instance, "shop", "phone")
        assert instance.get_runs_count() == runs + 4, "one run, and within it one for each slice"
        belong = dg.RunsFilter(tags={"dagster/backfill": "shop-phone"})
        assert instance.get_runs_count(belong) == 4, "otherwise the backfill misses what was made, and ends as failed"
        before = {asset: versions(instance, asset) for asset in GROUP}
        for asset in GROUP:
            assert before[asset] == {key: three.record(asset, key).data_version for key in SLICES}
            assert len(set(before[asset].values())) == 3
        # The slices share a new prompt, which is asked for once, and the new slice has two of its own.
        assert len(provider.requests) == 2 * (1 + 2)

        three.change_slice("web", lambda value: value["seeds"].append("one login more"))
        assert launch(three, instance, "web", "web")
        for asset in GROUP:
            after = versions(instance, asset)
            assert {key for key in SLICES if after[key] != before[asset][key]} == {"web"}
        assert provider.texts[-2:] == ["one login more"] * 2


def test_a_budget_set_where_a_backfill_is_launched_holds_for_its_slices_together(
    three: Project, provider: FakeProvider
) -> None:
    for key in SLICES:
        three.add_seeds(key, f"a login for the {key}")
    with three.instance() as instance:
        assert launch(three, instance, "shop", "phone", budget_tokens="0")
        assert provider.requests == []
        assert three.record("teacher_completions", "web").extra["missing"]["budget"]["tokens"] == 0
        assert launch(three, instance, "shop", "phone")
    assert len(provider.requests) == 2 * (3 + 2)


def test_one_slice_fails_and_the_others_are_made(three: Project, provider: FakeProvider) -> None:
    def refuse(seen: ReceivedRequest, _: int) -> Fault | None:
        return Fault(400) if "phone" in seen.text else None

    provider.fail = refuse
    three.change_slice("web", lambda value: value["seeds"].append("one login more"))
    with three.instance() as instance:
        assert not launch(three, instance, "shop", "phone")
        run = instance.get_runs(dg.RunsFilter(tags={"dagster/asset_partition_range_start": "shop"}))[0]
        failure = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records[0]
        assert "1 of 3 slices failed: phone" in str(failure.event_log_entry.dagster_event)
        partitions = dg.DynamicPartitionsDefinition(name=get_slices_partitions_name(TASK))
        status = instance.get_status_by_partition(
            dg.AssetKey([TASK, "teacher_completions"]), ["shop", "web", "phone"], partitions
        )
        assert status is not None
        assert {key: value.value for key, value in status.items() if value} == {
            "shop": "MATERIALIZED",
            "web": "MATERIALIZED",
            "phone": "FAILED",
        }
        assert (
            versions(instance, "teacher_completions")["web"] == three.record("teacher_completions", "web").data_version
        )
    again = three.distill("backfill", TASK, "--which", "failed", "--dry-run", "--json")
    assert again.json["partitions"] == {"teacher_completions": ["phone"]}


def test_a_run_that_starts_at_the_teacher_does_not_wait_for_itself(three: Project, provider: FakeProvider) -> None:
    """The step of the outer run holds the only slot of the teacher's pool."""
    three.change_task(teacher={"few_shot": {"draws": 3}})
    job = build_definitions(Home(root=three.home, tasks=three.root / "tasks")).resolve_implicit_global_asset_job_def()
    first = [dg.AssetKey([TASK, name]) for name in ("golden_completions", "teacher_gate")]
    with three.instance() as instance:
        assert job.execute_in_process(instance=instance, asset_selection=first).success
        provider.requests.clear()
        assert launch(three, instance, "shop", "web", "teacher_completions")
        assert instance.event_log_storage.get_concurrency_info("teacher").active_slot_count == 0
    assert len(provider.requests) == 12, "the third draw"
