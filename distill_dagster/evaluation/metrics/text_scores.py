"""Usual figures for systems that write free texts: BLEU and chrF by sacrebleu, ROUGE by rouge-score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_dagster.kinds.similarity import compute_rouge, load_sacrebleu

if TYPE_CHECKING:
    from distill_dagster.evaluation.metrics.system_arrays import SystemArrays
    from distill_dagster.kinds import Kind

TEXT_SCORES = ("bleu", "corpus_chrf", "rouge_1", "rouge_2", "rouge_l")


def compute_text_scores(s: SystemArrays, references: Sequence[str], kind: Kind) -> dict[str, float]:
    """Compute `TEXT_SCORES` of one system, from 0 to 1, over the items that it has a row for.

    BLEU (Papineni et al. 2002; sacrebleu with its default tokenizer) and chrF (Popović 2015) are figures of all texts
    together, as papers report them. ROUGE (Lin 2004) is the mean over texts. A missing answer is an empty text.

    Args:
        references: the reference of every item of the split, as canonical JSON.
    """
    rows = [(s.texts[i], reference) for i, reference in enumerate(references) if s.present[i]]
    if not rows:
        return {}
    written = ["" if text is None else kind.format_answer(json.loads(text)) for text, _ in rows]
    wanted = [kind.format_answer(json.loads(reference)) for _, reference in rows]
    names = ("rouge1", "rouge2") if kind.metric == "rouge_l" else ("rouge1", "rouge2", "rougeL")
    rouge = [compute_rouge(text, reference, *names) for text, reference in zip(written, wanted, strict=True)]
    mean = {name: sum(one[name] for one in rouge) / len(rows) for name in names}
    return {
        "bleu": float(load_sacrebleu().BLEU().corpus_score(written, [wanted]).score) / 100,
        "corpus_chrf": float(load_sacrebleu().CHRF().corpus_score(written, [wanted]).score) / 100,
        "rouge_1": mean["rouge1"],
        "rouge_2": mean["rouge2"],
        "rouge_l": mean.get("rougeL", float(s.scores[s.present > 0].mean())),
    }
