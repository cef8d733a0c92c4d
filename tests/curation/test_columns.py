"""Functions over whole columns give the same results as the plain functions row by row."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.config import Task
from distill_dagster.config.inbox import DEFAULT_PHONE_REGIONS
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.core.text import normalize_text
from distill_dagster.curation.dataset.mask import mask_rows
from distill_dagster.curation.dataset.split import assign_splits, hash_text_keys
from distill_dagster.curation.filters import FilterSettings, select_filters
from distill_dagster.curation.filters.docs import FilterExample, build_example_row
from distill_dagster.curation.scores import add_scores, bind_scorer, kernel
from distill_dagster.curation.scores.arithmetic import ARITHMETIC_SCORER, is_equation_true
from distill_dagster.curation.scores.personal_data import KIND_HINTS, PERSONAL_DATA_SCORER, count_personal_data
from distill_dagster.curation.scores.prose import PROSE_FIELDS, PROSE_SCORER
from distill_dagster.curation.scores.reasoning import REASONING_SCORER
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import (
    append_answers,
    build_targets,
    build_text_keys,
    extract_answer_texts,
    extract_user_texts,
    json_text_expr,
)
from distill_dagster.intake.masking import mask_text
from distill_dagster.kinds import get_kind
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import MESSAGES
from tests.intake.test_masking import GITHUB, JWT, PEM, STRIPE

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text('a"\\\n\t \x1f\x01é', max_size=12)
ANSWER = st.recursive(
    TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "user", "assistant", "system"]), "content": TEXT}),
    min_size=0,
    max_size=3,
)


def task(kind: str, **more: Any) -> Task:
    teacher = {"model": "replay/none"}
    students = {"s": {"model": "m", "architecture": "causal_lm"}}
    return Task.model_validate({"kind": kind, "description": "d", "teacher": teacher, "students": students} | more)


KINDS = {
    "generation": get_kind(task("generation")),
    "thinking": get_kind(task("math", reasoning=True)),
    "tools": get_kind(task("tool_call", tools=[{"name": "f", "description": "d"}], reasoning=True)),
    "labels": get_kind(
        task("classification", labels=[{"name": n, "description": n} for n in ("a", "b")], reasoning=True)
    ),
}


@given(
    st.lists(st.tuples(ANSWER | st.dictionaries(st.just("refusal"), TEXT, min_size=1), TEXT | st.none()), max_size=8)
)
def test_targets_and_answer_texts_are_those_of_the_kind(rows: list[tuple[Any, str | None]]) -> None:
    answers = [to_canonical_json(answer) for answer, _ in rows]
    frame = pl.DataFrame(
        {"answer": answers, "reasoning": [why for _, why in rows]}, {"answer": pl.String, "reasoning": pl.String}
    )
    for kind in KINDS.values():
        assert build_targets(frame, kind).to_list() == [
            kind.format_target(a, why) for a, (_, why) in zip(answers, rows, strict=True)
        ]
    assert extract_answer_texts(frame["answer"]).to_list() == [
        KINDS["generation"].format_answer(json.loads(a)) for a in answers
    ]


@given(st.lists(TEXT, max_size=8), st.integers(-5, 5), st.sampled_from([0.0, 0.1, 0.5, 0.99]))
def test_json_texts_text_keys_and_splits(texts: list[str], seed: int, share: float) -> None:
    series = pl.Series(texts, dtype=pl.String)
    assert series.to_frame("t").select(json_text_expr(pl.col("t"))).to_series().to_list() == [
        to_canonical_json(t) for t in texts
    ]
    assert build_text_keys(series).to_list() == [normalize_text(text) for text in texts]
    taught = pl.Series(["t", None] * len(texts), dtype=pl.String).head(len(texts))
    wanted = [
        "validation" if who and int(hash_content([seed, t])[:8], 16) < int(share * 16**8) else "train"
        for t, who in zip(texts, taught, strict=True)
    ]
    assert assign_splits(hash_text_keys(series, seed), taught, share).to_list() == wanted


@given(st.lists(TURNS, max_size=6))
def test_user_texts_and_appended_answers(rows: list[list[dict[str, Any]]]) -> None:
    empty: dict[str, Any] = dict.fromkeys(("tool_calls", "tool_call_id", "name"))
    full: list[list[Any]] = [[turn | empty for turn in turns] for turns in rows]
    messages = pl.Series("messages", full, dtype=MESSAGES)
    assert extract_user_texts(messages).to_list() == [get_user_text(turns) for turns in full]
    words = [f"answer {n}" for n in range(len(rows))]
    with_turn = append_answers(messages, pl.Series(words, dtype=pl.String))
    wanted = [[*turns, {"role": "assistant", "content": w, **empty}] for turns, w in zip(full, words, strict=True)]
    assert with_turn.to_list() == wanted
    assert with_turn.dtype == MESSAGES


WORDY = st.lists(st.sampled_from(["a", "b", "the", "of", "cat.", "#", "...", "12", "é", "- x", "•"]), max_size=30)
WRITTEN = st.lists(st.tuples(WORDY, st.sampled_from([" ", "\n", "\n\n", "  "])), max_size=4).map(
    lambda parts: "".join(" ".join(words) + gap for words, gap in parts)
)


def plain_prose(text: str) -> dict[str, float]:
    """The definitions in plain Python."""
    words, chars = text.split(), len(text)
    out = dict.fromkeys(PROSE_FIELDS, 0.0)
    if not words:
        return out
    lines = [line.lstrip() for line in text.split("\n") if line.strip()]
    whole = [line for block in text.split("\n") for line in [block.lstrip()] if block.strip()]
    seen: set[str] = set()
    doubled = [line for line in whole if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    out["duplicate_lines"], out["duplicate_line_chars"] = len(doubled) / len(lines), sum(map(len, doubled)) / chars
    for n in (2, 3, 4):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(grams.values(), default=0)
        if most > 1:
            widest = max(len(" ".join(gram)) for gram, count in grams.items() if count == most)
            out[f"top_{n}_gram"] = min(most * widest / chars, 1.0)
    for n in range(5, 11):
        said, at, known = 0, 0, set[tuple[str, ...]]()
        while at < len(words) - n + 1:
            gram = tuple(words[at : at + n])
            if gram in known:
                said, at = said + len("".join(gram)), at + n
            else:
                known.add(gram)
                at += 1
        out[f"duplicate_{n}_grams"] = said / chars
    out["prose_words"] = len(words)
    out["mean_word_length"] = sum(map(len, words)) / len(words)
    out["hashes"], out["ellipses"] = text.count("#") / len(words), text.count("...") / len(words)
    out["alphabetic_words"] = sum(any(c.isalpha() or ord(c) > 127 for c in word) for word in words) / len(words)
    plain = {"".join(c for c in word.lower() if c.isalpha()) for word in words}
    out["stop_words"] = len(plain & {"the", "be", "to", "of", "and", "that", "have", "with"})
    out["bullet_lines"] = sum(line.startswith(("-", "•")) for line in lines) / len(lines)
    out["ellipsis_lines"] = sum(line.rstrip().endswith("...") for line in lines) / len(lines)
    return out


@given(st.lists(WRITTEN, max_size=5))
def test_the_kernel_matches_the_definitions(texts: list[str]) -> None:
    found = kernel.measure_prose(pl.Series(texts, dtype=pl.String)).to_dicts()
    for text, row in zip(texts, found, strict=True):
        wanted = plain_prose(text)
        for name in PROSE_FIELDS:
            if "paragraph" not in name:
                assert row[name] == pytest.approx(wanted[name], abs=1e-4), (name, text)
    assert kernel.count_words(pl.Series(texts, dtype=pl.String)).to_list() == [len(text.split()) for text in texts]


def test_paragraphs_and_many_rows_at_once() -> None:
    twice = "one two\nthree\n\nfour\n\none two\nthree"
    row = kernel.measure_prose(pl.Series([twice]))
    assert row["duplicate_paragraphs"][0] == pytest.approx(1 / 3, abs=1e-4)
    assert row["duplicate_paragraph_chars"][0] == pytest.approx(12 / len(twice), abs=1e-4)
    texts = [f"{n} the cat sat on the cat " * (n % 7) for n in range(1000)]
    whole = kernel.measure_prose(pl.Series(texts))
    assert whole.equals(pl.concat(kernel.measure_prose(pl.Series([text])) for text in texts))


@given(st.lists(st.tuples(WRITTEN, WRITTEN), max_size=5))
def test_echo(pairs: list[tuple[str, str]]) -> None:
    said, asked = (pl.Series([pair[n] for pair in pairs], dtype=pl.String) for n in (0, 1))
    for (answer, prompt), found in zip(pairs, kernel.measure_echo(said, asked), strict=True):
        one, two = ([w.lower().strip("#.-•") for w in text.split()] for text in (answer, prompt))
        if "•" in answer + prompt:
            continue  # a sign of three bytes counts as a letter
        if one == two and one:
            assert found == 1.0
        elif len(one) < 8:
            assert found is None
        else:
            grams = [tuple(one[i : i + 3]) for i in range(len(one) - 2)]
            known = {tuple(two[i : i + 3]) for i in range(len(two) - 2)}
            assert found == pytest.approx(sum(gram in known for gram in grams) / len(grams), abs=1e-4)


PRIVATE_TEXTS = [
    *("write to jane.doe+shop@example.co.uk.", "Müller@bücher.de", "call +49 171 2345678 or (415) 555-2671"),
    *("0171 2345678, 020 7946 0958", "pay to DE89 3704 0044 0532 0130 00 please", "iban:GB82WEST12345698765432."),
    *("card 4111 1111 1111 1111 exp 12/27", "amex 378282246310005", "my key AKIAIOSFODNN7EXAMPLE leaked"),
    *(f"token {GITHUB} does not work", f"we used {STRIPE}", f"log: {JWT} end", f"see {PEM} thanks"),
    *("https://user:pa55w0rd@example.com/x fails", "sk-proj-abc123DEF456ghi789JKL012mno345PQR678"),
    *("Authorization: Bearer abcdef0123456789abcdef", "my password is hunter2.", "api_key='f3a9c7d1'"),
    *("order 8842-119-22, invoice INV-2024-000123456", "on 2024-11-03 14:05", "password is wrong", "plain words"),
    *("AccountKey=" + "a1B2" * 21 + "==", "xoxb-" + "123456789012-1234567890123-" + "a1B2c3D4e5F6g7H8i9J0k1L2"),
]


@pytest.mark.parametrize(
    "around", ["", "there is much to say of this and more of that. " * 30], ids=["alone", "within"]
)
@pytest.mark.parametrize("text", PRIVATE_TEXTS)
def test_the_hints_miss_nothing_that_masking_finds(text: str, around: str) -> None:
    whole = around + text + " " + around
    row = build_example_row(FilterExample({"answer": whole}))
    scores = add_scores(row, [PERSONAL_DATA_SCORER], TaskView("generation"))["scores"][0]
    counts = mask_text(whole, DEFAULT_PHONE_REGIONS).counts
    assert scores["secrets"] == counts.pop("SECRET", 0)
    assert scores["pii"] == (", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or None)


def test_a_long_text_is_searched_whole() -> None:
    text = "many words of it " * 2000 + "write to jane@example.org " + "and more words " * 2000
    assert count_personal_data(text, list(KIND_HINTS), ()) == {"EMAIL": 1}


def test_national_phone_numbers_are_found_by_the_phone_regions_of_the_task() -> None:
    rows = build_example_row(FilterExample({"answer": "Ring 03-3224-5000 for help."}))
    for regions, count in (("US", "DE"), None), (("JP",), "1 PHONE"):
        about = TaskView("generation", phone_regions=regions)
        assert add_scores(rows, [PERSONAL_DATA_SCORER], about)["scores"][0]["pii"] == count


def test_national_phone_numbers_are_masked_by_the_phone_regions_of_the_task() -> None:
    filters = select_filters(FilterSettings.model_validate({"pii": "mask"}), TaskView("generation"))
    rows = build_example_row(FilterExample({"answer": "Ring 03-3224-5000 for help."})).with_columns(masks=True)
    for regions, answer in (("US",), "Ring 03-3224-5000 for help."), (("JP",), "Ring <PHONE> for help."):
        about = TaskView("generation", phone_regions=regions)
        assert json.loads(mask_rows(rows, filters, about)["answer"][0]) == answer


def test_a_change_of_phone_regions_is_another_version_of_the_scorer() -> None:
    japan, germany = TaskView(phone_regions=("JP",)), TaskView(phone_regions=("DE",))
    assert bind_scorer(PERSONAL_DATA_SCORER, japan).version != bind_scorer(PERSONAL_DATA_SCORER, germany).version
    assert bind_scorer(PROSE_SCORER, japan) == PROSE_SCORER


@pytest.mark.parametrize(
    ("equation", "wanted"),
    [
        ("3 * 4 = 12", True),
        ("3 * 4 = 13", False),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.35", False),
        ("10 / 3 = 3", True),
        ("10 / 4 = 4", False),
        ("(2 + 3) * 4 = 20", True),
        ("1.5 + 1.5 = 3", True),
        ("1 / 0 = 3", None),
        ("2 ** 3 = 8", True),
        ("__import__('os') = 3", None),
        ("9" * 300 + " + 1 = 2", None),
    ],
)
def test_equations(equation: str, wanted: bool | None) -> None:
    assert is_equation_true(equation) is wanted


@pytest.mark.parametrize(
    ("reasoning", "sums", "wrong"),
    [
        ("She has 3 * 4 = 12 apples. Then 12 + 5 = 18.", 2, "12 + 5 = 18"),
        ("$1,200 + 300 = $1,500 and 5 x 3 = 16", 2, "5*3 = 16"),
        ("x2 + 3 = 7, y + 2 * 3 = 7, 20% * 50 = 10, 2 * 5 = 3 + 7", None, None),
        ("3 + 4 = 7; 7 × 2 = 14; 14 − 4 = 10", 3, None),
        ("nothing to work out", None, None),
        (None, None, None),
    ],
)
def test_equations_in_a_reasoning(reasoning: str | None, sums: int | None, wrong: str | None) -> None:
    row = build_example_row(FilterExample({"answer": 1, "reasoning": reasoning}, kind="math"))
    scores = add_scores(row, [ARITHMETIC_SCORER], TaskView("math", reasoning=True))["scores"][0]
    assert (scores["sums"], scores["wrong_sum"]) == (sums, wrong)
    assert bool(scores["wrong_sums"]) == (wrong is not None)


LABELS = ("refund", "late delivery")


@pytest.mark.parametrize(
    ("kind", "reasoning", "answer", "first", "other"),
    [
        ("math", "3 and 4 make 7. The answer is 7.", 7, False, False),
        ("math", "3 and 4 make 7. The answer is 1,007.5 dollars.", 1007.5, False, False),
        ("math", "3 and 4 make 7. The answer is 8.", 7, False, True),
        ("math", "The answer is 7. Since three and four make seven.", 7, True, False),
        ("classification", "Refund. The customer wants the money back.", "refund", True, False),
        ("classification", "They wait for it. So the label is late delivery.", "refund", False, True),
        ("classification", "They wait for it. So the label is not clear.", "refund", False, False),
        ("qa", "Fish swim. The answer is in the deep water.", "deep water", False, False),
        ("qa", "Fish swim. The answer is the sky.", "deep water", False, True),
        ("generation", "The answer is a poem about the sky and all below it.", "Roses are red.", False, False),
    ],
)
def test_faults_of_reasoning(kind: str, reasoning: str, answer: Any, first: bool, other: bool) -> None:
    row = build_example_row(FilterExample({"answer": answer, "reasoning": reasoning}, kind=kind))
    scores = add_scores(row, [REASONING_SCORER], TaskView(kind, LABELS, reasoning=True))["scores"][0]
    assert (scores["answer_first"], scores["conclusion"] is not None) == (first, other)


def test_stored_scores_are_kept() -> None:
    rows = pl.concat(build_example_row(FilterExample({"text": f"text {n}", "answer": f"answer {n}"})) for n in range(3))
    before = add_scores(rows.head(2), [PROSE_SCORER], TaskView("generation"))
    marked = before.with_columns(
        pl.struct(
            (pl.lit(77) if name == "prose_words" else pl.col("scores").struct.field(name)).cast(dtype).alias(name)
            for name, dtype in before.schema["scores"].to_schema().items()  # type: ignore[attr-defined]
        ).alias("scores")
    ).drop("finish_reason", "completion_tokens")
    again = add_scores(rows, [PROSE_SCORER], TaskView("generation"), marked, {"prose": PROSE_SCORER.version})
    assert again["scores"].struct.field("prose_words").to_list() == [77, 77, 2]
    other = add_scores(rows, [PROSE_SCORER], TaskView("generation"), marked, {"prose": "0"})
    assert other["scores"].struct.field("prose_words").to_list() == [2, 2, 2]
    changed = rows.with_columns(pl.lit('"another answer here"').alias("answer"))
    assert add_scores(changed, [PROSE_SCORER], TaskView("generation"), marked, {"prose": "1"})["scores"].struct.field(
        "prose_words"
    ).to_list() == [3, 3, 3]
