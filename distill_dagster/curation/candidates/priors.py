"""Priors: how often a teacher names each label, whatever the prompt. They calibrate soft labels and votes."""

from __future__ import annotations

import polars as pl

from distill_dagster.tables.schemas import TEACHER_PRIOR, conform_to_schema

MIN_LABEL_PROB = 1e-6
"""The probability of a label without one. Stored probabilities are rounded to this precision."""


def build_uniform_prior(labels: list[str], samples: int) -> pl.DataFrame:
    """The prior of a teacher without calibration: it changes nothing."""
    rows = [(sample, label, 1 / len(labels), 0) for sample in range(samples) for label in labels]
    return conform_to_schema(
        pl.DataFrame(rows, schema=TEACHER_PRIOR, orient="row"), TEACHER_PRIOR, ("sample_index", "label")
    )


def estimate_prior(completions: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    """The geometric mean of the teacher's soft labels per few-shot draw, over prompts balanced over the labels.

    Zhao et al. 2021 divide by the answer to a content-free input. Here the inputs are the examples that are not part of
    the draw. They come from the task's own domain, which works better on the bundled task (see benchmarks/results).

    Args:
        completions: answers to the examples, schema COMPLETIONS.

    Returns:
        Schema TEACHER_PRIOR: per sample and label the probability, and the number of examples in `items`.
    """
    ok = completions.filter((pl.col("status") == "ok") & pl.col("soft_labels").is_not_null())
    long = expand_soft_labels(ok, labels)
    mean = long.group_by("sample_index", "label").agg(
        pl.col("prob").log().mean().exp(), pl.len().cast(pl.Int64).alias("items")
    )
    total = pl.col("prob").sum().over("sample_index")
    return conform_to_schema(
        mean.with_columns((pl.col("prob") / total).round(9)), TEACHER_PRIOR, ("sample_index", "label")
    )


def estimate_vote_prior(completions: pl.DataFrame, labels: list[str], draws: int) -> pl.DataFrame:
    """The share of votes that each label gets per few-shot draw, over prompts balanced over the labels.

    This is the contextual calibration of Zhao et al. 2021 for a teacher without probabilities. It counts the votes of
    its samples on the examples that `estimate_prior` uses. Each label starts with one vote (add-one smoothing; Manning,
    Raghavan and Schütze 2008, section 13.2), so that no share is 0 and a few votes change little.

    The vote of a sample with soft labels is divided as they say. A teacher that states probabilities gives most labels
    0, so their geometric mean would depend on which labels it mentioned at all.

    Args:
        draws: sample i belongs to draw i modulo `draws`. All samples of a draw share its votes.

    Returns:
        Schema TEACHER_PRIOR.
    """
    voted = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null()).select(
        pl.col("sample_index"),
        (pl.col("sample_index") % draws).alias("draw"),
        pl.col("answer").str.json_decode(pl.String).alias("label"),
        pl.col("soft_labels"),
    )
    whole = voted.filter(pl.col("soft_labels").is_null()).select("draw", "label", pl.lit(1.0).alias("prob"))
    divided = voted.filter(pl.col("soft_labels").is_not_null()).select("draw", "soft_labels").explode("soft_labels")
    votes = pl.concat([whole, divided.unnest("soft_labels").select("draw", "label", "prob")])
    counts = votes.group_by("draw", "label").agg(pl.col("prob").sort().sum().alias("votes"))
    totals = voted.group_by("draw").agg(pl.len().cast(pl.Int64).alias("items"))
    shares = totals.join(pl.DataFrame({"label": labels}), how="cross").join(counts, on=["draw", "label"], how="left")
    share = (pl.col("votes").fill_null(0) + 1) / (pl.col("items") + len(labels))
    samples = voted.select("sample_index", "draw").unique()
    prior = samples.join(shares.with_columns(share.alias("prob")), on="draw")
    return conform_to_schema(
        prior.select("sample_index", "label", pl.col("prob").round(9), "items"),
        TEACHER_PRIOR,
        ("sample_index", "label"),
    )


def compute_vote_weights(prior: pl.DataFrame) -> dict[tuple[int, str], float]:
    """The weight of a vote by sample and label: 1 divided by the label's prior.

    A sample without a prior has no entry. Its votes weigh as under a uniform prior: the number of labels.
    """
    return {(sample, label): 1 / share for sample, label, share in prior.select("sample_index", "label", "prob").rows()}


def expand_soft_labels(ok: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    """One row per completion and label, in `prob`. Labels that are not stored get `MIN_LABEL_PROB`."""
    keys = ok.select("prompt_id", "sample_index").join(pl.DataFrame({"label": labels}), how="cross")
    stored = (
        ok.select("prompt_id", "sample_index", "soft_labels")
        .explode("soft_labels")
        .unnest("soft_labels")
        .select("prompt_id", "sample_index", "label", "prob")
    )
    joined = keys.join(stored, on=["prompt_id", "sample_index", "label"], how="left")
    return joined.with_columns(pl.col("prob").fill_null(0.0).clip(lower_bound=MIN_LABEL_PROB))
