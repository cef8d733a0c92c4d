"""Priors: how often the teacher names a label whatever it is asked."""

from __future__ import annotations

import polars as pl

from distill_dagster.tables.schemas import TEACHER_PRIOR, conform_to_schema

MIN_LABEL_PROB = 1e-6
"""What a label that got no probability counts as: the place to which stored probabilities are rounded."""


def build_uniform_prior(labels: list[str], samples: int) -> pl.DataFrame:
    """The prior that changes nothing: a teacher without calibration."""
    rows = [(s, label, 1 / len(labels), 0) for s in range(samples) for label in labels]
    return conform_to_schema(
        pl.DataFrame(rows, schema=TEACHER_PRIOR, orient="row"), TEACHER_PRIOR, ("sample_index", "label")
    )


def estimate_prior(completions: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    """The teacher's geometric mean answer per draw over inputs that are balanced over labels.

    Zhao et al. 2021 divide by the answer to a content-free input; examples left out of the draw are inputs of the
    task's own domain, which on the bundled task works better (figures in benchmarks/results).
    """
    ok = completions.filter((pl.col("status") == "ok") & pl.col("soft_labels").is_not_null())
    long = _expand_soft_labels(ok, labels)
    mean = long.group_by("sample_index", "label").agg(
        pl.col("prob").log().mean().exp(), pl.len().cast(pl.Int64).alias("items")
    )
    total = pl.col("prob").sum().over("sample_index")
    return conform_to_schema(
        mean.with_columns((pl.col("prob") / total).round(9)), TEACHER_PRIOR, ("sample_index", "label")
    )


def estimate_vote_prior(completions: pl.DataFrame, labels: list[str], draws: int) -> pl.DataFrame:
    """The share of votes that each label gets per draw over inputs that are balanced over labels.

    The contextual calibration of Zhao et al. 2021 for a teacher of whom no probabilities are known: its samples' votes
    on the same balanced inputs as `prior_of` takes. Each label starts with one vote (Laplace's rule of succession; as
    add-one smoothing in Manning, Raghavan and Schütze 2008, section 13.2), so that a label that was never voted for
    can be divided by, and few votes say little. Sample i is one of draw i modulo `draws`; all of a draw share its
    votes.
    """
    voted = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null()).select(
        pl.col("sample_index"),
        (pl.col("sample_index") % draws).alias("draw"),
        pl.col("answer").str.json_decode(pl.String).alias("label"),
    )
    counted = voted.group_by("draw", "label").len("votes")
    totals = voted.group_by("draw").agg(pl.len().cast(pl.Int64).alias("items"))
    each = totals.join(pl.DataFrame({"label": labels}), how="cross").join(counted, on=["draw", "label"], how="left")
    share = (pl.col("votes").fill_null(0) + 1) / (pl.col("items") + len(labels))
    found = voted.select("sample_index", "draw").unique().join(each.with_columns(share.alias("prob")), on="draw")
    return conform_to_schema(
        found.select("sample_index", "label", pl.col("prob").round(9), "items"),
        TEACHER_PRIOR,
        ("sample_index", "label"),
    )


def compute_vote_weights(prior: pl.DataFrame) -> dict[tuple[int, str], float]:
    """What a vote of a sample for a label counts: the less, the more often the teacher names the label anyway.

    A sample that has no prior is not in it, and its votes count as under a uniform one: as many as there are labels.
    """
    return {(sample, label): 1 / share for sample, label, share in prior.select("sample_index", "label", "prob").rows()}


def _expand_soft_labels(ok: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    """One row per completion and label, with the floor for labels that were not stored."""
    keys = ok.select("prompt_id", "sample_index").join(pl.DataFrame({"label": labels}), how="cross")
    given = (
        ok.select("prompt_id", "sample_index", "soft_labels")
        .explode("soft_labels")
        .unnest("soft_labels")
        .select("prompt_id", "sample_index", "label", "prob")
    )
    joined = keys.join(given, on=["prompt_id", "sample_index", "label"], how="left")
    return joined.with_columns(pl.col("prob").fill_null(0.0).clip(lower_bound=MIN_LABEL_PROB))
