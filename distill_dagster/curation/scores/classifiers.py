"""Local classifiers of others, such as of toxicity: installed by whoever runs this, never named by code in a task.

A classifier is a function from a list of texts to a list of numbers from 0 to 1. It comes from a package with an entry
point in the group `distill_dagster.classifiers`, or from the environment of the process: `DISTILL_CLASSIFIERS=
"toxic=my_module:score"`. A task folder only names it, so that no task folder makes a process import what it likes.
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
    """The classifiers that can be named, by name."""
    found = {one.name: one for one in metadata.entry_points(group=CLASSIFIER_GROUP)}
    for part in os.environ.get(CLASSIFIER_VARIABLE, "").split(","):
        name, _, place = part.strip().partition("=")
        if name and place:
            found[name] = metadata.EntryPoint(name, place, CLASSIFIER_GROUP)
    return found


def describe_missing_classifier(name: str) -> str:
    """What is said of a classifier that nobody installed."""
    return (
        f"there is no classifier {name!r}: install a package with an entry point of that name in the group "
        f"{CLASSIFIER_GROUP}, or "
        f"set {CLASSIFIER_VARIABLE}={name}=module:function; there are {', '.join(find_classifiers()) or 'none'}"
    )


@cache
def _load_classifier(name: str) -> Classifier:
    try:
        function: Classifier = find_classifiers()[name].load()
    except KeyError:
        raise DistillError(f"{describe_missing_classifier(name)}.") from None
    except Exception as error:
        raise DistillError(f"The classifier {name!r} could not be loaded: {error}") from error
    return function


def read_classifier_version(name: str) -> str:
    """Of the package that it comes from, else its own attribute `version`."""
    one = find_classifiers().get(name)
    if one is not None and one.dist is not None:
        return f"{name} {one.dist.version}"
    return f"{name} {getattr(_load_classifier(name), 'version', '')}".strip()


def build_classifier_scorer(field: str, name: str, of: str) -> Scorer:
    """The scorer of one field by a named classifier, over the column `of`.

    Raises:
        DistillError: it is not installed, or does not give one number from 0 to 1 for each text.
    """

    def run(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
        score, out = _load_classifier(name), list[float]()
        texts = rows[of].fill_null("").to_list()
        for start in range(0, len(texts), CLASSIFIER_BATCH_ROWS):
            batch = texts[start : start + CLASSIFIER_BATCH_ROWS]
            found = [float(value) for value in score(batch)]
            if len(found) != len(batch) or any(not 0 <= value <= 1 for value in found):
                raise DistillError(f"The classifier {name!r} did not give one number from 0 to 1 for each text.")
            out += [round(value, 4) for value in found]
        return pl.DataFrame({field: out}, schema={field: pl.Float64})

    return Scorer(field, read_classifier_version(name), (field,), run)
