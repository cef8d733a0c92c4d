"""The stages from files to dataset, run in order as the assets run them, with the fake provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.text import normalize_text
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import MERGING_STAGE, REJECTED_ROWS
from distill_dagster.pipeline.stages import dataset, gate, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageResult
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PROMPT_CONTEXT, REJECTED, SCORED, TEACHER_PRIOR
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.stages import DATA_STAGES
from tests.support.task import LABELS, build_stage_context, jsonl, pass_gate, reload_folder, write_small_task


def read_rejected_rows(env: StageContext) -> pl.DataFrame:
    return env.lake.read(env.task_name, MERGING_STAGE, REJECTED_ROWS, REJECTED)[0]


@dataclass
class Run:
    """A task that is brought up to date again and again. Each time its files are read again."""

    env: StageContext
    provider: FakeProvider
    tmp_path: Path

    def state(self) -> TaskState:
        return TaskState(reload_folder(self.env.folder), self.env.lake)

    def make(self, asset: str, partition: str | None = None) -> StageResult:
        fresh = StageContext(**(vars(self.env) | {"folder": reload_folder(self.env.folder)}))
        return DATA_STAGES[asset](fresh, partition)

    def stale(self) -> dict[str, tuple[str, ...]]:
        return {
            s.name: s.why
            for s in self.state().list_statuses(students=[])
            if s.state != "fresh" and s.asset in DATA_STAGES
        }

    def update(self) -> list[str]:
        """Make everything that is not fresh, in order, and return the names of these artifacts."""
        now = self.state()
        every = [(asset, partition) for asset in DATA_STAGES for partition in now.list_partitions(now.stages[asset])]
        made = [self.make(*one).record for one in every if self.state().get_status(*one).state != "fresh"]
        return [format_artifact_name(record.asset, record.partition) for record in made]

    def dataset(self) -> pl.DataFrame:
        return self.env.lake.read(self.env.task_name, "filtered_dataset", None, DATASET)[0]


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations and plots take most of the time, so only one test has them."""
    if getattr(request, "param", True):
        for module in (prompts, teacher, scores, gate, dataset):
            monkeypatch.setattr(module, "check_table", lambda *_: CheckResult("valid_table", True))
        monkeypatch.setattr(plots, "plot_counts", lambda *_: b"")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with FakeProvider(LABELS) as provider:
        settings = {"api_base": provider.url, "calibration": "examples", "calibration_items": 1}
        curation_ = {"min_rows": 3, "validation_share": 0, "mix_examples": False}
        folder = write_small_task(tmp_path, teacher=settings, curation=curation_)
        env = build_stage_context(folder, tmp_path / "home")
        yield Run(env, provider, tmp_path)
        env.store.close()


@pytest.mark.parametrize("plain", [False], indirect=True, ids=["all checks"])
def test_from_files_to_dataset_and_requests_after_a_change(run: Run) -> None:
    assert len(run.update()) == 11
    assert run.stale() == {}
    dataset = run.dataset()
    assert dataset.height == 6
    for row in dataset.iter_rows(named=True):
        assert json.loads(row["answer"]) in get_user_text(row["messages"])
    # 6 seeds, 12 golden and dev rows, 3 examples left out of each draw; two draws.
    assert len(run.provider.requests) == 2 * (6 + 12 + 3)
    purposes = dict(run.env.store.read_ledger()["purpose"].value_counts().iter_rows())
    assert purposes == {"slices": 2 * 6, "golden": 2 * 12, "prior": 2 * 3}

    # A seed more: its prompt alone is asked for, and only what follows from it is made again.
    shop = run.env.folder.path / "slices" / "shop.yaml"
    shop.write_text(shop.read_text() + "- a second refund\n")
    asked = len(run.provider.requests)
    assert run.update() == [
        "seed_prompts[shop]", "teacher_completions[shop]", "scored_completions[shop]", "filtered_dataset"
    ]  # fmt: skip
    assert {seen.text for seen in run.provider.requests[asked:]} == {"a second refund"}
    assert run.dataset().height == 7

    # White space and comments: nothing.
    shop.write_text(f"# seeds\n{shop.read_text()}\n")
    assert run.update() == []

    # A removed slice leaves the dataset, and no request is made.
    (run.env.folder.path / "slices" / "web.yaml").unlink()
    assert run.update() == ["filtered_dataset"]
    assert set(run.dataset()["slice"]) == {"shop"}
    assert len(run.provider.requests) == asked + 2


