"""From samples to candidates: one answer per prompt, with scores and without thresholds."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.candidates.priors import MIN_LABEL_PROB, _expand_soft_labels
from distill_dagster.tables.messages import user_text_expr
from distill_dagster.tables.schemas import LATER_COLUMNS, SCORED, conform_to_schema


def choose_label_candidates(
    prompts: pl.DataFrame, completions: pl.DataFrame, prior: pl.DataFrame, labels: list[str], *, votes: bool = False
) -> pl.DataFrame:
    """One scored row per prompt: samples' soft labels divided by the prior, renormalised and averaged.

    With `votes` the prior corrects the shares of the samples' votes instead: one vote divided by a prior is still that
    one vote, so it is their sum that is divided and renormalised.

    `agreement` is the share of usable samples whose own answer is the candidate's; `confidence` is the candidate's
    probability. Ties go to the label that comes first in the task.
    """
    ok = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    soft = ok.filter(pl.col("soft_labels").is_not_null())
    voted = ok.filter(pl.col("soft_labels").is_null())
    parts = []
    if soft.height:
        corrected = (
            _expand_soft_labels(soft, labels)
            # A draw without a prior (no example was left out of it) is not corrected: an inner join would lose it.
            .join(
                prior.select("sample_index", "label", pl.col("prob").alias("prior")),
                on=["sample_index", "label"],
                how="left",
            )
            .with_columns(
                (pl.col("prob") / pl.col("prior").fill_null(1.0).clip(lower_bound=MIN_LABEL_PROB)).alias("prob")
            )
        )
        total = pl.col("prob").sum().over("prompt_id", "sample_index")
        parts.append(corrected.select("prompt_id", "sample_index", "label", pl.col("prob") / total))
    if voted.height:
        answers = voted.select("prompt_id", "sample_index", pl.col("answer").str.json_decode(pl.String).alias("said"))
        counts = pl.lit(1.0)
        if votes:
            answers = answers.join(
                prior.select("sample_index", pl.col("label").alias("said"), (1 / pl.col("prob")).alias("weight")),
                on=["sample_index", "said"],
                how="left",
            ).with_columns(pl.col("weight").fill_null(float(len(labels))))
            counts = pl.col("weight") / pl.col("weight").mean().over("prompt_id")
        each = answers.with_columns(counts.alias("counts")).join(pl.DataFrame({"label": labels}), how="cross")
        said = (pl.col("label") == pl.col("said")).cast(pl.Float64)
        parts.append(each.select("prompt_id", "sample_index", "label", (said * pl.col("counts")).alias("prob")))
    out = prompts.select("prompt_id", "slice", "origin", "messages", "target_label", "reference")
    out = out.join(_summarize_prompts(completions), on="prompt_id", how="left")
    if parts:
        out = out.join(_choose_labels(pl.concat(parts), labels), on="prompt_id", how="left")
    else:
        empty = {n: SCORED[n] for n in ("answer", "soft_labels", "agreement", "confidence")}
        out = out.with_columns([pl.lit(None, dtype=t).alias(n) for n, t in empty.items()])
    words = user_text_expr().str.extract_all(r"\S+").list.len().cast(pl.Int64).alias("words")
    later = [pl.lit(None, dtype=SCORED[name]).alias(name) for name in LATER_COLUMNS if name in SCORED]
    out = out.with_columns(words, pl.lit("label").alias("answer_kind"), *later)
    return conform_to_schema(out, SCORED, ("prompt_id",))


def add_imagined_columns(candidates: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """The candidates with `axes` and `parent_prompt_id` of the prompts that were imagined."""
    imagined = prompts.filter(pl.col("origin") == "synthetic").select("prompt_id", "axes", "parent_prompt_id")
    joined = candidates.drop("axes", "parent_prompt_id").join(imagined, on="prompt_id", how="left")
    return conform_to_schema(joined, SCORED, ("prompt_id",))


def _summarize_prompts(completions: pl.DataFrame) -> pl.DataFrame:
    """Status, error and ids over the samples of each prompt: ok where any sample is ok."""
    first = completions.sort("prompt_id", "sample_index")
    return first.group_by("prompt_id", maintain_order=True).agg(
        pl.col("teacher").first(),
        pl.when((pl.col("status") == "ok").any())
        .then(pl.lit("ok"))
        .otherwise(pl.col("status").first())
        .alias("status"),
        pl.col("error").drop_nulls().first().alias("error"),
        pl.col("reasoning").drop_nulls().first().alias("reasoning"),
        pl.col("completion_id").alias("completion_ids"),
    )


def _choose_labels(long: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    order = pl.DataFrame({"label": labels, "place": range(len(labels))})
    ranked = long.join(order, on="label")
    said = (
        ranked.sort(["prompt_id", "sample_index", "prob", "place"], descending=[False, False, True, False])
        .group_by("prompt_id", "sample_index", maintain_order=True)
        .agg(pl.col("label").first().alias("said"))
    )
    mean = ranked.group_by("prompt_id", "label", "place").agg(pl.col("prob").mean().round(6))
    mean = mean.sort(["prompt_id", "prob", "place"], descending=[False, True, False])
    best = mean.group_by("prompt_id", maintain_order=True).agg(
        pl.col("label").first().alias("label"),
        pl.col("prob").first().alias("confidence"),
        pl.struct("label", "prob").filter(pl.col("prob") > 0).alias("soft_labels"),
    )
    agreement = (
        said.join(best.select("prompt_id", "label"), on="prompt_id")
        .group_by("prompt_id")
        .agg((pl.col("said") == pl.col("label")).mean().alias("agreement"))
    )
    quoted = pl.col("label").replace_strict({label: to_canonical_json(label) for label in labels}).alias("answer")
    return best.join(agreement, on="prompt_id").select("prompt_id", quoted, "confidence", "soft_labels", "agreement")
