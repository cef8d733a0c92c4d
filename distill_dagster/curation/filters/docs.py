"""Generate the reference of filters in docs/filters.md from the filters themselves.

python -m distill_dagster.curation.filters.docs        # a test fails while the page is stale
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.curation.filters.base import Filter, FilterExample
from distill_dagster.curation.filters.catalogue import BUILT_IN_FILTERS, STEP_REASONS
from distill_dagster.curation.filters.run import mark_dropped
from distill_dagster.curation.filters.sql import SQL_COLUMNS
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.scores.classifiers import CLASSIFIER_VARIABLE
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import KINDS
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.messages import make_user_messages
from distill_dagster.tables.schemas import SCORED, SCORES, build_frame

FILTERS_PAGE = PROJECT_FOLDER / "docs" / "filters.md"
BEGIN_MARK, END_MARK = "<!-- generated from the filters: begin -->", "<!-- generated from the filters: end -->"
EXAMPLE_DEFAULTS: Mapping[str, Any] = {
    "text": "Where is my parcel?",
    "answer": "It left our house on Monday.",
    "status": "ok",
    "teacher": "teacher",
    "agreement": 1.0,
    "confidence": 0.9,
}
"""The columns of an example that its row omits."""
_STEP_SWITCHES = {
    "near_duplicate": "by default, by `dedup.near`",
    "semantic_duplicate": "by `dedup.semantic`",
    "over_cap": "by `balance`",
}
"""What turns a step after the filters on. The other steps are always on."""


def build_example_row(example: FilterExample) -> pl.DataFrame:
    """An example as one candidate: schema SCORED, with `finish_reason` and `completion_tokens`."""
    given = dict(EXAMPLE_DEFAULTS) | dict(example.row)
    messages = make_user_messages(given.pop("text"))
    extra = {"finish_reason": given.pop("finish_reason", None)}
    extra |= {"completion_tokens": given.pop("completion_tokens", None)}
    answer = given.pop("answer")
    row: dict[str, Any] = dict.fromkeys(SCORED)
    row |= {"prompt_id": compute_prompt_id(messages), "slice": "shop", "origin": "human", "messages": messages}
    row |= {
        "answer": None if answer is None else to_canonical_json(answer),
        "answer_kind": KINDS[example.kind].answer_kind,
    }
    row |= {"completion_ids": ["c"], "words": len(str(messages[0]["content"]).split())} | given
    frame = build_frame([row], SCORED, ("prompt_id",))
    return frame.with_columns(
        pl.lit(extra["finish_reason"], dtype=pl.String).alias("finish_reason"),
        pl.lit(extra["completion_tokens"], dtype=pl.Int64).alias("completion_tokens"),
    )


def score_capitals(texts: list[str]) -> list[float]:
    """The classifier of the examples: the share of capital letters."""
    return [sum(sign.isupper() for sign in text) / max(1, len(text)) for text in texts]


def _register_example_classifier() -> None:
    os.environ.setdefault(CLASSIFIER_VARIABLE, "shouting=distill_dagster.curation.filters.docs:score_capitals")


def apply_to_example(one: type[Filter], example: FilterExample) -> tuple[str | None, str | None]:
    """Drop reason and detail that a filter gives an example, after its scores are computed."""
    _register_example_classifier()
    rule = one(**example.settings)
    task = TaskView(example.kind, example.labels, reasoning=example.row.get("reasoning") is not None)
    rows = add_scores(build_example_row(example), rule.list_scorers(), task)
    found = mark_dropped(rows, [rule], task)
    return found["drop_reason"][0], found["drop_detail"][0]


def render_filter_reference() -> str:
    """The generated part of the page, as Markdown."""
    _register_example_classifier()
    parts = ["| | filter | drop reason | on | score |", "| --- | --- | --- | --- | --- |"]
    for number, one in enumerate(BUILT_IN_FILTERS, start=1):
        link = f"[`{one.name}`](#{one.name})"
        parts.append(f"| {number} | {link} | `{one.reason}` | {_describe_when_on(one)} | {_list_scores(one)} |")
    own = len(BUILT_IN_FILTERS) + 1
    parts.append(f"| {own} | [your own](#filters-of-your-own) | their names | if declared | those that it reads |")
    for number, name in enumerate(STEP_REASONS, start=own + 1):
        parts.append(f"| {number} | `{name}` | `{name}` | {_STEP_SWITCHES.get(name, 'always')} | |")
    parts += [_render_section(one) for one in BUILT_IN_FILTERS]
    columns = ", ".join(f"`{name}`" for name in SQL_COLUMNS)
    scores = ", ".join(f"`{name}`" for name in SCORES.to_schema())
    parts.append(f"\n### Columns of an expression\n\n{columns}; and every score: {scores}.")
    return "\n".join(parts) + "\n"


def _describe_when_on(one: type[Filter]) -> str:
    defaults = one.defaults
    if defaults.always_on:
        return "always"
    if defaults.threshold is not None:
        return f"by `{defaults.threshold}`"
    kinds = ", ".join(defaults.kinds)
    preset = f"`suited`: {kinds}" if kinds else "if declared"
    if not defaults.on_by_default:
        return preset
    return f"by default; more with {preset}" if kinds else "by default"


def _list_scores(one: type[Filter]) -> str:
    return ", ".join(f"`{scorer.name}`" for scorer in _build_dropping_filter(one).list_scorers())


def _build_dropping_filter(one: type[Filter]) -> Filter:
    return one(**one.dropped.settings)


def _render_section(one: type[Filter]) -> str:
    doc = "\n".join(line.strip() for line in (one.__doc__ or "").strip().splitlines())
    parts = [f"\n### {one.name}\n\n{doc}\n"]
    fields = {name: field for name, field in one.model_fields.items() if name != "enabled"}
    if fields:
        parts.append("| parameter | default | |\n| --- | --- | --- |")
        for name, field in fields.items():
            default = "" if field.is_required() else f"`{json.dumps(_to_json_value(field.default))}`"
            shown = f"`{name}`" + (" (a bare value sets it)" if name == one.defaults.bare_value else "")
            parts.append(f"| {shown} | {default} | {field.description or ''} |")
        parts.append("")
    for kind, values in one.defaults.kinds.items():
        if values:
            parts.append(f"- for kind {kind}: {', '.join(f'`{n}: {json.dumps(v)}`' for n, v in values.items())}")
    for word, example in (("kept", one.kept), ("dropped", one.dropped)):
        detail = apply_to_example(one, example)[1]
        settings = f" with `{json.dumps(dict(example.settings))}`" if example.settings else ""
        parts.append(
            f"- {word}{settings}: {_format_example(example)}"
            + (f" → `{detail}`" if word == "dropped" and detail else "")
        )
    return "\n".join(parts)


def _to_json_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _format_example(example: FilterExample) -> str:
    labels = f" ({', '.join(example.labels)})" if example.kind in LABEL_KINDS else ""
    row = {name: value for name, value in example.row.items() if value is not None}
    text = json.dumps(row, ensure_ascii=False) if row else "an ordinary row"
    return f"{example.kind}{labels}, `{text if len(text) <= 140 else text[:139] + '…'}`" if row else text


def render_filters_page() -> str:
    """docs/filters.md with its generated part rendered again; the rest is written by hand."""
    text = FILTERS_PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN_MARK)
    _, _, after = rest.partition(END_MARK)
    return f"{before}{BEGIN_MARK}\n\n{render_filter_reference()}\n{END_MARK}{after}"


def write_filters_page(path: Path = FILTERS_PAGE) -> None:
    path.write_text(render_filters_page(), encoding="utf-8")


if __name__ == "__main__":
    write_filters_page()
