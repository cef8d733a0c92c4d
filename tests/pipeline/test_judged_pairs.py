"""The stage judged_pairs: what the judge is shown, what it is not asked about, and what a second run pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import InputError
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.judged_pairs import make_judged_pairs
from distill_dagster.tables.schemas import JUDGED_PAIRS, PREDICTIONS, build_frame
from tests.support.imagining import get_request_text
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS, build_stage_context, reload_folder, write_small_task

JUDGE = {"model": "openai/judge", "rubric": [{"name": "kind", "description": "it is kind"}], "max_retries": 0}
ANSWERS = {  # item: the student's answer, the teacher's
    "g-refund-0": ("delivery", "refund"),
    "g-refund-1": ("login", "refund"),
    "g-delivery-0": ("delivery", "delivery"),
    "g-delivery-1": (None, "delivery"),
    "g-login-0": ("login", None),
    "g-login-1": ("refund", "delivery"),
}


def open_context(tmp_path: Path, provider: FakeProvider, **judge: Any) -> StageContext:
    spec = JUDGE | {"api_base": provider.url, "terms": {"acknowledged": True}} | judge
    folder = write_small_task(tmp_path, judge=spec, evaluation={"judged_items": 6, "bootstrap_samples": 100})
    env = build_stage_context(folder, tmp_path / "home")
    rows = []
    for row in folder.golden:
        for system, answer in zip(("distilled", "teacher"), ANSWERS[row.id], strict=True):
            plain: dict[str, Any] = dict.fromkeys(PREDICTIONS) | {"system": system, "item_id": row.id}
            plain |= {"split": "golden", "reference": row.answer_json, "correct": False}
            rows.append(plain | {"answer": None if answer is None else to_canonical_json(answer)})
    inputs = StageInputs(env, "predictions", "tiny")
    inputs._check_complete = lambda: None  # type: ignore[method-assign]  # its own inputs are not what this is about
    inputs.write_table(build_frame(rows, PREDICTIONS, ("split", "system", "item_id")), [])
    return env


def judge_by(choose: Callable[[str, str], int]) -> Callable[[ReceivedRequest], str]:
    """Answer with the place of the better of two answers, which are lines after `Answer 1:` and `Answer 2:`."""

    def answer(seen: ReceivedRequest) -> str:
        lines = get_request_text(seen).splitlines()
        first, second = (lines[lines.index(f"Answer {n}:") + 2] for n in (1, 2))
        return json.dumps({"reason": f"{first} or {second}", "best": choose(first, second)})

    return answer


def test_pairs_are_judged_in_both_orders_and_paid_for_once(tmp_path: Path) -> None:
    """The judge prefers an answer that is later in the alphabet, but of `login` and `refund` the first one shown."""

    def choose(first: str, second: str) -> int:
        return 1 if {first, second} == {"login", "refund"} or first > second else 2

    with FakeProvider(LABELS, answer=judge_by(choose)) as provider:
        env = open_context(tmp_path, provider)
        made = make_judged_pairs(env, "tiny")
        frame = env.lake.read(env.task_name, "judged_pairs", "tiny", JUDGED_PAIRS)[0]
        found = {
            item: (rows["decided_by"][0], dict(rows.select("shown_first", "winner").iter_rows()))
            for (item,), rows in frame.group_by("item_id")
        }
        assert found == {
            "g-refund-0": ("judge", {"distilled": "teacher", "teacher": "teacher"}),
            "g-refund-1": ("judge", {"distilled": "distilled", "teacher": "teacher"}),
            "g-login-1": ("judge", {"distilled": "distilled", "teacher": "distilled"}),
            "g-delivery-0": ("equal", {"distilled": None, "teacher": None}),
            "g-delivery-1": ("missing", {"distilled": "teacher", "teacher": "teacher"}),
            "g-login-0": ("missing", {"distilled": "distilled", "teacher": "distilled"}),
        }
        assert len(provider.requests) == 6, "three pairs, two orders"
        assert not any("distilled" in get_request_text(seen) for seen in provider.requests)
        assert all(check.passed for check in made.checks)
        shown = {name: made.shown[name] for name in ("items", "asked", "wins", "ties", "losses", "win_rate")}
        assert shown == {"items": 6, "asked": 6, "wins": 2, "ties": 2, "losses": 2, "win_rate": 0.5}
        assert made.shown["flip_rate"] == pytest.approx(1 / 3)
        ledger = env.store.read_ledger()
        assert set(ledger["purpose"]) == {"judge"}
        assert ledger.height == 6

        again = make_judged_pairs(env, "tiny")
        assert again.record.data_version == made.record.data_version
        assert len(provider.requests) == 6
        env.store.close()


def test_a_pair_without_an_answer_is_asked_again(tmp_path: Path) -> None:
    with FakeProvider(LABELS, answer=judge_by(lambda *_: 1)) as provider:
        env = open_context(tmp_path, provider, min_success=0.5)
        lost = "Answer 1:\n<<<\nlogin"
        provider.fail = lambda seen, _: Fault(500) if lost in get_request_text(seen) else None
        made = make_judged_pairs(env, "tiny")
        assert made.record.missing_rows == 1
        check = next(check for check in made.checks if check.name == "all_compared")
        assert (check.passed, check.severity, check.details["without_an_answer"]) == (False, "warning", 1)
        assert (made.shown["ties"], made.shown["items"]) == (3, 6), "two flips and one pair of equal answers"
        before, provider.fail = len(provider.requests), None
        made = make_judged_pairs(env, "tiny")
        assert (made.record.missing_rows, len(provider.requests) - before) == (0, 1)
        env.store.close()


def test_fewer_items_are_always_the_same_ones(tmp_path: Path) -> None:
    with FakeProvider(LABELS, answer=judge_by(lambda *_: 1)) as provider:
        env = open_context(tmp_path, provider)
        path, items = env.folder.path / "task.yaml", []
        text = path.read_text()
        for most in (2, 4):
            path.write_text(text.replace("judged_items: 6", f"judged_items: {most}"))
            make_judged_pairs(replace(env, folder=reload_folder(env.folder)), "tiny")
            frame = env.lake.read(env.task_name, "judged_pairs", "tiny", JUDGED_PAIRS)[0]
            items.append(set(frame["item_id"]))
        assert [len(found) for found in items] == [2, 4]
        assert items[0] < items[1]
        env.store.close()


def test_without_a_judge_the_setting_is_refused(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, evaluation={"judged_items": 5})
    with pytest.raises(InputError, match="judged_items needs a judge"):
        _ = folder.task
