"""Rows that belong together: those with one text, and near-duplicates. They must not be divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from distill_dagster.config import TaskKind
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.new_task.rows import TableRow

_NEAR_DUPLICATE, _NEAR_NGRAM = 0.7, 2
"""As `curation.dedup.near`, and near `curation.decontamination`: such rows must not be in two parts."""
_FREE_TEXT_KINDS = ("summarization", "conversation", "generation")
"""Kinds for which a text may have several good answers."""


def build_units(rows: Sequence[TableRow], kind: TaskKind) -> dict[str, list[TableRow]]:
    """The rows by unit: one row of each text, near-duplicates together, the row that represents them first.

    If rows with the same text have different answers, nobody knows which is right: the text stays without an answer.
    """
    kept = {key: _merge(same, kind) for key, same in _group_by_text(rows).items()}
    units: dict[str, list[TableRow]] = {}
    for key, leader in _find_leaders(list(kept.values()), keep_numbers=kind == "math").items():
        units.setdefault(leader, []).append(kept[key])
    return {key: sorted(members, key=lambda row: row.key != key) for key, members in units.items()}


def find_conflicts(rows: Sequence[TableRow], kind: TaskKind) -> Iterator[tuple[TableRow, TableRow]]:
    """For each text with different answers, two rows that contradict each other."""
    for same in _group_by_text(rows).values():
        if found := _find_conflict(same, kind):
            yield found


def _group_by_text(rows: Sequence[TableRow]) -> dict[str, list[TableRow]]:
    by_key: dict[str, list[TableRow]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    return by_key


def _find_conflict(same: Sequence[TableRow], kind: TaskKind) -> tuple[TableRow, TableRow] | None:
    answered = [row for row in same if row.answer is not None]
    if len(answered) < 2 or kind in _FREE_TEXT_KINDS:
        return None
    first = to_canonical_json(answered[0].answer)
    other = next((row for row in answered if to_canonical_json(row.answer) != first), None)
    return None if other is None else (answered[0], other)


def _merge(same: Sequence[TableRow], kind: TaskKind) -> TableRow:
    """The row that stays of those with one text."""
    if conflict := _find_conflict(same, kind):
        return replace(conflict[0], answer=None)
    return next((row for row in same if row.answer is not None), same[0])


def _find_leaders(rows: Sequence[TableRow], keep_numbers: bool) -> dict[str, str]:
    """For each key, the key of the row that represents its near-duplicates: a row with an answer comes first."""
    import polars as pl

    from distill_dagster.curation.dedup.duplicates import find_duplicates
    from distill_dagster.curation.dedup.folding import MinHashScheme

    leaders = {row.key: row.key for row in rows}
    scheme = MinHashScheme(ngram=_NEAR_NGRAM, keep_numbers=keep_numbers)
    if not any(len(row.key.split()) >= scheme.min_words for row in rows):
        return leaders
    table = {"id": [str(n) for n in range(len(rows))], "text": [row.text for row in rows]}
    frame = pl.DataFrame(table | {"empty": [row.answer is None for row in rows], "place": range(len(rows))})
    order = [pl.col("empty"), pl.col("place")]
    found = find_duplicates(frame, order=order, scheme=scheme, threshold=_NEAR_DUPLICATE)
    for id_, cluster in found.members.select("id", "cluster_id").iter_rows():
        leaders[rows[int(id_)].key] = rows[int(cluster)].key
    return leaders
