"""`distill backfill`: named slices, ranges, and what is stale, missing or failed; every partition stands for itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from distill_dagster.teacher.completions.store import CompletionStore
from tests.e2e.project import GROUP, TASK, CommandResult, Project
from tests.support.provider import FakeProvider, Fault, ReceivedRequest

TAG = "dagster/data_version"


def backfill(project: Project, *arguments: str) -> CommandResult:
    return project.distill("backfill", TASK, "--json", *arguments)


def versions(project: Project, asset: str) -> dict[str, str | None]:
    """The data version of the latest materialization of every slice, as Dagster has it."""
    found: dict[str, str | None] = {}
    with project.instance() as instance:
        for key in project.slices():
            chosen = dg.AssetRecordsFilter(asset_key=dg.AssetKey([TASK, asset]), asset_partitions=[key])
            event = instance.fetch_materializations(chosen, limit=1).records[0].asset_materialization
            assert event is not None
            found[key] = (event.tags or {}).get(TAG)
    return found


def paid_usd(project: Project) -> float:
    """All that the ledger says was paid at a known price."""
    with closing(CompletionStore.open_in_folder(project.home / "store")) as store:
        return float(store.read_ledger()["usd"].sum())


def new_slice(project: Project, key: str, *seeds: str) -> None:
    text = yaml.safe_dump({"description": f"The {key}.", "seeds": list(seeds)})
    (project.folder / "slices" / f"{key}.yaml").write_text(text)


def test_nothing_stale_runs_nothing(project: Project, provider: FakeProvider) -> None:
    ended = backfill(project)
    assert ended.code == 0, ended.err
    assert ended.json["runs"] == []
    assert provider.requests == []


def test_three_slices_together_then_one_alone(project: Project, provider: FakeProvider) -> None:
    new_slice(project, "phone", "a refund by phone", "the delivery man called")
    for key in ("shop", "web"):
        project.add_seeds(key, f"the refund of {key}")
    ended = backfill(project)
    assert ended.code == 0, ended.err
    assert {name: sorted(map(str, keys)) for name, keys in ended.partitions.items()} == {
        name: ["phone", "shop", "web"] for name in GROUP
    }, "slices only: nothing is trained"
    assert len(provider.requests) == 2 * 4
    before = versions(project, "scored_completions")
    assert len(set(before.values())) == 3, "every partition has its own data version"
    project.change_slice("web", lambda value: value["seeds"].append("one more login"))
    assert backfill(project).partitions == {name: ["web"] for name in GROUP}
    after = versions(project, "scored_completions")
    assert {key for key in after if after[key] != before[key]} == {"web"}


def test_a_named_slice_and_a_range_are_made_again_from_the_store(project: Project, provider: FakeProvider) -> None:
    before = versions(project, "teacher_completions")
    assert backfill(project, "--slice", "web").partitions == {name: ["web"] for name in GROUP}
    ended = backfill(project, "--from", "shop", "--to", "web")
    assert ended.partitions == {name: ["shop", "web"] for name in GROUP}
    assert ended.json["teacher_calls_cached"] == 24
    assert provider.requests == []
    assert versions(project, "teacher_completions") == before


def test_a_reversed_range_and_an_unknown_slice_are_errors(project: Project) -> None:
    reversed_ = backfill(project, "--from", "web", "--to", "shop")
    assert reversed_.code == 2
    assert "reversed" in reversed_.err
    assert "--from shop --to web" in reversed_.err
    unknown = backfill(project, "--slice", "nowhere")
    assert unknown.code == 2
    assert "no slice 'nowhere'" in unknown.err
    both = backfill(project, "--slice", "web", "--which", "all")
    assert both.code == 1
    assert "one way" in both.err


def test_missing_leaves_stale_ones_alone(project: Project, provider: FakeProvider) -> None:
    new_slice(project, "phone", "a refund by phone")
    project.change_slice("web", lambda value: value["seeds"].append("one more login"))
    assert backfill(project, "--which", "missing").partitions == {name: ["phone"] for name in GROUP}
    assert backfill(project, "--which", "stale").partitions == {name: ["web"] for name in GROUP}


def test_a_dry_run_tells_what_would_be_asked_and_asks_nothing(project: Project, provider: FakeProvider) -> None:
    new_slice(project, "phone", "a refund by phone", "a refund by phone")
    project.change_slice("web", lambda value: value["seeds"].append("one more login"))
    ended = backfill(project, "--dry-run")
    assert ended.code == 0, ended.err
    assert ended.json["partitions"] == {"teacher_completions": ["phone", "web"]}
    assert (ended.json["teacher_calls"], ended.json["teacher_calls_cached"]) == (2 * (1 + 1), 2 * 6)
    assert ended.json["usd"] is None, "no price is known"
    assert provider.requests == []
    done = backfill(project)
    assert done.json["teacher_calls"] == ended.json["teacher_calls"], "the estimate was right"
    assert done.json["teacher_calls_cached"] == ended.json["teacher_calls_cached"]


@pytest.fixture
def broken(project: Project, provider: FakeProvider) -> Project:
    """The slice `web` has new seeds, and the teacher refuses them."""

    def refuse(seen: ReceivedRequest, before: int) -> Fault | None:
        return Fault(400) if "unlucky" in seen.text else None

    provider.fail = refuse
    project.change_slice("web", lambda value: value.update(seeds=[f"unlucky login {n}" for n in range(6)]))
    project.change_slice("shop", lambda value: value["seeds"].append("a lucky refund"))
    return project


def test_a_failing_slice_does_not_hold_up_the_others(broken: Project, provider: FakeProvider) -> None:
    ended = backfill(broken)
    assert ended.code == 1
    assert ended.partitions["scored_completions"] == ["shop"]
    assert "teacher_completions[web]" in ended.err
    provider.fail = None
    again = backfill(broken, "--which", "failed")
    assert again.code == 0, again.err
    assert again.partitions["scored_completions"] == ["web"]
    assert backfill(broken, "--which", "failed").json["runs"] == []


def test_what_a_failed_slice_took_counts_too(project: Project, provider: FakeProvider) -> None:
    """Half of the answers of `web` came and were paid for; then it failed, and left no record."""
    provider.fail = lambda seen, before: Fault(400) if "unlucky" in seen.text else None
    project.change_task(teacher={"price": {"input_usd": 1.0, "output_usd": 2.0}})
    new = [f"{word} login {n}" for n in range(3) for word in ("a", "an unlucky")]
    project.change_slice("web", lambda value: value.update(seeds=new))
    project.change_slice("shop", lambda value: value["seeds"].append("a lucky refund"))
    ended = backfill(project)
    assert ended.partitions["teacher_completions"] == ["shop"]
    assert ended.json["teacher_calls"] == len(provider.requests) == 2 + 12
    paid = paid_usd(project)
    assert ended.json["cost_usd"] == pytest.approx(paid)
    alone = project.record("teacher_completions", "shop").extra["spent_usd"]
    assert ended.json["cost_usd"] > 2 * alone > 0, "six answers of web against two of shop"
    provider.fail = None
    again = backfill(project)
    assert again.json["teacher_calls"] == 6, "the other half, and nothing twice"
    assert paid_usd(project) == pytest.approx(paid + again.json["cost_usd"])


def test_an_estimate_and_the_ledger_of_what_was_spent(project: Project, provider: FakeProvider, tmp_path: Path) -> None:
    project.change_task(teacher={"price": {"input_usd": 1.0, "output_usd": 2.0}})
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund, please"))
    estimated = project.distill("estimate", TASK, "--json")
    assert estimated.code == 0, estimated.err
    assert (estimated.json["teacher_calls"], provider.requests) == (2, [])
    before = project.distill("ledger", TASK, "--json").json["ledger"]
    done = backfill(project)
    assert done.json["teacher_calls"] == 2
    assert 0 < done.json["cost_usd"] <= estimated.json["usd"]
    after = project.distill("ledger", TASK, "--json").json["ledger"]
    assert sum(row["requests"] for row in after) - sum(row["requests"] for row in before) == 2
    assert {row["usd"] for row in before} == {None}, "the project's first runs had no price"
    file = tmp_path / "ledger.parquet"
    project.distill("ledger", TASK, "--parquet", str(file))
    rows = pl.read_parquet(file)
    assert rows.height == sum(row["requests"] for row in after)
    assert set(rows["state"]) == {"settled"}
    assert rows["usd"].sum() == pytest.approx(done.json["cost_usd"])
