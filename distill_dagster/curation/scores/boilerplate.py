"""Text in place of an answer: phrases of assistants, placeholders and tokens of chat templates."""

from __future__ import annotations

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView

BOILERPLATE_PATTERN = (
    r"(?i)\bas an? (?:AI|artificial intelligence|large language|language) (?:language )?(?:model|assistant)\b"
    r"|\bmy (?:knowledge cut-?off|training data)\b|\blorem ipsum\b|\[(?:insert|your|name|date|company)[^\]\n]{0,40}\]"
    r"|^\W*(?:N/?A|TODO|TBD|none|null|undefined|\.\.\.|…)\W*$|\bI hope this helps\b|\bis there anything else I can\b"
    r"|<\|(?:im_end|im_start|endoftext|eot_id)\|>|\bEnd of (?:answer|response)\b"
)


def _find_boilerplate(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    """The first match in the answer, or in the reasoning where the answer is a label; `nothing` for an empty text."""
    text = pl.col("reasoning") if task.kind in LABEL_KINDS else pl.col("answer_text")
    match = text.str.extract(f"({BOILERPLATE_PATTERN})", 1)
    empty = pl.when(text.str.strip_chars() == "").then(pl.lit("nothing"))
    return rows.select(pl.coalesce(match, empty).alias("boilerplate"))


BOILERPLATE_SCORER = Scorer("boilerplate", "1", ("boilerplate",), _find_boilerplate)
