"""Figures of written texts, against sacrebleu and rouge-score themselves."""

from __future__ import annotations

import json

import pytest

from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.kinds import get_kind
from distill_dagster.kinds.similarity import load_rouge_scorer, load_sacrebleu
from tests.evaluation.build import LABELS, SPEC, patterns, row, table
from tests.support.kinds import build_task

REFERENCES = [
    "The passenger wants a refund for a ticket that was bought twice.",
    "The card reader at the north gate rejected a valid card.",
    "A rider asks when the night bus runs on Sundays.",
]
WRITTEN = [
    "The passenger asks for a refund of a ticket bought twice.",
    "The reader at the north gate did not accept the card.",
    None,
]


@pytest.mark.parametrize("name", ["summarization", "generation"])
def test_text_scores_equal_the_libraries(name: str) -> None:
    kind, rows = get_kind(build_task(name)), []
    for i, (reference, text) in enumerate(zip(REFERENCES, WRITTEN, strict=True)):
        for system, answer in {"distilled": text, "teacher": reference}.items():
            answer_json = None if answer is None else json.dumps(answer)
            own = row(system, f"g{i}", reference, answer, correct=answer == reference)
            rows.append(own | {"answer": answer_json, "confidence": None})
    systems = compute_metrics(table(rows), {}, [], SPEC, kind).golden.systems
    texts = [text or "" for text in WRITTEN]
    scorer = load_rouge_scorer()(["rouge1", "rouge2", "rougeL"])
    rouge = [scorer.score(reference, text) for reference, text in zip(REFERENCES, texts, strict=True)]
    expected = {
        "bleu": load_sacrebleu().corpus_bleu(texts, [REFERENCES]).score / 100,
        "corpus_chrf": load_sacrebleu().corpus_chrf(texts, [REFERENCES]).score / 100,
        **{f"rouge_{n}": sum(one[f"rouge{n}"].fmeasure for one in rouge) / 3 for n in (1, 2)},
        "rouge_l": sum(one["rougeL"].fmeasure for one in rouge) / 3,
    }
    assert systems["distilled"].text_scores == pytest.approx(expected)
    assert systems["teacher"].text_scores == pytest.approx(dict.fromkeys(expected, 1.0))


def test_answers_that_are_no_free_text_have_none() -> None:
    rows = patterns({"distilled": "101", "teacher": "111"})
    assert compute_metrics(rows, {}, LABELS, SPEC).golden.systems["distilled"].text_scores == {}