def test_the_same_files_and_answers_give_the_same_tables(run: Run, tmp_path: Path) -> None:
    run.update()
    requests = len(run.provider.requests)
    lake, other = run.env.lake, build_stage_context(run.env.folder, tmp_path / "other")
    second = Run(StageContext(**(vars(other) | {"store": run.env.store})), run.provider, tmp_path)
    second.update()
    assert len(run.provider.requests) == requests
    for status in run.state().list_statuses(students=[]):
        if status.asset in DATA_STAGES:
            record = second.env.lake.read_record(run.env.task_name, status.asset, status.partition)
            assert record is not None
            assert status.record is not None
            assert record.data_version == status.record.data_version, status.name
            assert record.inputs == status.record.inputs
    mine = read_rejected_rows(run.env)
    assert compute_data_version(mine) == compute_data_version(read_rejected_rows(second.env))
    assert lake.root != second.env.lake.root
    other.store.close()


def test_no_golden_or_dev_text_is_shown_or_learned_from(run: Run) -> None:
    folder = run.env.folder
    with (folder.path / "examples.jsonl").open("a") as handle:
        handle.write('{"id": "leak", "text": "HELD OUT:  please refund me", "label": "refund"}\n')
    shop = folder.path / "slices" / "shop.yaml"
    shop.write_text(shop.read_text() + "- 'Tried: login\u00a0fails'\n")
    run.update()
    fresh = reload_folder(folder)
    held_out = {normalize_text(row.text) for row in [*fresh.golden, *fresh.dev]}
    context = run.env.lake.read(folder.name, "prompt_context", None, PROMPT_CONTEXT)[0]
    assert dict(context.select("id", "removed").iter_rows())["leak"] == "contaminated"
    for seen in run.provider.requests:
        shown = [normalize_text(line.rpartition(" => ")[0]) for line in seen.body["prompt"].splitlines()[:-1]]
        assert shown
        assert not set(shown) & held_out
    assert not {normalize_text(get_user_text(r["messages"])) for r in run.dataset().to_dicts()} & held_out
    rejected = read_rejected_rows(run.env)
    assert rejected["drop_reason"].to_list() == ["contaminated"]


def test_human_answers_are_in_the_dataset(run: Run) -> None:
    task = run.env.folder.path / "task.yaml"
    task.write_text(task.read_text().replace("mix_examples: false", "mix_examples: true"))
    # The teacher would say refund, and in this slice nobody can be surer.
    row = {"id": "h", "text": "I want a REFUND", "label": "login", "slice": "web"}
    (run.env.folder.path / "human.jsonl").write_text(json.dumps(row) + "\n")
    run.update()
    rows = run.dataset().to_dicts()
    assert len(rows) == 6 + 9
    assert {get_user_text(r["messages"]): r["answer"] for r in rows if r["teacher"] is None}[
        "I want a REFUND"
    ] == '"login"'
    [rejected] = read_rejected_rows(run.env).to_dicts()
    assert (rejected["drop_reason"], rejected["slice"]) == ("duplicate", "shop")


def test_human_rows_are_left_out_on_demand_and_the_switch_cuts_the_dataset_again(run: Run) -> None:
    row = {"id": "h", "text": "what is my invoice for", "label": "login", "slice": "web"}
    (run.env.folder.path / "human.jsonl").write_text(json.dumps(row) + "\n")
    run.update()
    assert [r["answer"] for r in run.dataset().to_dicts() if r["teacher"] is None] == ['"login"']
    asked = len(run.provider.requests)
    task = run.env.folder.path / "task.yaml"
    mixed = task.read_text()
    task.write_text(mixed.replace("mix_examples: false", "mix_examples: false\n  mix_human: false"))
    assert run.stale() == {"filtered_dataset": ("curation_settings changed",)}
    run.update()
    assert all(r["teacher"] is not None for r in run.dataset().to_dicts())
    task.write_text(mixed.replace("mix_examples: false", "mix_examples: false\n  mix_human: true"))
    run.update()
    assert sum(r["teacher"] is None for r in run.dataset().to_dicts()) == 1
    assert len(run.provider.requests) == asked


