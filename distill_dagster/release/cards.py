"""Model card and dataset card in the format of the Hugging Face Hub, from what was recorded.

Nothing in a card is estimated: figures come from metrics.json, counts from the dataset and its record, and terms from
the teachers. `model-index` has no field for an interval, so intervals are in the text and in report/metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.formatting import format_usd
from distill_dagster.curation.dataset.teacher_counts import PEOPLE
from distill_dagster.release.dataset_formats import count_by
from distill_dagster.release.gate import iter_gate_lines

if TYPE_CHECKING:
    import polars as pl
    from huggingface_hub import DatasetCard, ModelCard
    from jinja2 import Environment

    from distill_dagster.config import StudentSpec, Task
    from distill_dagster.core.checks import CheckResult
    from distill_dagster.release.types import Export, LeftOut

TEMPLATES = Path(__file__).with_name("templates")
CARD_FILE = "README.md"
KNOWN_BASES = {
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "all-minilm-l6-v2": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}
"""The Hub's name and licence of each packaged model, as their model cards state them."""
TASK_CATEGORIES = {
    "classification": "text-classification",
    "nli": "text-classification",
    "summarization": "summarization",
    "qa": "question-answering",
}
"""The Hub's category of a kind; all others are text-generation."""
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class DatasetFacts:
    """Counts of a dataset and of what its filters dropped. `reasons` are the drop reasons with their rows."""

    version: str
    rows: int
    splits: Mapping[str, int]
    origins: Mapping[str, int]
    slices: Mapping[str, int]
    teachers: Mapping[str, int]
    answers: Mapping[str, int]
    reasons: Mapping[str, int]
    candidates: int | None
    filters: Sequence[Mapping[str, Any]]

    @classmethod
    def from_table(
        cls,
        dataset: pl.DataFrame,
        version: str,
        has_labels: bool,
        reasons: Mapping[str, int],
        candidates: int | None,
        filters: Sequence[Mapping[str, Any]],
    ) -> DatasetFacts:
        """The counts of a table with the schema `DATASET`.

        Args:
            filters: for each filter of the task its `filter` and `parameters`, as `distill filters` lists them.
        """
        import polars as pl

        dataset = dataset.with_columns(pl.col("teacher").fill_null(PEOPLE))
        counts = {name: count_by(dataset, name) for name in ("split", "origin", "slice", "teacher")}
        return cls(
            version=version,
            rows=dataset.height,
            splits=counts["split"],
            origins=counts["origin"],
            slices=counts["slice"],
            teachers=counts["teacher"],
            answers=count_by(dataset, "answer") if has_labels else {},
            reasons={name: count for name, count in reasons.items() if count},
            candidates=candidates,
            filters=filters,
        )


@dataclass(frozen=True)
class DatasetCardFacts:
    """What the card of a dataset says. `terms` are those of all models asked. `has_data`: the rows are next to it."""

    task: Task
    task_name: str
    dataset: DatasetFacts
    terms: Sequence[Mapping[str, Any]]
    has_data: bool


@dataclass(frozen=True)
class CardFacts:
    """What the card of one release says. `metrics` is the report's metrics.json, `terms` those of all models asked."""

    task: Task
    task_name: str
    student: str
    number: int
    spec: StudentSpec
    dataset: DatasetFacts
    metrics: Mapping[str, Any]
    terms: Sequence[Mapping[str, Any]]
    gate: Sequence[CheckResult]
    exports: Sequence[Export] = ()
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()
    routing: Mapping[str, Any] | None = None


def build_model_card(facts: CardFacts) -> ModelCard:
    """The card of a released student, with its score on golden as `model-index`."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base, licence = find_base(facts.spec.model)
    name = f"{facts.task_name}-{facts.student}"
    score = facts.metrics["systems"]["distilled"]
    category = TASK_CATEGORIES.get(facts.task.kind, "text-generation")
    result = EvalResult(
        task_type=category,
        task_name=facts.task.description,
        dataset_type="private",
        dataset_name=f"golden set of {facts.task_name}",
        dataset_split="golden",
        metric_type=score["metric"],
        metric_name=f"{score['metric']} {_format_interval(score['score'])} on {score['n']} items",
        metric_value=score["score"]["value"],
    )
    # A name that is no repository would be refused: a folder of the user's own is not published.
    known = base if base.count("/") == 1 and not Path(base).is_dir() else None
    data = ModelCardData(
        base_model=known,
        eval_results=[result],
        library_name="peft" if facts.spec.method != "full" else "transformers",
        license=licence or "other",
        license_name=None if licence else "unknown",
        model_name=name,
        pipeline_tag=category,
        tags=["distillation", "distill-dagster", facts.task.kind],
    )
    text = (
        _get_environment()
        .get_template("model_card.md.j2")
        .render(facts=facts, name=name, base=base, licence=licence, gate=list(iter_gate_lines(facts.gate)))
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def build_dataset_card(facts: DatasetCardFacts) -> DatasetCard:
    """The card of the dataset that a student learned from."""
    from huggingface_hub import DatasetCard, DatasetCardData

    size = next((name for most, name in SIZE_CATEGORIES if facts.dataset.rows < most), "n>1M")
    data = DatasetCardData(
        pretty_name=f"{facts.task_name}, distilled",
        task_categories=[TASK_CATEGORIES.get(facts.task.kind, "text-generation")],
        size_categories=[size],
        annotations_creators=["machine-generated"],
        license="other",
        tags=["distillation", "distill-dagster"],
    )
    text = _get_environment().get_template("dataset_card.md.j2").render(facts=facts)
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def find_base(model: str) -> tuple[str, str | None]:
    """A base's name on the Hub, and its licence, or None if it is not known here: that of a folder with a card is."""
    from huggingface_hub import ModelCard

    if model in KNOWN_BASES:
        return KNOWN_BASES[model]
    card = Path(model).expanduser() / CARD_FILE
    if not card.is_file():
        return model, None
    licence = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    return model, str(licence) if licence else None


@cache
def _get_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters |= {
        "interval": _format_interval,
        "mb": lambda size: f"{size / 1e6:,.1f} MB",
        "usd": lambda value: "unknown" if value is None else format_usd(value),
        "cell": lambda text: " ".join(str(text).split()).replace("|", "\\|"),
        "ms": lambda seconds: "not measured" if seconds is None else f"{1000 * seconds:,.1f} ms",
    }
    return environment


def _format_interval(value: Mapping[str, float | None]) -> str:
    """`0.909 [0.873, 0.944]`."""
    if value["value"] is None:
        return "undefined"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
