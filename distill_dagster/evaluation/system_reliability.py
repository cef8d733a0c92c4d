"""How well the confidences of all systems are calibrated, from the predictions table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.curation.soft_labels.reliability import Reliability, measure_reliability
from distill_dagster.evaluation.metrics import SYSTEM_ORDER
from distill_dagster.kinds.free_text import FreeTextKind

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.kinds import Kind

MEASURED_SPLITS = ("dev", "golden")
"""The splits with answers of people. The references of validation are the teacher's own answers."""


def measure_system_reliability(
    predictions: pl.DataFrame, kind: Kind | None = None
) -> dict[str, dict[str, Reliability]]:
    """Measure each system by split, in bins of equal mass.

    A system without confidences is left out, and so is one that always states 1: it says nothing about how sure it is.
    Free texts are left out too: their confidence is how similar the samples are, and no probability of being right.

    Args:
        predictions: schema PREDICTIONS.
        kind: the kind of the answers; None: right or wrong.
    """
    import polars as pl

    if isinstance(kind, FreeTextKind):
        return {}

    rows = predictions.filter(pl.col("confidence").is_not_null() & pl.col("reference").is_not_null())
    order = dict.fromkeys((*SYSTEM_ORDER, *rows["system"].unique().sort()))
    found: dict[str, dict[str, Reliability]] = {}
    for split in MEASURED_SPLITS:
        for system in order:
            own = rows.filter((pl.col("split") == split) & (pl.col("system") == system))
            if (own["confidence"] < 1).any():
                measured = measure_reliability(own["confidence"].to_list(), own["correct"].to_list(), equal_mass=True)
                assert measured is not None
                found.setdefault(split, {})[system] = measured
    return found