def test_failures_are_counted_and_healed(run: Run) -> None:
    task = run.env.folder.path / "task.yaml"
    task.write_text(task.read_text().replace("max_retries: 1", "max_retries: 0\n  min_success: 0.5"))
    run.provider.fail = lambda seen, _: Fault(500) if seen.text == "login asks twice" else None
    run.update()
    record = run.env.lake.read_record(run.env.task_name, "teacher_completions", "shop")
    assert record is not None
    assert record.missing_rows == 1
    assert run.stale() == {"teacher_completions[shop]": ("1 row has no answer yet",)}
    assert read_rejected_rows(run.env)["drop_reason"].to_list() == ["no_answer"]
    assert run.update() == ["teacher_completions[shop]"]  # still failing: nothing after it changes
    run.provider.fail = None
    asked = len(run.provider.requests)
    assert run.update() == ["teacher_completions[shop]", "scored_completions[shop]", "filtered_dataset"]
    assert len(run.provider.requests) == asked + 2
    assert run.dataset().height == 6


def test_a_dataset_that_is_too_small_is_blocked(run: Run) -> None:
    task = run.env.folder.path / "task.yaml"
    task.write_text(task.read_text().replace("min_rows: 3", "min_rows: 30"))
    run.update()
    record = run.env.lake.read_record(run.env.task_name, "filtered_dataset")
    assert record is not None
    assert record.extra["blocked"] == ["enough_rows"]
    inputs = teacher.StageInputs(run.env, "student_adapter", "tiny")
    with pytest.raises(DistillError, match=r"filtered_dataset did not pass its blocking check enough_rows"):
        inputs.read_table("filtered_dataset", DATASET)


def test_a_stage_before_its_inputs_says_what_to_run(run: Run) -> None:
    with pytest.raises(DistillError, match="prompt_context has not been materialized yet"):
        run.make("golden_completions")
    with pytest.raises(DistillError, match="No slice of shop_mail has scored completions yet"):
        run.make("filtered_dataset")
    assert run.provider.requests == []


def test_calibration_asks_about_examples_that_are_not_in_the_prompt(run: Run) -> None:
    for asset in ("prompt_context", "teacher_prior"):
        run.make(asset)
    prior = run.env.lake.read(run.env.task_name, "teacher_prior", None, TEACHER_PRIOR)[0]
    assert prior.group_by("sample_index").agg(pl.col("prob").sum().round(6))["prob"].to_list() == [1.0, 1.0]
    assert set(prior["items"]) == {3}
    for seen in run.provider.requests:
        assert seen.text not in "".join(seen.body["prompt"].splitlines()[:-1])


def test_a_prior_from_part_of_the_examples_is_asked_for_again(run: Run) -> None:
    run.make("prompt_context")
    whole, run.env = run.env, replace(run.env, cap=BudgetSpec(tokens=100))
    result = run.make("teacher_prior")
    sent = len(run.provider.requests)
    assert 0 < sent < 6, "the cap is reached within the calibration"
    assert 0 < result.record.missing_rows <= 3
    assert "budget.tokens" in str(result.shown["stopped"])
    assert [check.passed for check in result.checks if check.name == "no_missing_rows"] == [False]
    assert any("have no answer yet" in why for why in run.stale()["teacher_prior"])
    run.env = whole
    assert run.make("teacher_prior").record.missing_rows == 0
    assert len(run.provider.requests) == 6
    assert "teacher_prior" not in run.stale()


def test_reasoning_can_be_switched_on_after_the_pool_was_made(tmp_path: Path) -> None:
    """The pool has the same columns for all tasks, since it does not depend on the task's settings."""
    with FakeProvider(LABELS, answer=lambda _: '{"reasoning": "It says so.", "answer": "refund"}') as provider:
        settings = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "max_tokens": 100}
        folder = write_small_task(tmp_path, teacher=settings)
        examples = folder.path / "examples.jsonl"
        rows = [json.loads(line) | {"reasoning": "It says so."} for line in examples.read_text().splitlines()]
        examples.write_text(jsonl(rows))
        run = Run(build_stage_context(folder, tmp_path / "home"), provider, tmp_path)
        run.make("prompt_context")
        task = folder.path / "task.yaml"
        task.write_text(task.read_text() + "reasoning: true\n")
        assert "prompt_context" not in run.stale()
        assert run.make("golden_completions").record.missing_rows == 0
        run.env.store.close()


