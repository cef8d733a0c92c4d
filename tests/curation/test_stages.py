"""Scores in the stages: computed once, thresholds apart; and the commands that tell of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.curation.filters import STEP_REASONS
from distill_dagster.curation.scores import kernel
from distill_dagster.pipeline.stages import dataset, teacher
from distill_dagster.pipeline.stages.context import SampleTable
from distill_dagster.tables.schemas import DATASET, SCORED
from tests.pipeline.test_data_stages import Run, read_rejected_rows
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, build_stage_context, write_small_task


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (teacher, dataset):
        monkeypatch.setattr(module, "check_table", lambda *_: CheckResult("valid_table", True))
    monkeypatch.setattr(plots, "plot_counts", lambda *_: b"")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A task whose teacher writes its reasoning, so that there are texts to score."""
    with FakeProvider(LABELS) as provider:
        provider.answer = lambda seen: f"Reasoning: it is asked for {seen.text}\nAnswer: {_label(seen.text)}"
        settings = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "max_tokens": 50}
        settings["few_shot"] = {"per_label": 1, "draws": 1}
        curation_ = {"min_rows": 1, "validation_share": 0, "mix_examples": False}
        folder = write_small_task(tmp_path, teacher=settings, reasoning=True, curation=curation_)
        examples = folder.path / "examples.jsonl"
        rows = [json.loads(line) | {"reasoning": "It says so."} for line in examples.read_text().splitlines()]
        examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        env = build_stage_context(folder, tmp_path / "home")
        yield Run(env, provider, tmp_path)
        env.store.close()


def _label(text: str) -> str:
    return next((label for label in LABELS if label in text.splitlines()[-1]), LABELS[0])


def set_filters(run: Run, **block: Any) -> None:
    path = run.env.folder.path / "task.yaml"
    task = yaml.safe_load(path.read_text())
    task["curation"]["filters"] = block
    path.write_text(yaml.safe_dump(task, sort_keys=False))


def scored(run: Run, key: str = "shop") -> pl.DataFrame:
    return run.env.lake.read(run.env.task_name, "scored_completions", key, SCORED)[0]


def test_a_score_is_computed_once_and_a_threshold_runs_no_slice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.update()
    before = run.env.lake.read_record(run.env.task_name, "scored_completions", "shop")
    asked = len(run.provider.requests)
    web = run.env.lake.read_record(run.env.task_name, "scored_completions", "web")
    assert before is not None
    assert web is not None
    assert "scorers" not in before.extra
    assert scored(run)["scores"].struct.field("reasoning_words").null_count() == 3

    set_filters(run, reasoning_words={"min": 2})
    assert run.stale()["scored_completions[shop]"] == ("score_settings is new",)
    made = run.update()
    assert made == ["scored_completions[shop]", "scored_completions[web]", "filtered_dataset"]
    assert run.dataset().height == 6
    words = scored(run)["scores"].struct.field("reasoning_words")
    assert words.null_count() == 0

    counted: list[int] = []
    real = kernel.count_words

    def count(texts: Any) -> Any:
        counted.append(len(texts))
        return real(texts)

    monkeypatch.setattr(kernel, "count_words", count)
    set_filters(run, reasoning_words={"min": 8})
    assert run.update() == ["filtered_dataset"]
    assert counted == []
    rejected = read_rejected_rows(run.env)
    assert set(rejected["drop_reason"]) == {"reasoning_length"}
    assert rejected.height + run.dataset().height == 6

    # One prompt more: it alone is scored.
    shop = run.env.folder.path / "slices" / "shop.yaml"
    shop.write_text(shop.read_text() + "- a second refund\n")
    run.update()
    assert counted == [1, 1]  # reasoning and answer of one row
    assert len(run.provider.requests) == asked + 1

    # Filters without scores again: the tables of the slices are as they were before there were any.
    set_filters(run)
    run.update()
    record = run.env.lake.read_record(run.env.task_name, "scored_completions", "web")
    assert record is not None
    assert record.data_version == web.data_version
    assert "score_settings" not in run.state().stages["scored_completions"].upstream
    assert run.stale() == {}


def test_the_last_good_rows_of_a_slice_get_the_scores_that_they_lack(run: Run) -> None:
    run.update()
    set_filters(run, answer_words={"min": 1, "max": 5}, own=[{"name": "long", "sql": "reasoning_words > 7"}])
    made = run.make("filtered_dataset")  # the slices themselves are stale and have no scores
    assert made.record.extra["reasons"]["long"] > 0
    assert made.record.extra["reasons"]["answer_length"] == 0
    table = made.shown["filters"]
    assert isinstance(table, SampleTable)
    shown: list[dict[str, Any]] = [*table.rows]
    assert [row["filter"] for row in shown][-1 - len(STEP_REASONS) :] == ["long", *STEP_REASONS]
    assert sum(row["dropped"] for row in shown) == made.record.extra["candidates"] - made.record.rows


