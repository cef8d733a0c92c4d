"""Classifiers that the user installs, such as one for toxicity.

A classifier is a function from a list of texts to a list of numbers from 0 to 1. It comes from a package with an entry
point in the group `distill_dagster.classifiers`, or from the environment variable
`DISTILL_CLASSIFIERS="toxic=my_module:score"`. A task folder only names it: a task never decides what is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata

import polars as pl

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView

CLASSIFIER_GROUP = "distill_dagster.classifiers"
CLASSIFIER_VARIABLE = "DISTILL_CLASSIFIERS"
CLASSIFIER_BATCH_ROWS = 1024
Classifier = Callable[[list[str]], Sequence[float]]


def find_classifiers() -> dict[str, metadata.EntryPoint]:
    """The installed classifiers by name. The environment variable takes precedence over packages."""
    entry_points = {point.name: point for point in metadata.entry_points(group=CLASSIFIER_GROUP)}
    for part in os.environ.get(CLASSIFIER_VARIABLE, "").split(","):
        name, _, target = part.strip().partition("=")
        if name and target:
            entry_points[name] = metadata.EntryPoint(name, target, CLASSIFIER_GROUP)
    return entry_points


def describe_missing_classifier(name: str) -> str:
    """The error text for a classifier that is not installed, without a full stop."""
    return (
        f"there is no classifier {name!r}: install a package with an entry point of that name in the group "
        f"{CLASSIFIER_GROUP}, or set {CLASSIFIER_VARIABLE}={name}=module:function; "
        f"installed: {', '.join(find_classifiers()) or 'none'}"
    )


@cache
def _load_classifier(name: str) -> Classifier:
    try:
        classifier: Classifier = find_classifiers()[name].load()
    except KeyError:
        raise DistillError(f"{describe_missing_classifier(name)}.") from None
    except Exception as error:
        raise DistillError(f"The classifier {name!r} cannot be loaded: {error}") from error
    return classifier


def read_classifier_version(name: str) -> str:
    """The classifier's name with the version of its package, else with the function's attribute `version`."""
    entry_point = find_classifiers().get(name)
    if entry_point is not None and entry_point.dist is not None:
        return f"{name} {entry_point.dist.version}"
    return f"{name} {getattr(_load_classifier(name), 'version', '')}".strip()


def build_classifier_scorer(field: str, name: str, column: str) -> Scorer:
    """The scorer that computes one field by a classifier.

    Args:
        field: the score, of `tables.schemas.SCORES`.
        name: the classifier.
        column: the text column that the classifier reads.

    Raises:
        DistillError: the classifier is not installed, or does not return one number from 0 to 1 for each text.
    """

    def run(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
        classify, scores = _load_classifier(name), list[float]()
        texts = rows[column].fill_null("").to_list()
        for start in range(0, len(texts), CLASSIFIER_BATCH_ROWS):
            batch = texts[start : start + CLASSIFIER_BATCH_ROWS]
            values = [float(value) for value in classify(batch)]
            if len(values) != len(batch) or any(not 0 <= value <= 1 for value in values):
                raise DistillError(f"The classifier {name!r} did not return one number from 0 to 1 for each text.")
            scores += [round(value, 4) for value in values]
        return pl.DataFrame({field: scores}, schema={field: pl.Float64})

    return Scorer(field, read_classifier_version(name), (field,), run)