def test_votes_are_divided_by_the_votes_of_the_teacher_on_examples(tmp_path: Path) -> None:
    """A teacher that answers refund whenever it sees its second draw."""

    def prejudiced(seen: ReceivedRequest) -> str:
        named = next(label for label in LABELS if label in seen.text)
        return "refund" if seen.body["seed"] % 2 else named

    with FakeProvider(LABELS, answer=prejudiced) as provider:
        votes = {"soft_labels": "votes", "samples": 2, "temperature": 0.7}
        settings = {"api_base": provider.url, "calibration": "examples", "calibration_items": 1} | votes
        curation_ = {"min_rows": 1, "validation_share": 0, "mix_examples": False}
        env = build_stage_context(write_small_task(tmp_path, teacher=settings, curation=curation_), tmp_path / "home")
        run = Run(env, provider, tmp_path)
        for asset in ("prompt_context", "teacher_prior"):
            run.make(asset)
        assert len(provider.requests) == 3 * 4, "three examples, two draws of two samples"
        prior = run.env.lake.read(run.env.task_name, "teacher_prior", None, TEACHER_PRIOR)[0]
        shares = {(s, label): (round(p, 6), n) for s, label, p, n in prior.iter_rows()}
        assert [shares[0, label] for label in LABELS] == [shares[2, label] for label in LABELS] == [(0.333333, 6)] * 3
        assert [shares[3, label] for label in LABELS] == [
            (round(7 / 9, 6), 6),
            (round(1 / 9, 6), 6),
            (round(1 / 9, 6), 6),
        ]
        pass_gate(env)
        for asset in ("seed_prompts", "teacher_completions", "scored_completions"):
            run.make(asset, "shop")
        rows = run.env.lake.read(run.env.task_name, "scored_completions", "shop", SCORED)[0].to_dicts()
        found = {get_user_text(row["messages"]): {e["label"]: e["prob"] for e in row["soft_labels"]} for row in rows}
        # Two votes of 3 for what stands there, two of 9/7 for refund; plain votes would be a tie.
        assert found["a delivery arrived broken"] == {"delivery": 0.7, "refund": 0.3}
        assert found["I want a refund"] == {"refund": 1.0}
        env.store.close()


def test_stated_probabilities_are_divided_by_those_of_the_examples(tmp_path: Path) -> None:
    """A teacher that states 0.6 for refund whatever it sees, and has a table of one row per label for it."""

    def prejudiced(seen: ReceivedRequest) -> str:
        named = next(label for label in LABELS if label in seen.text)
        shares = {"refund": 0.6, named: 0.4} if named != "refund" else {"refund": 1.0}
        return json.dumps({"probabilities": shares})

    with FakeProvider(LABELS, answer=prejudiced) as provider:
        stated = {"api": "chat", "soft_labels": "verbalized", "max_tokens": 64, "few_shot": {"draws": 1}}
        settings = {"api_base": provider.url, "calibration": "examples", "calibration_items": 1} | stated
        env = build_stage_context(write_small_task(tmp_path, teacher=settings), tmp_path / "home")
        run = Run(env, provider, tmp_path)
        for asset in ("prompt_context", "teacher_prior"):
            run.make(asset)
        prior = run.env.lake.read(run.env.task_name, "teacher_prior", None, TEACHER_PRIOR)[0]
        found = {label: prob for _, label, prob, _ in prior.iter_rows()}
        # One answer for each label, and one vote for each: refund has 1 + 1 + 2 * 0.6 of 6.
        assert found == pytest.approx({"refund": 3.2 / 6, "delivery": 1.4 / 6, "login": 1.4 / 6}, abs=1e-6)
        pass_gate(env)
        for asset in ("seed_prompts", "teacher_completions", "scored_completions"):
            run.make(asset, "shop")
        rows = run.env.lake.read(run.env.task_name, "scored_completions", "shop", SCORED)[0].to_dicts()
        answers = {get_user_text(row["messages"]): json.loads(row["answer"]) for row in rows}
        assert answers["a delivery arrived broken"] == "delivery", "the teacher said refund"
        assert answers["I want a refund"] == "refund"
        env.store.close()


def test_golden_is_asked_with_the_first_rows_alone(run: Run) -> None:
    task = run.env.folder.path / "task.yaml"
    task.write_text(task.read_text() + "evaluation:\n  latency_items: 2\n")
    run.provider.pause_s = 0.02
    run.make("prompt_context")
    run.make("golden_completions")
    table = run.env.lake.read(run.env.task_name, "golden_completions", None, COMPLETIONS)[0]
    assert table.height == 24
    assert set(table["slice"]) == {"golden", "dev"}
    alone = table.filter(pl.col("in_flight") == 1)
    assert alone.height >= 4
    assert [seen.text.startswith("held out:") for seen in run.provider.requests[:4]] == [True] * 4
