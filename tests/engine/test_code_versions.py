"""`code_version` is set by hand: if a stage's result on a fixed input changes, its `code_version` must change.

The hashes below are of fixed inputs. After an intended change, raise the stage's `code_version` in
`pipeline/stage_table.py` and replace the pair below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import CurationSpec, FewShotSpec, Task
from distill_dagster.core.hashing import hash_content
from distill_dagster.curation.candidates.label_answers import choose_label_candidates
from distill_dagster.curation.candidates.priors import estimate_prior
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset
from distill_dagster.curation.dataset.human_rows import build_human_candidates
from distill_dagster.kinds import Question, get_kind, read_answer
from distill_dagster.kinds.classification import parse_label
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.prompts.few_shot import build_draws, build_prompt_context, read_example_pool
from distill_dagster.prompts.seeds import build_labelled_prompts, build_seed_prompts
from distill_dagster.prompts.templates import Templates
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import COMPLETIONS, build_frame
from distill_dagster.tasks import LabelledRow, Slice
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.asking.label_answers import read_label
from distill_dagster.teacher.asking.soft_labels import compute_label_mass, divide_shared, normalize_mass
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request
from tests.support.kinds import build_task
from tests.support.task import TASK, TEXTS

LABELS = list(TEXTS)
GOLDEN = [
    LabelledRow(id="g1", text="Refund ME\u00a0please", label="refund"),
    LabelledRow(id="g2", text="held out", label="login"),
]
EXAMPLES = [
    LabelledRow(id=f"{label}{n}", text=f" {text}", label=label)
    for label, texts in TEXTS.items()
    for n, text in enumerate(texts)
]
EXAMPLES += [
    LabelledRow(id="x1", text="refund me PLEASE", label="refund"),
    LabelledRow(id="x2", text="login  FAILS", label="login"),
]
SEEDS = [
    {"text": f" {text}!", "target_label": label, "axes": {"tone": "calm"}} for label, t in TEXTS.items() for text in t
]
SLICE = Slice.model_validate(
    {
        "description": "d",
        "seeds": [*SEEDS, "plain  text", "Plain text", "PLAIN text", "plain TEXT", *"xyzw", "refund me please"],
    }
)


def _context() -> pl.DataFrame:
    return build_prompt_context(EXAMPLES, collect_held_out_keys(GOLDEN, []))


def _draws() -> list[Any]:
    return [
        [(e.id, e.text, e.label) for e in draw]
        for draw in build_draws(read_example_pool(_context()), LABELS, FewShotSpec(per_label=2, draws=3))
    ]


def _completions() -> pl.DataFrame:
    """Two samples of each prompt, with every kind of outcome among them."""
    rows = []
    for n, prompt in enumerate(build_seed_prompts("shop", SLICE)["prompt_id"]):
        for sample in range(2):
            row: dict[str, Any] = dict.fromkeys(COMPLETIONS)
            status = "failed" if n % 7 == 0 else "truncated" if (n + sample) % 9 == 0 else "ok"
            row |= {"completion_id": f"c{n}{sample}", "prompt_id": prompt, "slice": "shop", "teacher": "t"}
            row |= {"sample_index": sample, "status": status}
            if status == "ok" and n % 5:
                shares = {label: (1 + (n * 3 + k * 5 + sample) % 7) for k, label in enumerate(LABELS)}
                total = sum(shares.values())
                row["soft_labels"] = [{"label": k, "prob": round(v / total, 6)} for k, v in shares.items()]
                row["answer"] = f'"{max(shares, key=lambda k: shares[k])}"'
            elif status == "ok":
                row["answer"] = f'"{LABELS[(n + sample) % 3]}"'
            rows.append(row)
    return build_frame(rows, COMPLETIONS, ("prompt_id", "sample_index"))


def _scored() -> pl.DataFrame:
    completions = _completions()
    return choose_label_candidates(
        build_seed_prompts("shop", SLICE), completions, estimate_prior(completions, LABELS), LABELS
    )


def _cut() -> CuratedDataset:
    """Two slices with the same prompts, so that every kept row has a duplicate, and two human answers."""
    filters = {"min_agreement": 0.6, "min_confidence": 0.5, "min_words": 2}
    spec = CurationSpec.model_validate({"filters": filters, "validation_share": 0.6})
    people = build_human_candidates([LabelledRow(id="1", text="plain text", label="login"), *GOLDEN])
    both = [_scored(), _scored().with_columns(pl.lit("web").alias("slice")), people]
    return curate_dataset(pl.concat(both), collect_held_out_keys(GOLDEN, []), LABELS, spec)


def _dataset() -> str:
    cut = _cut()
    return compute_data_version(cut.dataset, cut.rejected)


def _rendered() -> list[str]:
    templates, task = Templates({}), Task.model_validate(TASK)
    examples = build_draws(read_example_pool(_context()), LABELS, FewShotSpec(per_label=1, draws=1))[0]
    values = {"text": "a\n text", "examples": examples, "labels": task.labels, "instructions": "Sort.", "item": "Mail"}
    return [templates.render(f"classification_{kind}", **values) for kind in ("text", "system", "user")]


def _read_answers() -> list[Any]:
    """What is read from given tokens and texts."""
    labels = ["card arrival", "card linking", "login"]
    tokens = [[(" card", -0.1), (" login", -2.5)], [(" arrival", -0.2), (" linking", -1.8)]]
    read = [normalize_mass(divide_shared(compute_label_mass(tokens[:n], labels), labels)) for n in (1, 2)]
    rounded = [{k: round(v, 9) for k, v in shares.items()} for shares in read if shares]
    said = [parse_label(text, labels) for text in ("Card arrival.", "it is login", "card", "login or card linking")]
    thought = ("<think>login?</think>card arrival", "<think>login?", '{"label": "login"}', "card l")
    said_after = [vars(read_label(text, labels, cut=text.endswith("l"))) for text in thought]
    kind = get_kind(build_task("qa"))
    texts = ("[THINK]hm[/THINK]Oslo", 'So: {"answer": "Oslo",}', '{"answer": "Os')
    return [rounded, said, said_after, [vars(read_answer(kind, text, Question())) for text in texts]]


def _asking() -> str:
    request = Request("id", 1, {"temperature": 0.0}, prompt="p")
    rows = [LabelledRow(id="1", text=" x", label="refund", slice="shop"), LabelledRow(id="2", text="y", label="login")]
    golden = compute_data_version(build_labelled_prompts(rows, "golden"))
    identity = Endpoint("m", "i").identity
    return hash_content([_draws(), _rendered(), _read_answers(), request.key, golden, identity])


FIXTURES: dict[str, Callable[[], str]] = {
    "prompt_context": lambda: compute_data_version(_context()),
    "seed_prompts": lambda: compute_data_version(build_seed_prompts("shop", SLICE)),
    "teacher_prior": lambda: hash_content([_asking(), compute_data_version(estimate_prior(_completions(), LABELS))]),
    "golden_completions": _asking,
    "teacher_completions": _asking,
    "scored_completions": lambda: compute_data_version(_scored()),
    "filtered_dataset": _dataset,
}
COMMITTED: dict[str, dict[str, str]] = {
    # 2: the pool has the columns answer, reasoning and messages in every task.
    "prompt_context": {"2": "7da9a3ed88c093ddcd1f53036d5b9f4bd35579b4c0153b50b8a574335270f141"},
    "seed_prompts": {"2": "1f5b5211ac1f33a38a2e6c2e873c9bc46e5c750dd404a3ff364a30ca26200a7d"},
    # 2: thinking is no answer, JSON is read whole, and a soft label needs a share of the mass.
    "teacher_prior": {"2": "c5464eafd976acb41ce69616488b5dc79c9b9ed7bcdb54bf76bf06a3909db502"},
    "golden_completions": {"2": "19aaafb413bc1cf6e3dadad63819821665425e864e2dc724fe83c5e4f713bb7c"},
    "teacher_completions": {"2": "19aaafb413bc1cf6e3dadad63819821665425e864e2dc724fe83c5e4f713bb7c"},
    # 3: every column is part of the data version, also one without values. 4: a judge's thinking is no score.
    "scored_completions": {"4": "d3fb940926ba0b8fd897a05dbc31d3a4190d0875f94fd352f92d4f4db4b10a06"},
    # 4: likewise. 5: a floor keeps rows that only `min_confidence` drops.
    "filtered_dataset": {"6": "8acecfdec95f200f73aa3fa1368495f3d6327f85f5f66df0219fb8948fb6be99"},
}


@pytest.mark.parametrize("stage", FIXTURES)
def test_a_changed_result_has_a_new_code_version(stage: str) -> None:
    version, found = STAGES[stage].code_version, FIXTURES[stage]()
    assert version in COMMITTED[stage], f"add the hash of {stage} {version}: {found}"
    assert found == COMMITTED[stage][version], (
        f"the result changed: raise code_version of {stage} in stage_table.py ({found})"
    )


def test_the_fixtures_are_not_trivial() -> None:
    assert _context()["removed"].drop_nulls().to_list().count("contaminated") == 1
    assert _scored()["answer"].n_unique() == 4  # three labels and none
    cut = _cut()
    absent = {"truncated", "refused", "too_long", "invalid_label", "invalid_answer"}
    absent |= {"near_duplicate", "semantic_duplicate", "over_cap"}  # pinned by tests/curation/test_steps.py
    assert set(cut.rejected["drop_reason"]) == set(cut.order) - absent
    assert set(cut.dataset["split"]) == {"train", "validation"}
    assert cut.dataset["teacher"].null_count() == 1
