"""The part of docs/filters.md that is made from the filters themselves.

python -m distill_dagster.curation.filters.docs        # writes it anew; a test fails where it is stale
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.core.hashing import canonical_json
from distill_dagster.core.paths import PROJECT
from distill_dagster.curation.filters.base import Example, Filter
from distill_dagster.curation.filters.own import COLUMNS
from distill_dagster.curation.filters.run import marked
from distill_dagster.curation.filters.settings import FILTERS, STEPS
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.scores.classifiers import VARIABLE
from distill_dagster.curation.task_view import LABELLED, About
from distill_dagster.kinds import KINDS
from distill_dagster.prompts.seeds import prompt_id
from distill_dagster.tables.messages import user_message
from distill_dagster.tables.schemas import SCORED, SCORES, frame_of

PAGE = PROJECT / "docs" / "filters.md"
BEGIN, END = "<!-- made from the filters: begin -->", "<!-- made from the filters: end -->"
GOOD: Mapping[str, Any] = {
    "text": "Where is my parcel?",
    "answer": "It left our house on Monday.",
    "status": "ok",
    "teacher": "teacher",
    "agreement": 1.0,
    "confidence": 0.9,
}
"""What an example has where it says nothing else."""


def example_row(example: Example) -> pl.DataFrame:
    """An example as one candidate (schema SCORED), with `finish_reason` and `completion_tokens` beside."""
    given = dict(GOOD) | dict(example.row)
    messages = user_message(given.pop("text"))
    beside = {"finish_reason": given.pop("finish_reason", None)}
    beside |= {"completion_tokens": given.pop("completion_tokens", None)}
    answer = given.pop("answer")
    row: dict[str, Any] = dict.fromkeys(SCORED)
    row |= {"prompt_id": prompt_id(messages), "slice": "shop", "origin": "human", "messages": messages}
    row |= {
        "answer": None if answer is None else canonical_json(answer),
        "answer_kind": KINDS[example.kind].answer_kind,
    }
    row |= {"completion_ids": ["c"], "words": len(str(messages[0]["content"]).split())} | given
    frame = frame_of([row], SCORED, ("prompt_id",))
    return frame.with_columns(
        pl.lit(beside["finish_reason"], dtype=pl.String).alias("finish_reason"),
        pl.lit(beside["completion_tokens"], dtype=pl.Int64).alias("completion_tokens"),
    )


def shouting(texts: list[str]) -> list[float]:
    """The classifier of the examples: the share of capitals."""
    return [sum(sign.isupper() for sign in text) / max(1, len(text)) for text in texts]


def _with_a_classifier() -> None:
    os.environ.setdefault(VARIABLE, "shouting=distill_dagster.curation.filters.docs:shouting")


def outcome(one: type[Filter], example: Example) -> tuple[str | None, str | None]:
    """(drop reason, detail) that a filter gives an example, scores and all."""
    _with_a_classifier()
    rule = one(**example.settings)
    about = About(example.kind, example.labels, reasoning=example.row.get("reasoning") is not None)
    rows = add_scores(example_row(example), rule.scorers(), about)
    found = marked(rows, [rule], about)
    return found["drop_reason"][0], found["drop_detail"][0]


def generated() -> str:
    """The generated part of the page."""
    _with_a_classifier()
    parts = ["| | filter | drop reason | on | score |", "| --- | --- | --- | --- | --- |"]
    for number, one in enumerate(FILTERS, start=1):
        link = f"[`{one.name}`](#{one.name})"
        parts.append(f"| {number} | {link} | `{one.reason}` | {_on(one)} | {_scores(one)} |")
    own = len(FILTERS) + 1
    parts.append(f"| {own} | [your own](#filters-of-your-own) | their names | where declared | as they name them |")
    for number, name in enumerate(STEPS, start=own + 1):
        parts.append(f"| {number} | `{name}` | `{name}` | always | |")
    parts += [_section(one) for one in FILTERS]
    columns = ", ".join(f"`{name}`" for name in COLUMNS)
    scores = ", ".join(f"`{name}`" for name in SCORES.to_schema())
    parts.append(f"### Columns of an expression\n\n{columns}; and every score: {scores}.")
    return "\n".join(parts) + "\n"


def _on(one: type[Filter]) -> str:
    if one.essential:
        return "always"
    if one.keys:
        return f"by `{next(iter(one.keys))}`"
    suits = ", ".join(one.suits)
    preset = f"`suited`: {suits}" if suits else "where declared"
    return f"by default; more with {preset}" if one.by_default and suits else "by default" if one.by_default else preset


def _scores(one: type[Filter]) -> str:
    return ", ".join(f"`{score.name}`" for score in _example_of(one).scorers())


def _example_of(one: type[Filter]) -> Filter:
    return one(**one.dropped.settings)


def _section(one: type[Filter]) -> str:
    doc = "\n".join(line.strip() for line in (one.__doc__ or "").strip().splitlines())
    parts = [f"\n### {one.name}\n\n{doc}\n"]
    fields = {name: field for name, field in one.model_fields.items() if name != "enabled"}
    if fields:
        parts.append("| parameter | default | |\n| --- | --- | --- |")
        for name, field in fields.items():
            default = "" if field.is_required() else f"`{json.dumps(_plain(field.default))}`"
            shown = f"`{name}`" + (" (a bare value sets it)" if name == one.short else "")
            parts.append(f"| {shown} | {default} | {field.description or ''} |")
        parts.append("")
    for kind, values in one.suits.items():
        if values:
            parts.append(f"- of kind {kind}: {', '.join(f'`{n}: {json.dumps(v)}`' for n, v in values.items())}")
    for word, example in (("kept", one.kept), ("dropped", one.dropped)):
        detail = outcome(one, example)[1]
        settings = f" with `{json.dumps(dict(example.settings))}`" if example.settings else ""
        parts.append(
            f"- {word}{settings}: {_shown(example)}" + (f" → `{detail}`" if word == "dropped" and detail else "")
        )
    return "\n".join(parts)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(example: Example) -> str:
    labels = f" ({', '.join(example.labels)})" if example.kind in LABELLED else ""
    row = {name: value for name, value in example.row.items() if value is not None}
    text = json.dumps(row, ensure_ascii=False) if row else "an ordinary row"
    return f"{example.kind}{labels}, `{text if len(text) <= 140 else text[:139] + '…'}`" if row else text


def page() -> str:
    """docs/filters.md with its generated part made anew; what stands around it is written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{generated()}\n{END}{after}"


def main(path: Path = PAGE) -> None:
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
