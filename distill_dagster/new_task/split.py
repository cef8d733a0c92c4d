"""Decide which rows become examples, dev, golden and seeds. A seed and the texts alone decide, not the rows' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distill_dagster.core.hashing import hash_strings

Part = Literal["golden", "dev", "examples", "seeds"]
PARTS: tuple[Part, ...] = ("golden", "dev", "examples", "seeds")
LEAST: dict[Part, int] = {"golden": 1, "dev": 1, "examples": 2}
"""Rows that each label needs: two examples, so that one is left to calibrate with."""
MOST: dict[Part, int] = {"golden": 400, "dev": 200, "examples": 200, "seeds": 2000}
"""Default sizes grow with the table up to these."""
_SHARES: dict[Part, float] = {"golden": 0.3, "dev": 0.2, "examples": 0.2}
MOST_TO_LABEL = 200
"""Rows of an unlabelled table that a person is asked to label."""


@dataclass(frozen=True)
class SplitUnit:
    """Rows that must not be divided: near-duplicates of each other. `key` is the text of the first, normalized."""

    key: str
    label: str | None


def choose_sizes(labelled: int, unlabelled: int, labels: int, given: Mapping[Part, int]) -> dict[Part, int]:
    """How many units each part gets.

    Of few labelled rows 30% are golden, 20% dev, 20% examples, and the rest seeds. If there are more unlabelled rows,
    which can only be seeds, more labelled rows are examples.

    Args:
        given: sizes that a person chose.
    """
    labels = max(labels, 1)
    sizes: dict[Part, int] = {}
    for part, share in _SHARES.items():
        wanted = min(round(share * labelled), max(MOST[part], 4 * labels))
        sizes[part] = given.get(part, max(wanted, LEAST[part] * labels))
    spare = labelled - sum(sizes.values())
    if unlabelled >= labelled and "examples" not in given:
        sizes["examples"] += max(0, min(spare, max(MOST["examples"], 4 * labels) - sizes["examples"]))
    sizes["seeds"] = given.get("seeds", MOST["seeds"])
    return sizes


def split_units(units: Sequence[SplitUnit], sizes: Mapping[Part, int], seed: int) -> dict[str, Part | None]:
    """The part of each unit by its key, or None for a seed beyond the wanted number.

    Every label is divided in proportion, so that each part has about the same shares of labels.
    """
    ranked = sorted(units, key=lambda unit: hash_strings(str(seed), unit.key))
    by_label: dict[str, list[SplitUnit]] = {}
    for unit in ranked:
        if unit.label is not None:
            by_label.setdefault(unit.label, []).append(unit)
    parts: dict[str, Part | None] = {}
    names = sorted(by_label)
    counts = [len(by_label[name]) for name in names]
    room = list(counts)
    least_after = sum(LEAST.values())
    taken = [0] * len(names)
    for part, least in LEAST.items():
        least_after -= least
        most = [max(0, free - least_after) for free in room]
        shares = apportion(sizes[part], counts, least, most)
        for index, (name, share) in enumerate(zip(names, shares, strict=True)):
            for unit in by_label[name][taken[index] : taken[index] + share]:
                parts[unit.key] = part
            taken[index] += share
            room[index] -= share
    rest = [unit for unit in ranked if unit.key not in parts]
    for number, unit in enumerate(rest):
        parts[unit.key] = "seeds" if number < sizes["seeds"] else None
    return parts


def apportion(total: int, counts: Sequence[int], least: int, most: Sequence[int]) -> list[int]:
    """Divide a number in proportion to counts (largest remainder), each share at least `least` and at most `most`."""
    whole = max(sum(counts), 1)
    exact = [total * count / whole for count in counts]
    shares = [min(max(int(value), least), limit) for value, limit in zip(exact, most, strict=True)]
    while sum(shares) != total:
        step = 1 if sum(shares) < total else -1
        free = [i for i, share in enumerate(shares) if (share < most[i] if step > 0 else share > min(least, most[i]))]
        if not free:
            break
        shares[max(free, key=lambda i: (step * (exact[i] - shares[i]), -i))] += step
    return shares
