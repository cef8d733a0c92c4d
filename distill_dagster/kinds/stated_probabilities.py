"""Read probabilities or a ranking of labels that a model or a record states, and make a distribution of them.

Stated ("verbalized") probabilities are the soft labels of a teacher without log-probabilities: Tian et al. 2023, "Just
Ask for Calibration". Models write them in many forms, and not always as numbers that sum to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill_dagster.kinds.classification import fold_label

ROUNDING = 0.02
"""Probabilities whose sum differs from 1 by no more were rounded, and are only scaled."""
LEAST_LEAD = 1e-6
"""How much more probable than any other label an answer is made on a tie. Stored probabilities have 6 decimals."""
_LABEL_FIELDS = ("label", "category", "class", "name", "answer", "guess")
_PROBABILITY_FIELDS = ("probability", "prob", "p", "confidence", "score", "share")
_QUOTES = "\"'`*“”‘’ "


def parse_probabilities(value: Any) -> dict[str, float]:
    """Read the number that is stated for each label, by the label as it is written.

    Known forms: an object of labels and numbers; a list of such objects, of objects with a label and a probability, or
    of pairs; each also as JSON text. A number may be a text, and a percentage such as "97 %". Labels without a number
    (null) are left out. The first number of a label counts: models repeat themselves.

    Raises:
        ValueError: another form, or a number that is negative or not finite. The message is a phrase about the value.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("are not JSON") from None
    pairs = value.items() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not value:
        raise ValueError("are no object of labels and numbers")
    stated: dict[str, float] = {}
    for entry in pairs:
        for name, number in _read_entry(entry):
            if number is not None:
                stated.setdefault(name, _read_number(name, number))
    if not stated:
        raise ValueError("contain no number")
    return stated


def build_distribution(
    stated: Mapping[str, float], labels: Sequence[str], answer: str | None = None
) -> dict[str, float] | None:
    """Make a distribution over labels, which sums to 1, of stated numbers. None if none of the labels has a number.

    - Case and quotation marks do not distinguish labels. What is stated for other labels is left out.
    - Numbers above 1 are percentages if they sum to about 100, and weights otherwise.
    - If the sum is less than 1, the rest is divided equally among the labels that are not named, but none of them
      becomes more probable than the least probable label that is named. In all other cases the numbers are scaled.
    - If `answer`, the label that was stated, is not the likeliest, it changes places with the likeliest. On a tie it is
      the likeliest by `LEAST_LEAD`.
    """
    total = sum(stated.values())
    scale = 100.0 if max(stated.values(), default=0.0) > 1 and 90 <= total <= 110 else 1.0
    by_name = {fold_label(label): label for label in labels}
    shares: dict[str, float] = {}
    for name, number in stated.items():
        label = _match_label(name, by_name)
        if label is not None and number > 0:
            shares.setdefault(label, number / scale)
    if not shares:
        return None
    unnamed = [label for label in labels if label not in shares]
    rest = 1 - total / scale
    if rest > ROUNDING and unnamed:
        shares |= dict.fromkeys(unnamed, min(rest / len(unnamed), min(shares.values())))
    whole = sum(shares.values())
    shares = {label: share / whole for label, share in shares.items()}
    return shares if answer is None else _put_first(shares, answer)


def weigh_ranking(value: Any, labels: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Give each ranked label the weight of its rank. Labels beyond the last weight get none.

    Known forms: a list of labels, best first, or of objects with a label and perhaps a `rank`; an object of ranks and
    labels. Names that are no label are left out, and the labels behind them move up.

    Raises:
        ValueError: another form, or no label is named. The message is a phrase about the value.
    """
    entries = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        raise ValueError("is no list of labels")
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if len(objects) == len(entries) and all(isinstance(entry.get("rank"), int) for entry in objects):
        entries = sorted(objects, key=lambda entry: int(entry["rank"]))
    by_name = {fold_label(label): label for label in labels}
    ranked: dict[str, None] = {}
    for entry in entries:
        name = entry if isinstance(entry, str) else _find_label_field(entry)
        if name is None:
            raise ValueError("is no list of labels")
        label = _match_label(name, by_name)
        if label is not None:
            ranked.setdefault(label)
    if not ranked:
        raise ValueError("names no label of the task")
    return dict(zip(ranked, weights, strict=False))


def _match_label(name: str, by_name: Mapping[str, str]) -> str | None:
    """The label with this name, but for case, white space and quotation marks around it."""
    return by_name.get(fold_label(name.strip())) or by_name.get(fold_label(name.strip(_QUOTES)))


def _find_label_field(entry: Any) -> str | None:
    fields = entry if isinstance(entry, dict) else {}
    return next((fields[name] for name in _LABEL_FIELDS if isinstance(fields.get(name), str)), None)


def _put_first(shares: dict[str, float], answer: str) -> dict[str, float]:
    """The distribution with `answer` as the likeliest label, listed first."""
    own = shares.get(answer, 0.0)
    others = {label: share for label, share in shares.items() if label != answer}
    rival = max(others, key=lambda label: others[label], default=None)
    if rival is not None and others[rival] > own:
        own, others[rival] = others[rival], own
        rival = max(others, key=lambda label: others[label])
    if rival is not None and own - others[rival] < LEAST_LEAD:
        own, others[rival] = own + LEAST_LEAD, others[rival] - LEAST_LEAD
    return {label: share for label, share in {answer: own, **others}.items() if share > 0}


def _read_entry(entry: Any) -> list[tuple[str, Any]]:
    """The labels and numbers in a pair, or in an item of a list."""
    if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str):
        return [(entry[0], entry[1])]
    if isinstance(entry, dict):
        label = _find_label_field(entry)
        number = next((entry[name] for name in _PROBABILITY_FIELDS if name in entry), None)
        if label is not None and number is not None:
            return [(label, number)]
        if label is None and entry:
            return list(entry.items())
    raise ValueError("are no object of labels and numbers")


def _read_number(label: str, number: Any) -> float:
    if isinstance(number, str):
        text, percent, _ = number.strip().partition("%")
        try:
            value = float(text.replace(",", ".")) / (100 if percent else 1)
        except ValueError:
            raise ValueError(f"contain {number[:40]!r} for {label[:60]!r}, which is no number") from None
    elif isinstance(number, int | float) and not isinstance(number, bool):
        value = float(number) if isinstance(number, float) or number.bit_length() < 1000 else math.inf
    else:
        raise ValueError(f"contain a value for {label[:60]!r} that is no number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"contain {value} for {label[:60]!r}, which is no probability")
    return value
