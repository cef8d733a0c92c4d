"""A judge through the command line and Dagster, with every check."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from distill_dagster.tables.schemas import DATASET, SCORED
from tests.e2e.project import TASK, create_project
from tests.support.imagining import answer_as_teacher, build_judge_answer, get_request_text, is_judge_request
from tests.support.provider import FakeProvider, Fault


def test_judged_rows_are_cached_counted_and_cut_by_the_dataset(provider: FakeProvider, tmp_path: Path) -> None:
    provider.answer = lambda seen: (
        json.dumps(build_judge_answer(correct=1 if "broken" in get_request_text(seen) else 5))
        if is_judge_request(seen)
        else answer_as_teacher(seen)
    )
    judge = {
        "model": "openai/judge",
        "api_base": provider.url,
        "max_retries": 0,
        "rubric": [{"name": "correct", "description": "the category fits"}],
    }
    project = create_project(tmp_path / "judged", provider.url, judge=judge)
    project.change_task(curation={"filters": {"min_judge": 0.5}})
    lost = "login asks me twice"
    provider.fail = lambda seen, _: Fault(500) if is_judge_request(seen) and lost in get_request_text(seen) else None
    project.change_task(judge={"min_success": 0.8})
    ended = project.distill("backfill", TASK, "--json")
    assert ended.code == 0, ended.err
    record = project.record("scored_completions", "shop")
    assert (record.missing_rows, record.extra["teacher_calls"]) == (1, 6)
    assert ended.json["teacher_calls"] == len(provider.requests)

    provider.fail = None
    before = len(provider.requests)
    ended = project.distill("run", TASK, "--json", "--student", "one")
    assert ended.code == 0, ended.err
    assert sum(is_judge_request(seen) for seen in provider.requests[before:]) == 1, "only the missing row"
    assert project.record("scored_completions", "shop").missing_rows == 0
    scored = project.lake.read(TASK, "scored_completions", "shop", SCORED)[0]
    assert sorted(scored["judge_score"].to_list()) == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert project.record("filtered_dataset").extra["reasons"]["low_judge"] == 1
    terms = json.loads((project.home / "reports" / TASK / "one" / "metrics.json").read_text())["terms"]
    assert [(one["role"], one["teacher"]) for one in terms] == [("teacher", "openai/fake"), ("judge", "openai/judge")]
    with project.instance() as instance:
        for asset, who in (("scored_completions", "openai/judge"), ("eval_report", "openai/judge")):
            event = instance.get_latest_materialization_event(dg.AssetKey([TASK, asset]))
            assert event is not None
            assert event.asset_materialization is not None
            assert who in str(event.asset_materialization.metadata["terms"].value)
    kept = project.lake.read(TASK, "filtered_dataset", None, DATASET)[0]
    assert kept["prompt_id"].n_unique() == kept.height
    before = len(provider.requests)
    assert project.distill("run", TASK, "--json", "--student", "one").json["partitions"] == {}
    assert len(provider.requests) == before
