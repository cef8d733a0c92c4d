"""Which answers lose against the answer that the dataset keeps."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from distill_dagster.curation.dataset.preference_pairs import build_preference_pairs
from distill_dagster.tables.messages import append_answer, make_user_messages
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREFERENCE_PAIRS, build_frame
from tests.support.kinds import build_task


def build_completions(prompt_id: str, answers: list[Any], teachers: list[str] | None = None) -> list[dict[str, Any]]:
    return [
        dict.fromkeys(COMPLETIONS)
        | {
            "completion_id": f"{prompt_id}-{n}",
            "prompt_id": prompt_id,
            "slice": "shop",
            "teacher": teachers[n] if teachers else "large",
            "sample_index": n,
            "status": "ok" if answer is not None else "failed",
            "reasoning": f"why {n}",
            "answer": None if answer is None else json.dumps(answer),
        }
        for n, answer in enumerate(answers)
    ]


def build_row(prompt_id: str, answer: Any, samples: int, split: str = "train") -> dict[str, Any]:
    return dict.fromkeys(DATASET) | {
        "prompt_id": prompt_id,
        "slice": "shop",
        "origin": "human",
        "messages": append_answer(make_user_messages(f"prompt {prompt_id}"), str(answer)),
        "answer": json.dumps(answer),
        "reasoning": "why it is",
        "weight": 1.0,
        "split": split,
        "teacher": "large",
        "completion_ids": [f"{prompt_id}-{n}" for n in range(samples)] or None,
    }


def pair(task: Any, rows: list[dict[str, Any]], completions: list[dict[str, Any]]) -> pl.DataFrame:
    dataset = build_frame(rows, DATASET, ("prompt_id",))
    frame = build_frame(completions, COMPLETIONS, ("completion_id",)).lazy()
    halves = [frame.filter(pl.col("prompt_id") < "m"), frame.filter(pl.col("prompt_id") >= "m")]
    return build_preference_pairs(task, dataset, halves)


def test_answers_that_lost_are_paired_the_most_frequent_first() -> None:
    task = build_task("math", reasoning=True)
    rows = [build_row("a", 7, 6), build_row("z", 3, 2), build_row("same", 1, 3), build_row("person", 5, 0)]
    completions = [
        *build_completions("a", [7, 9, 8, 7.0, 8.0, None]),
        *build_completions("z", [4, 3], ["small", "large"]),
        *build_completions("same", [1, 1, 1]),
    ]
    found = pair(task, rows, completions)
    assert found.schema == PREFERENCE_PAIRS
    columns = ("prompt_id", "rank", "answer", "rejected_answer", "samples", "rejected_teacher", "rejected_reasoning")
    assert found.select(columns).rows() == [
        ("a", 1, "7", "8", 2, "large", "why 2"),  # 8.0 equals 8, and counts with it
        ("a", 2, "7", "9", 1, "large", "why 1"),
        ("z", 1, "3", "4", 1, "small", "why 0"),  # the weaker teacher's
    ]
    assert found["messages"].to_list()[0] == make_user_messages("prompt a")


def test_only_training_rows_and_their_own_completions_give_pairs() -> None:
    task = build_task("classification")
    rows = [build_row("a", "refund", 2, split="validation"), build_row("b", "refund", 2)]
    completions = [*build_completions("a", ["refund", "delivery"]), *build_completions("b", ["refund", "delivery"])]
    completions += build_completions("c", ["refund", "delivery"])  # its row was dropped
    late = build_completions("b", ["refund", "refund", "delivery"])[2:]  # the row was chosen without it
    found = pair(task, rows, completions + late)
    assert found["rejected_completion_id"].to_list() == ["b-1"]


@pytest.mark.parametrize("mode", [None, "score", "best_of"])
def test_a_free_text_loses_only_before_a_judge_that_chose(mode: str | None) -> None:
    judge = {"judge": {"model": "openai/x", "mode": mode, "rubric": [{"name": "clear", "description": "it is clear"}]}}
    task = build_task("summarization", **(judge if mode else {}))
    found = pair(task, [build_row("a", "Short.", 2)], build_completions("a", ["Short.", "Quite another text."]))
    assert found["rejected_answer"].to_list() == (['"Quite another text."'] if mode == "best_of" else [])


@pytest.mark.parametrize("action", ["mask", "drop"])
def test_private_data_of_a_rejected_answer_is_masked(action: str) -> None:
    """No filter has seen it: filters read the answer that is kept."""
    task = build_task("qa", reasoning=True, curation={"filters": {"pii": action}})
    completions = build_completions("a", ["Lisbon", "ask jane.doe@example.org"])
    completions[1]["reasoning"] = "jane.doe@example.org knows"
    found = pair(task, [build_row("a", "Lisbon", 2)], completions)
    assert found.select("rejected_answer", "rejected_reasoning").rows() == [('"ask <EMAIL>"', "<EMAIL> knows")]


def test_a_prompt_of_two_slices_is_paired_once() -> None:
    """Its completions are stored for both slices, under the same ids."""
    task = build_task("classification")
    completions = build_completions("a", ["refund", "delivery"])
    slices = [completions, [row | {"slice": "web"} for row in completions]]
    frames = [build_frame(rows, COMPLETIONS, ("completion_id",)).lazy() for rows in slices]
    found = build_preference_pairs(task, build_frame([build_row("a", "refund", 2)], DATASET, ("prompt_id",)), frames)
    assert found.select("prompt_id", "slice", "rank").rows() == [("a", "shop", 1)]


@pytest.mark.parametrize(
    ("kind", "answers", "kept", "rejected"),
    [
        ("qa", ["ask a@example.org", "ask b@example.org", "ask Jane", "at c@example.org"], "ask <EMAIL>", None),
        ("math", [4111111111111111, 5500005555555559, 7], "<CARD>", ["7"]),
    ],
)
def test_answers_are_compared_with_private_data_masked(
    kind: str, answers: list[Any], kept: str, rejected: list[str] | None
) -> None:
    """The dataset has the row's own answer masked, so the completion behind it is not another answer."""
    task = build_task(kind, curation={"filters": {"pii": "mask"}})
    found = pair(task, [build_row("a", kept, len(answers))], build_completions("a", answers))
    assert found["rejected_answer"].to_list() == (rejected or ['"ask Jane"', '"at <EMAIL>"'])
