"""Estimates of requests, compared with the requests that are then sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from distill_dagster.config import TeacherSpec
from distill_dagster.pipeline.stages import prompts
from distill_dagster.pipeline.stages import teacher as stages
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.schemas import COMPLETIONS
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.ask import run_ask
from distill_dagster.teacher.asking.estimate import GOLDEN_AND_DEV, Estimate, estimate_requests, sum_estimates
from distill_dagster.teacher.providers.prices import TokenPrice, find_price
from tests.support.kind_folder import write_kind_folder
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, build_asker, build_stage_context, pass_gate, write_small_task
from tests.support.waiting import HANG_S

PRICE = {"input_usd": 2.0, "output_usd": 8.0}


@pytest.fixture
def env(tmp_path: Path, provider: FakeProvider) -> Iterator[StageContext]:
    teacher = {"api_base": provider.url, "price": PRICE, "requests_per_minute": 120, "api": "chat"}
    folder = write_small_task(tmp_path, teacher=teacher | {"soft_labels": "votes", "few_shot": {"draws": 2}})
    env = build_stage_context(TaskFolder(folder.path, tmp_path / "accepted"), tmp_path / "home")
    yield env
    env.store.close()


def estimated(env: StageContext, **more: Any) -> list[Estimate]:
    folder = TaskFolder(env.folder.path, env.folder.accepted)
    return estimate_requests(folder, env.store, folder.list_slice_keys(), lambda _: None, **more)


def test_the_estimate_is_an_upper_bound(env: StageContext, provider: FakeProvider) -> None:
    before = {one.slice: one for one in estimated(env, golden=True)}
    assert list(before) == [GOLDEN_AND_DEV, "shop", "web"]
    shop = before["shop"]
    assert (shop.prompts, shop.calls, shop.cached, shop.purpose) == (3, 6, 0, "answers")
    assert shop.wall_s == 3.0  # six at 120 a minute
    assert provider.requests == []
    prompts.make_prompt_context(env, None)
    prompts.make_seed_prompts(env, "shop")
    pass_gate(env)
    made = stages.make_teacher_completions(env, "shop")
    assert made.record.extra["teacher_calls"] == shop.calls
    frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
    assert frame.select("prompt_tokens", "completion_tokens").sum_horizontal().sum() <= shop.tokens
    assert shop.usd is not None
    assert 0 < made.record.extra["spent_usd"] <= shop.usd
    after = next(one for one in estimated(env) if one.slice == "shop")
    assert (after.calls, after.cached, after.tokens, after.usd, after.wall_s) == (0, 6, 0, 0.0, 0.0)


def test_the_sum_of_estimates(env: StageContext) -> None:
    found = estimated(env, golden=True)
    whole = sum_estimates(found)
    assert whole["teacher_calls"] == sum(one.calls for one in found)
    assert whole["usd"] == pytest.approx(sum(one.usd or 0 for one in found))
    assert whole["wall_s"] == sum(one.wall_s or 0 for one in found)


def change(env: StageContext, **changes: Any) -> None:
    path = env.folder.path / "task.yaml"
    task = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        task[name] = task.get(name, {}) | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(task, sort_keys=False))


def test_cost_and_time_are_unknown_without_price_and_limit(env: StageContext) -> None:
    change(env, teacher={"price": None, "requests_per_minute": None})
    found = estimated(env)
    assert {(one.usd, one.wall_s) for one in found} == {(None, None)}
    assert all(one.tokens > 0 for one in found)
    assert sum_estimates(found)["usd"] is None


def test_prompts_to_be_imagined_and_the_judge_count(env: StageContext) -> None:
    change(env, imagine={"per_request": 2, "max_rounds": 3}, judge={"model": "openai/gpt-4o-mini"})
    change(env, judge={"rubric": [{"name": "clear", "description": "Is it clear?"}]})
    path = env.folder.path / "slices" / "shop.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"target": 8}))
    rows = {(one.slice, one.purpose): one for one in estimated(env)}
    assert rows["shop", "answers"].calls == (3 + 5) * 2
    assert (rows["shop", "imagining"].prompts, rows["shop", "imagining"].calls) == (5, 3 * 3)
    assert rows["shop", "judging"].prompts == 8
    assert rows["shop", "judging"].usd is not None, "litellm knows the price of this judge"
    assert ("web", "imagining") not in rows
    assert not any(one.purpose == "comparing" for one in estimated(env, golden=True))
    change(env, evaluation={"judged_items": 4})
    compared = next(one for one in estimated(env, golden=True) if one.purpose == "comparing")
    assert (compared.prompts, compared.calls) == (4, 4 * 2 * 2), "both orders, and each once more at most"
    assert compared.usd is not None
    assert not any(one.purpose == "comparing" for one in estimated(env))
    frame = pl.DataFrame([vars(one) for one in rows.values()])
    assert frame.filter(pl.col("calls") > 0)["tokens"].min() > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model", "more", "known"),
    [
        ("openai/gpt-4o-mini", {}, True),
        ("anthropic/claude-sonnet-4-5", {}, True),
        ("bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0", {}, True),
        ("openai/my-model", {"api_base": "http://127.0.0.1:8000/v1"}, False),
        ("ollama/llama3", {}, False),  # a 0 in the list
        ("openai/my-model", {"api_base": "http://127.0.0.1:8000/v1", "price": PRICE}, True),
    ],
)
def test_prices_are_those_of_litellm_or_declared(model: str, more: dict[str, Any], known: bool) -> None:
    import litellm

    spec = TeacherSpec(model=model, **more)
    price = find_price(spec)
    assert (price is not None) is known
    if price is not None and "price" not in more:
        theirs = litellm.cost_per_token(model=model, prompt_tokens=10**6, completion_tokens=10**6)
        assert (price.input_usd, price.output_usd) == pytest.approx(theirs)
    if price is not None and "price" in more:
        assert price == TokenPrice(2.0, 8.0)


def test_the_declared_price_of_a_recording_is_billed_nowhere() -> None:
    """Not even reserved: a cap in USD must not stop answers that cost nothing. The report uses the price."""
    spec = TeacherSpec.model_validate({"model": "replay/big", "price": {"input_usd": 2.0, "output_usd": 10.0}})
    assert find_price(spec) == TokenPrice(0.0, 0.0)


def test_an_own_server_has_a_price_without_litellm() -> None:
    code = (
        "import sys; from distill_dagster.config import TeacherSpec;"
        "from distill_dagster.teacher.providers.prices import find_price;"
        "print(find_price(TeacherSpec(model='openai/gpt-4o', api_base='http://x/v1')), 'litellm' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert said.stdout.split()[-1] == "False"
    assert "input_usd=2.5" in said.stdout


def test_stored_free_text_answers_are_found(tmp_path: Path) -> None:
    """Few-shot examples with answers and reasoning are part of these requests."""
    with FakeProvider(LABELS, answer=lambda _: "Lisbon") as provider:
        folder = write_kind_folder(tmp_path, "qa", provider.url)
        env = build_stage_context(folder, tmp_path / "home")
        prompts_table = build_seed_prompts("one", folder.read_slice("one"))
        sent = run_ask(build_asker(folder, env.store), prompts_table).usage.calls
        [estimate] = estimate_requests(folder, env.store, ["one"], lambda _: None)
        assert (estimate.calls, estimate.cached) == (0, sent)
        env.store.close()
