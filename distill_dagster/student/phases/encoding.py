"""Rows as a prompt and an answer in token ids, by the student's own renderer."""

from __future__ import annotations

from distill_dagster.student.causal import CausalModel, CausalStudent
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.types import TrainRow


def encode_row(student: CausalModel, row: TrainRow) -> tuple[list[int], list[int]]:
    """Token ids of a row's prompt, and of its answer with the token that ends it; no answer if it has to be cut."""
    assert isinstance(student, CausalStudent | FreeTextStudent)
    [item] = student.encode([row])
    if isinstance(student, CausalStudent):
        path = list(student.trie.paths[item["label"]])
        return item["ids"][: len(item["ids"]) - len(path) + 1], path  # a label's last token is never an input
    prompt, answer = item["ids"][: -item["target"]], item["ids"][-item["target"] :]
    return prompt, [] if item["target_cut"] or item["no_target"] else answer
