"""Candidates of label tasks: average soft labels or votes over samples, after calibration by the prior."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.candidates.priors import MIN_LABEL_PROB, expand_soft_labels
from distill_dagster.tables.messages import user_text_expr
from distill_dagster.tables.schemas import SCORED, conform_to_schema


def choose_label_candidates(
    prompts: pl.DataFrame,
    completions: pl.DataFrame,
    prior: pl.DataFrame,
    labels: list[str],
    *,
    correct_votes: bool = False,
) -> pl.DataFrame:
    """Choose one candidate per prompt: divide the soft labels of each sample by the prior, normalize and average them.

    `agreement` is the share of usable samples whose own answer is the candidate. `confidence` is the candidate's
    probability. On a tie, the label that comes first in the task wins.

    Args:
        prior: schema TEACHER_PRIOR.
        labels: all labels of the task, in its order.
        correct_votes: the prior corrects the votes of samples without soft labels. A single vote divided by its prior
            is still one vote, so the sum of the votes is divided and normalized.

    Returns:
        Schema SCORED, one row per prompt.
    """
    ok = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    soft = ok.filter(pl.col("soft_labels").is_not_null())
    voted = ok.filter(pl.col("soft_labels").is_null())
    parts = []
    if soft.height:
        corrected = (
            expand_soft_labels(soft, labels)
            # A draw without a prior (it uses all examples) is not corrected. An inner join would lose it.
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
        answers = voted.select("prompt_id", "sample_index", pl.col("answer").str.json_decode(pl.String).alias("voted"))
        vote_weight = pl.lit(1.0)
        if correct_votes:
            answers = answers.join(
                prior.select("sample_index", pl.col("label").alias("voted"), (1 / pl.col("prob")).alias("weight")),
                on=["sample_index", "voted"],
                how="left",
            ).with_columns(pl.col("weight").fill_null(float(len(labels))))
            vote_weight = pl.col("weight") / pl.col("weight").mean().over("prompt_id")
        votes = answers.with_columns(vote_weight.alias("weight")).join(pl.DataFrame({"label": labels}), how="cross")
        is_vote = (pl.col("label") == pl.col("voted")).cast(pl.Float64)
        parts.append(votes.select("prompt_id", "sample_index", "label", (is_vote * pl.col("weight")).alias("prob")))
    out = prompts.select("prompt_id", "slice", "origin", "messages", "target_label", "reference")
    out = out.join(_summarize_prompts(completions), on="prompt_id", how="left")
    if parts:
        out = out.join(_choose_labels(pl.concat(parts), labels), on="prompt_id", how="left")
    else:
        names = ("answer", "soft_labels", "agreement", "confidence")
        out = out.with_columns([pl.lit(None, dtype=SCORED[name]).alias(name) for name in names])
    words = user_text_expr().str.extract_all(r"\S+").list.len().cast(pl.Int64).alias("words")
    out = out.with_columns(words, pl.lit("label").alias("answer_kind"))
    empty = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in SCORED.items() if name not in out.columns]
    out = out.with_columns(empty)
    return conform_to_schema(out, SCORED, ("prompt_id",))


def _summarize_prompts(completions: pl.DataFrame) -> pl.DataFrame:
    """Status, error, reasoning and ids of each prompt over its samples. The status is ok if any sample is ok."""
    ordered = completions.sort("prompt_id", "sample_index")
    return ordered.group_by("prompt_id", maintain_order=True).agg(
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
    """The best label of each prompt with its confidence, agreement and soft labels.

    Args:
        long: `prompt_id`, `sample_index`, `label` and `prob`, one row per sample and label.
    """
    order = pl.DataFrame({"label": labels, "place": range(len(labels))})
    ranked = long.join(order, on="label")
    votes = (
        ranked.sort(["prompt_id", "sample_index", "prob", "place"], descending=[False, False, True, False])
        .group_by("prompt_id", "sample_index", maintain_order=True)
        .agg(pl.col("label").first().alias("voted"))
    )
    mean = ranked.group_by("prompt_id", "label", "place").agg(pl.col("prob").mean().round(6))
    mean = mean.sort(["prompt_id", "prob", "place"], descending=[False, True, False])
    best = mean.group_by("prompt_id", maintain_order=True).agg(
        pl.col("label").first().alias("label"),
        pl.col("prob").first().alias("confidence"),
        pl.struct("label", "prob").filter(pl.col("prob") > 0).alias("soft_labels"),
    )
    agreement = (
        votes.join(best.select("prompt_id", "label"), on="prompt_id")
        .group_by("prompt_id")
        .agg((pl.col("voted") == pl.col("label")).mean().alias("agreement"))
    )
    quoted = pl.col("label").replace_strict({label: to_canonical_json(label) for label in labels}).alias("answer")
    return best.join(agreement, on="prompt_id").select("prompt_id", quoted, "confidence", "soft_labels", "agreement")
