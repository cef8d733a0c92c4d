"""What a teacher took per prompt, from its completions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distill_dagster.config import Task
from distill_dagster.pipeline.distillation_cost import build_teacher_facts, measure_teacher_use
from distill_dagster.tables.schemas import COMPLETIONS, build_frame
from tests.support.task import TASK, merge_settings


def build_row(prompt: str, sample: int, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(COMPLETIONS) | {"prompt_id": prompt, "slice": "s", "sample_index": sample}
    answered = {"status": "ok", "prompt_tokens": 100, "completion_tokens": 10, "cost_usd": 0.002}
    return row | answered | {"latency_s": 3.6, "in_flight": 2} | values


LOST = dict.fromkeys(("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "in_flight")) | {
    "status": "failed",
    "error": "timeout",
}


def measure(model: str, *rows: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The use of the teacher, and its facts in the report."""
    task = Task.model_validate(merge_settings(TASK, {"teacher": {"model": model}}))
    env = cast("Any", SimpleNamespace(folder=SimpleNamespace(task=task)))
    [(name, _)] = task.list_teachers()
    completions = build_frame([row | {"teacher": name} for row in rows], COMPLETIONS, ("prompt_id", "sample_index"))
    uses = measure_teacher_use(env, completions, [])
    return uses[name], build_teacher_facts(task, uses)


GIVEN = [build_row(prompt, sample) for prompt in ("a", "b") for sample in (0, 1)]


@pytest.mark.parametrize(
    "lost", [[build_row("c", 0, **LOST), build_row("c", 1, **LOST)], [build_row("c", 0, **LOST), build_row("c", 1)]]
)
@pytest.mark.parametrize(
    ("model", "usd"), [("openai/big", 4.0), ("embedded/smollm2-135m-instruct", 1000 * 3.6 / 3600 * 0.1)]
)
def test_a_request_that_failed_makes_no_cost_unknown_or_lower(
    lost: list[dict[str, Any]], model: str, usd: float
) -> None:
    """One timeout among the golden prompts: an answer costs what the answers cost."""
    whole, facts = measure(model, *GIVEN)
    assert facts == {"cost_usd_per_1k": pytest.approx(usd), "tokens_per_request": 220}
    with_lost, facts_with_lost = measure(model, *GIVEN, *lost)
    assert facts_with_lost == facts
    assert with_lost == whole | {"prompts": 3}


def test_an_answer_without_a_price_or_without_any_answer_has_an_unknown_cost() -> None:
    free = [row | {"cost_usd": None} for row in GIVEN]
    assert measure("openai/big", *free)[1]["cost_usd_per_1k"] is None
    use, facts = measure("openai/big", build_row("a", 0, **LOST))
    assert (use["prompts"], use["usd"], use["seconds"], facts["cost_usd_per_1k"]) == (1, None, None, None)