def test_the_metadata_has_the_number_of_masked_rows(run: Run) -> None:
    shop = run.env.folder.path / "slices" / "shop.yaml"
    shop.write_text(shop.read_text() + "- a refund to jane.doe@example.org\n")
    set_filters(run, pii="mask")
    run.update()
    record = run.env.lake.read_record(run.env.task_name, "filtered_dataset")
    assert record is not None
    assert record.extra["masked_rows"] == 1
    dataset = run.env.lake.read(run.env.task_name, "filtered_dataset", None, DATASET)[0]
    assert "jane.doe" not in str(dataset.to_dicts())
    assert "a refund to <EMAIL>" in str(dataset.to_dicts())


@pytest.fixture
def distill(run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DISTILL_HOME", str(run.tmp_path / "home"))
    monkeypatch.setenv("DISTILL_TASKS", str(run.tmp_path / "tasks"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    return invoke


def test_distill_filters_lists_filters_and_counts(run: Run, distill: Any) -> None:
    before = distill("filters", "shop_mail")
    assert "never made" in before.stdout
    set_filters(run, reasoning_words={"min": 8}, own=[{"name": "no_web", "sql": "slice <> 'web'"}])
    run.update()
    said = distill("filters", "shop_mail", "--dropped", "reasoning_length", "--json")
    assert said.exit_code == 0
    found = json.loads(said.stdout.strip().splitlines()[-1])
    names = [row["filter"] for row in found["filters"]]
    assert names.index("truncated") < names.index("reasoning_words") < names.index("no_web") < names.index("duplicate")
    dropped = {row["filter"]: row["dropped"] for row in found["filters"]}
    assert dropped["reasoning_words"] == len(found["rows"]) > 0
    assert dropped["no_web"] > 0
    assert all(row["drop_detail"].endswith("words") for row in found["rows"])
    assert "min: 8" in said.stdout
    assert distill("filters", "shop_mail", "--dropped", "echo").exit_code == 1


def test_distill_explain_shows_the_history_of_a_row(run: Run, distill: Any) -> None:
    shop = run.env.folder.path / "slices" / "shop.yaml"
    shop.write_text(shop.read_text() + "- I  WANT a refund\n- please tell me of a refund that is late by many days\n")
    early = distill("explain", "shop_mail", "abcd")
    assert early.exit_code == 1
    set_filters(run, reasoning_words={"min": 8})
    run.update()
    rows = scored(run).to_dicts()

    def story(text: str) -> dict[str, Any]:
        id_ = next(row["prompt_id"] for row in rows if row["messages"][0]["content"] == text)
        said = distill("explain", "shop_mail", id_[:8], "--json")
        assert said.exit_code == 0, said.output
        return dict(json.loads(said.stdout))

    dropped = story("login asks twice")
    assert dropped["dropped"][0]["drop_reason"] == "reasoning_length"
    assert dropped["dropped"][0]["drop_detail"] == "7 words"
    assert dropped["slices"][0]["candidate"]["scores"]["reasoning_words"] == 7
    assert [one["status"] for one in dropped["slices"][0]["completions"]] == ["ok"]
    assert (dropped["kept"], dropped["duplicates"]) == ([], [])

    one, other = story("I want a refund"), story("I  WANT a refund")
    kept, repeat = (one, other) if one["kept"] else (other, one)
    assert [row["prompt_id"] for row in kept["duplicates"]] == [repeat["prompt_id"]]
    assert repeat["representative"] == kept["prompt_id"]
    assert kept["kept"][0]["split"] == "train"
    assert kept["dataset"]["state"] == "fresh"

    said = distill("explain", "shop_mail", dropped["prompt_id"][:8])
    assert "dropped by reasoning_length: 7 words" in said.stdout
    assert "login asks twice" in said.stdout
    assert "kept in train" in distill("explain", "shop_mail", kept["prompt_id"]).stdout
    for wrong, says in (("zz", "not the beginning"), ("ffffffffffff", "No prompt in the tables of shop_mail")):
        found = distill("explain", "shop_mail", wrong)
        assert found.exit_code == 1
        assert says in found.output


def test_the_dataset_is_the_same_if_candidates_are_not_held_in_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update()
    held, rejected = run.dataset(), read_rejected_rows(run.env)
    record = run.env.lake.read_record(run.env.task_name, "filtered_dataset")
    monkeypatch.setattr(dataset, "FILTER_BATCH_ROWS", 0)
    made = dataset.make_filtered_dataset(run.env, None)
    assert held.height == 6
    assert run.dataset().equals(held)
    assert read_rejected_rows(run.env).equals(rejected)
    assert record is not None
    assert made.record.data_version == record.data_version
