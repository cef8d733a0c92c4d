"""Pair the answers that a dataset keeps with the answers of other completions that lost against them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.curation.dataset.mask import mask_completion
from distill_dagster.curation.filters import Filter, select_task_filters
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.kinds.free_text import FreeTextKind
from distill_dagster.tables.messages import split_answer
from distill_dagster.tables.schemas import PREFERENCE_PAIRS, build_frame

_READ = ["completion_id", "prompt_id", "slice", "teacher", "sample_index", "answer", "reasoning"]


def can_lose(task: Task) -> bool:
    """Whether another answer is a worse answer.

    Samples of a free text differ without being worse. They lose only if a judge chose the best of them.
    """
    is_free = isinstance(get_kind(task), FreeTextKind)
    return not is_free or (task.judge is not None and task.judge.mode == "best_of")


def build_preference_pairs(task: Task, dataset: pl.DataFrame, completions: Iterable[pl.LazyFrame]) -> pl.DataFrame:
    """Pair each training row with the other answers of its completions: other samples, or another teacher's.

    A completion counts if the row's candidate was chosen among it and others, its status is ok, and its answer is not
    equal to the row's under the kind's equality. Equal answers make one pair, with the text of the first of them. The
    private data that a filter of the task looks for is masked in every rejected answer before it is compared.

    Args:
        dataset: schema DATASET.
        completions: schema COMPLETIONS, one frame per slice.

    Returns:
        Schema PREFERENCE_PAIRS.
    """
    if not can_lose(task):
        return PREFERENCE_PAIRS.to_frame()
    kind, filters, view = get_kind(task), select_task_filters(task), TaskView.from_task(task)
    train = dataset.filter(pl.col("split") == "train", pl.col("completion_ids").list.len() > 1)
    rows = {(row["prompt_id"], row["slice"]): row for row in train.iter_rows(named=True)}
    # A prompt of two slices has the same completions in both, and the dataset has it once.
    ids = train.lazy().explode("completion_ids").select("slice", completion_id="completion_ids")
    pairs: list[dict[str, Any]] = []
    for frame in completions:
        usable = frame.filter(pl.col("status") == "ok", pl.col("answer").is_not_null()).select(_READ)
        asked = usable.join(ids, on=["slice", "completion_id"], how="semi")
        asked = asked.sort("prompt_id", "sample_index", "completion_id")
        for (prompt_id, key), samples in asked.collect().group_by("prompt_id", "slice", maintain_order=True):
            pairs += _pair_samples(kind, rows[str(prompt_id), str(key)], samples.to_dicts(), filters, view)
    return build_frame(pairs, PREFERENCE_PAIRS, ("prompt_id", "rank"))


def _pair_samples(
    kind: Kind, row: dict[str, Any], samples: list[dict[str, Any]], filters: Sequence[Filter], view: TaskView
) -> list[dict[str, Any]]:
    """The pairs of one training row, the most frequent rejected answer first."""
    kept = json.loads(row["answer"])
    groups: list[list[dict[str, Any]]] = []
    for sample in samples:
        if _are_equal(kind, json.loads(sample["answer"]), kept):
            continue
        answer_text, reasoning = mask_completion(sample["answer"], sample["reasoning"], filters, view)
        masked, answer = sample | {"answer": answer_text, "reasoning": reasoning}, json.loads(answer_text)
        if _are_equal(kind, answer, kept):  # the row's own answer, which is masked in the dataset
            continue
        group = next((g for g in groups if _are_equal(kind, answer, json.loads(g[0]["answer"]))), None)
        if group is None:
            groups.append([masked])
        else:
            group.append(masked)
    groups.sort(key=lambda group: -len(group))  # stable: on a tie the first sample decides
    pairs = []
    for rank, group in enumerate(groups, start=1):
        pairs.append(
            {name: row[name] for name in ("prompt_id", "slice", "answer", "reasoning", "teacher")}
            | {
                "rank": rank,
                "messages": split_answer(row["messages"])[0],
                "rejected_answer": group[0]["answer"],
                "rejected_reasoning": group[0]["reasoning"],
                "rejected_teacher": group[0]["teacher"],
                "rejected_completion_id": group[0]["completion_id"],
                "samples": len(group),
            }
        )
    return pairs


def _are_equal(kind: Kind, first: Any, second: Any) -> bool:
    """Whether two answers are equal, of which a number may be masked and then is a text such as <CARD>."""
    try:
        return bool(first == second) or kind.are_equal(first, second)
    except TypeError:
        return False
