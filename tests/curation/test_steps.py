"""The steps behind the filters, as a cut runs them: leaks, near-duplicates, duplicates by meaning, caps, the split."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl

from distill_dagster.config import CurationSpec
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset
from distill_dagster.curation.task_view import TaskView
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.messages import get_user_text, make_user_messages
from distill_dagster.tables.schemas import SCORED, build_frame
from tests.support.kinds import build_task

LABELS = ["refund", "delivery"]
LONG = "I have been waiting for my parcel for three weeks now and nobody tells me where it is"
NEARLY = "I have been waiting for my parcel for three weeks now and nobody can tell me where it is"
OTHER = "my password was refused twice today although I changed it only an hour ago on the phone"


def row(text: str, **changes: Any) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(SCORED)
    out |= {"prompt_id": compute_prompt_id(make_user_messages(text)), "slice": "shop", "origin": "human"}
    out |= {"messages": make_user_messages(text), "teacher": "t", "status": "ok", "answer": '"refund"'}
    out |= {"answer_kind": "label", "agreement": 1.0, "confidence": 0.9, "words": len(text.split())}
    return out | {"completion_ids": ["c"]} | changes


def cut(rows: list[dict[str, Any]], about: TaskView | None = None, **more: Any) -> CuratedDataset:
    settings = {name: more.pop(name) for name in list(more) if name in CurationSpec.model_fields}
    spec = CurationSpec.model_validate({"validation_share": 0} | settings)
    return curate_dataset(build_frame(rows, SCORED, ("prompt_id", "slice")), set(), LABELS, spec, about, **more)


def kept(found: CuratedDataset) -> set[str]:
    return {get_user_text(r["messages"]) for r in found.dataset.to_dicts()}


def why(found: CuratedDataset) -> dict[str, tuple[str, str]]:
    return {get_user_text(r["messages"]): (r["drop_reason"], r["drop_detail"]) for r in found.rejected.to_dicts()}


def items(*texts: str) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"golden:g{n}" for n in range(len(texts))], "text": list(texts)})


def test_of_near_prompts_the_one_with_the_highest_confidence_stays() -> None:
    found = cut([row(LONG), row(NEARLY, confidence=0.95), row(OTHER)])
    assert kept(found) == {NEARLY, OTHER}
    [gone] = found.rejected.to_dicts()
    assert gone["drop_reason"] == "near_duplicate"
    assert gone["cluster_id"] == compute_prompt_id(make_user_messages(NEARLY))
    assert gone["drop_detail"].startswith(f"like {gone['cluster_id']}, similarity 0.75")
    person = cut([row(LONG, teacher=None, completion_ids=None, confidence=0.1), row(NEARLY, confidence=1.0)])
    assert kept(person) == {LONG}, "a person's answer first"
    assert kept(cut([row(LONG), row(NEARLY)], dedup={"near": False})) == {LONG, NEARLY}
    assert kept(cut([row(LONG), row(NEARLY)], dedup={"near": {"threshold": 0.95}})) == {LONG, NEARLY}


def test_short_texts_and_rows_that_were_dropped_are_near_nothing() -> None:
    short = [row("can I pay by card"), row("can I pay by cash")]
    assert cut(short).dataset.height == 2
    assert cut(short, dedup={"near": {"min_words": 1, "threshold": 0.5}}).dataset.height == 1
    assert kept(cut([row(LONG, confidence=0.1), row(NEARLY)], filters={"min_confidence": 0.5})) == {NEARLY}


def test_an_equal_prompt_names_its_representative_too() -> None:
    found = cut([row(LONG, slice="a"), row(f" {LONG.upper()} ", slice="b", confidence=0.5)])
    [gone] = found.rejected.to_dicts()
    assert (gone["drop_reason"], gone["cluster_id"]) == ("duplicate", compute_prompt_id(make_user_messages(LONG)))


def test_problems_that_differ_in_a_number_stay() -> None:
    math = TaskView.from_task(build_task("math"))
    one = "A farmer has 12 crates with 40 apples in each and sells half of them on the market"
    two = one.replace("40", "41")
    numbers = {"answer": "1", "answer_kind": "number"}
    assert cut([row(one, **numbers), row(two, **numbers)], math).dataset.height == 2
    loose = {"near": {"keep_numbers": False, "compare": "prompt"}}
    assert cut([row(one, **numbers), row(two, **numbers)], math, dedup=loose).dataset.height == 1


def test_free_text_answers_are_compared_with_their_prompts() -> None:
    about = TaskView.from_task(build_task("generation"))
    assert about.matcher is not None
    first = row(
        LONG, answer='"We are sorry, it left our house on Monday and is with the carrier now"', answer_kind="text"
    )
    other = "No idea. Ask the shop around the corner, perhaps they have seen a parcel of yours lying about somewhere"
    second = row(NEARLY, answer=f'"{other}"', answer_kind="text")
    assert cut([first, second], about).dataset.height == 2
    assert cut([first, second], about, dedup={"near": {"compare": "prompt"}}).dataset.height == 1


def test_rows_with_golden_texts_are_dropped_and_named() -> None:
    quoted = f"hello there, {LONG}, please hurry up"
    found = cut([row(quoted), row(NEARLY), row(OTHER)], items=items(LONG, "is this it"))
    assert kept(found) == {OTHER}
    assert {reason for reason, _ in why(found).values()} == {"contaminated"}
    assert "of golden:g0, overlap 0." in why(found)[quoted][1]
    assert "of golden:g0, overlap 0." in why(found)[NEARLY][1]
    leaked = {(r["prompt_id"], r["golden_id"]) for r in found.leaks.to_dicts()}
    assert leaked == {(compute_prompt_id(make_user_messages(text)), "golden:g0") for text in (quoted, NEARLY)}
    assert found.leaks["kind"].is_in(["near", "item_in_row"]).all()
    assert (found.leaks["overlap"] > 0.5).all()
    assert kept(cut([row(quoted)], items=items(LONG), decontamination=False)) == {quoted}


def test_the_same_meaning_by_embeddings() -> None:
    places = {LONG: 0, OTHER: 0, "something else": 1}

    def embed(texts: list[str]) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[[places[text] for text in texts]]

    rows = [row(LONG), row(OTHER, confidence=1.0), row("something else")]
    found = cut(rows, dedup={"semantic": True}, embed=embed)
    assert why(found) == {
        LONG: ("semantic_duplicate", f"like {compute_prompt_id(make_user_messages(OTHER))}, similarity 1.0")
    }
    assert cut(rows, embed=embed).dataset.height == 3, "off by default"
    assert cut(rows, dedup={"semantic": {"most_rows": 2}}, embed=embed).dataset.height == 3


def test_caps_come_last() -> None:
    rows = [row(f"a short refund {n}", confidence=0.5 + n / 100) for n in range(5)]
    found = cut([*rows, row("a short refund 4 ", confidence=0.99)], balance={"caps": {"label": 2}})
    assert found.count_reasons()["over_cap"] == 3
    assert found.count_reasons()["duplicate"] == 1
    assert {detail for _, detail in why(found).values()} >= {"cap of label refund: 2"}


def test_near_duplicates_that_stay_are_on_one_side_of_the_split() -> None:
    texts = [
        " ".join([*(f"word{n}x{i}" for i in range(14)), *tail]) for n in range(40) for tail in ([], ["a"], ["a", "b"])
    ]
    rows = [row(text, confidence=0.9) for text in texts]
    for split in ({}, {"stratify": "slice"}):
        more: dict[str, Any] = {"validation_share": 0.3, "dedup": {"near": False}} | split
        found = cut(rows, **more).dataset
        assert found.height == 120
        by_cluster: dict[str, set[str]] = {}
        for one in found.to_dicts():
            by_cluster.setdefault(get_user_text(one["messages"]).split()[0], set()).add(one["split"])
        assert all(len(split) == 1 for split in by_cluster.values())
        assert {"train", "validation"} == {split for both in by_cluster.values() for split in both}


def test_a_stratified_split_gives_every_label_its_share() -> None:
    rows = [row(f"refund number {n}") for n in range(60)]
    rows += [row(f"delivery number {n}", answer='"delivery"') for n in range(20)]
    rows += [row(f"of people {n}", teacher=None) for n in range(20)]
    found = cut(rows, validation_share=0.25, stratify="label").dataset
    counts = dict(found.filter(pl.col("split") == "validation").group_by("answer").len().iter_rows())
    assert counts == {'"refund"': 15, '"delivery"': 5}
    assert found.filter(pl.col("teacher").is_null())["split"].unique().to_list() == ["train"]


def test_the_order_of_rows_is_irrelevant() -> None:
    rng = random.Random(3)
    words = "the parcel of my neighbour came late and broken on a rainy day in May with no note".split()  # noqa: SIM905
    rows = []
    for n in range(60):
        text = " ".join(word if rng.random() > 0.1 else rng.choice(words) for word in words)
        rows.append(row(text, slice=f"s{n}", confidence=round(rng.random(), 1)))
    settings: dict[str, Any] = {"balance": {"max_rows": 30, "choice": "random"}, "items": items(" ".join(words[:9]))}
    first = cut(rows, **settings)
    rng.shuffle(rows)
    again = curate_dataset(
        pl.DataFrame(rows, schema=SCORED),
        set(),
        LABELS,
        CurationSpec.model_validate({"validation_share": 0, "balance": settings["balance"]}),
        items=settings["items"],
    )
    assert compute_data_version(first.dataset) == compute_data_version(again.dataset)
    assert compute_data_version(first.rejected) == compute_data_version(again.rejected)
    assert first.count_reasons()["near_duplicate"] > 2
    assert first.dataset.height + first.rejected.height == 60
