"""The stage preference_pairs, and what a student with a preference phase gets from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core import plots
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stages import preference_pairs, students
from distill_dagster.student.types import PhaseLog, TrainingLog
from distill_dagster.tables.schemas import PREFERENCE_PAIRS
from tests.support.provider import FakeProvider, ReceivedRequest
from tests.support.stages import DATA_STAGES
from tests.support.task import LABELS, build_stage_context, write_small_task

STAGES = DATA_STAGES | {"preference_pairs": preference_pairs.make_preference_pairs}
STUDENT = {"model": "smollm2-135m-instruct", "architecture": "causal_lm", "then": [{"kind": "preference"}]}


def build_answer(says_login: str) -> Callable[[ReceivedRequest], str]:
    """A teacher that names the label in the text, but one time of three says login where this word is."""
    seen: dict[str, int] = {}

    def answer(request: ReceivedRequest) -> str:
        seen[request.text] = seen.get(request.text, 0) + 1
        if says_login in request.text and seen[request.text] == 2:
            return "login"
        return next((label for label in LABELS if label in request.text), "refund")

    return answer


@pytest.mark.parametrize("says_login", ["want", "no text has this"])
def test_a_sample_that_lost_the_vote_becomes_a_pair_of_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_login: str
) -> None:
    for name in ("plot_counts", "plot_lines"):
        monkeypatch.setattr(plots, name, lambda *_: b"")
    given: dict[str, Any] = {}

    def train(spec: Any, *args: Any, **_: Any) -> TrainingLog:
        given["then"], given["pairs"] = spec.then, args[8]
        args[4].joinpath("adapter.bin").write_bytes(b"weights")
        return TrainingLog(losses=[(1, 1, 1.0), (2, 1, 0.5)], phases=[PhaseLog("preference")] if spec.then else [])

    monkeypatch.setattr(students, "train_adapter", train)
    asking = {"api": "chat", "soft_labels": "votes", "samples": 3, "temperature": 0.7, "few_shot": {"draws": 1}}
    with FakeProvider(LABELS, answer=build_answer(says_login)) as provider:
        folder = write_small_task(
            tmp_path,
            teacher=asking | {"api_base": provider.url, "concurrency": 1},
            students={"tiny": STUDENT},
            curation={"min_rows": 1, "validation_share": 0},
        )
        env = build_stage_context(folder, tmp_path / "home")
        plan = TaskState(folder, env.lake)
        for asset, make in STAGES.items():
            made = [make(env, partition) for partition in plan.list_partitions(plan.stages[asset])]
        pairs = env.lake.read(env.task_name, "preference_pairs", None, PREFERENCE_PAIRS)[0]
        check = next(check for check in made[0].checks if check.name == "has_pairs")
        adapter = students.make_student_adapter(env, "tiny")
        env.store.close()
    learned = [(pair.kept.answer_label, pair.rejected.answer_label, pair.rejected.target) for pair in given["pairs"]]
    if says_login == "want":
        assert pairs.select("answer", "rejected_answer", "samples").rows() == [('"refund"', '"login"', 1)]
        assert learned == [("refund", "login", "login")]
        assert given["pairs"][0].kept.prompt.text == "I want a refund"
        assert check.passed
    else:
        assert (pairs.height, learned) == (0, [])
        assert (check.passed, check.severity) == (False, "warning")
        assert "teacher.samples" in check.details["why"]
    assert adapter.shown["phases"].rows[0]["phase"] == "preference"  # type: ignore[union-attr]
    assert "preference_pairs" in adapter.record.inputs
    students.make_seed_only_adapter(env, "tiny")
    assert given == {"then": [], "pairs": []}, "it learns from no teacher"
