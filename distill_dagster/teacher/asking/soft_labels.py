"""From token log-probabilities, or from text, to a distribution over labels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from distill_dagster.kinds.classification import make_word_pattern
from distill_dagster.teacher.providers.exchange import Position

SHORTEST_FRAGMENT = 4
"""Characters that a token must spell of a label unless it spells a whole word of it."""


@dataclass
class LabelMass:
    """Probability mass by label, and by text that several labels begin with and nothing has told apart yet."""

    labels: dict[str, float] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.labels.values()) + sum(self.shared.values())

    def resolve(self, spelled: str, inner: LabelMass) -> None:
        """Divide what is shared under `spelled` as `inner` is, which was found behind it; nothing, where that is empty.

        What follows the shared part is certain to be one of its labels: its mass is passed on whole.
        """
        if (total := inner.total) <= 0:
            return
        whole = self.shared.pop(spelled)
        for label, mass in inner.labels.items():
            self.labels[label] = self.labels.get(label, 0.0) + whole * mass / total
        for longer, mass in inner.shared.items():
            self.shared[longer] = self.shared.get(longer, 0.0) + whole * mass / total


def _find_possible_labels(text: str, labels: list[str]) -> list[str]:
    """Labels that a spelling so far can still become; a finished label may be followed by a non-word character."""
    folded = text.casefold()
    found = [label for label in labels if label.casefold().startswith(folded)]
    if found:
        return found
    ended = [x for x in labels if re.match(make_word_pattern(x), folded)]
    return [max(ended, key=len)] if ended else []


def _find_spellings(position: Position, labels: list[str], prefix: str) -> dict[str, tuple[str, list[str]]]:
    """Tokens of one place that spell labels: token -> (text so far, labels that it begins).

    Of the tokens that a label begins with only the longest count: where " notifications" is a token of its own, " not"
    begins other words ("not now"), and its mass says nothing of the label. Spellings that differ in case or in a
    leading space are equally long.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    longest: dict[str, int] = {}
    for token, _ in position:
        text = prefix + token if prefix.strip() else (prefix + token).lstrip()
        matching = _find_possible_labels(text, labels) if text.strip() else []
        if len(text.strip()) < SHORTEST_FRAGMENT:
            # " not" and " can" begin words of every kind: a fragment so short says nothing, a whole word does.
            matching = [x for x in matching if re.match(re.escape(text.strip()) + r"\b", x, re.IGNORECASE)]
        found[token] = (text, matching)
        for label in matching:
            longest[label] = max(longest.get(label, 0), min(len(text.rstrip()), len(label)))
    kept = {}
    for token, (text, matching) in found.items():
        best = [x for x in matching if min(len(text.rstrip()), len(x)) == longest[x]]
        if best:
            kept[token] = (text, best)
    return kept


def compute_label_mass(
    positions: list[Position], labels: list[str], spelled: str = "", ended: bool = False
) -> LabelMass:
    """Distribute the probability of each token spelling over the labels that it begins.

    Walks along the taken tokens; at each place the other tokens branch off to labels of their own. All spellings of a
    label add up (" card" and "card" are two tokens). `spelled` is what the request already wrote of the answer; `ended`
    tells that the answer ended by itself behind the last token: then "data" is the label "data" and not the beginning
    of "data loss".
    """
    mass, prefix, path = LabelMass(), spelled, 1.0
    for index, position in enumerate(positions):
        taken, last = position[0][0], index == len(positions) - 1
        spellings = _find_spellings(position, labels, prefix)
        for token, logprob in dict(position).items():
            text, found = spellings.get(token, ("", []))
            here = path * math.exp(logprob)
            if ended and token == taken and last:
                found = [x for x in found if x.casefold() == text.strip().casefold()] or found
            if len(found) == 1:
                mass.labels[found[0]] = mass.labels.get(found[0], 0.0) + here
            elif found and (token != taken or last):
                mass.shared[text] = mass.shared.get(text, 0.0) + here
        if taken.strip():
            prefix, found = spellings.get(taken, ("", []))
            if len(found) <= 1:
                break
        path *= math.exp(dict(position)[taken])
    return mass


def divide_shared(mass: LabelMass, labels: list[str]) -> dict[str, float]:
    """Labels' mass, with what is shared divided equally among the labels that it may become."""
    out = {label: mass.labels.get(label, 0.0) for label in labels}
    for text, shared in mass.shared.items():
        found = _find_possible_labels(text, labels)
        for label in found:
            out[label] += shared / len(found)
    return out


def list_next_words(labels: list[str], spelled: str = "") -> list[str]:
    """What an answer that begins with `spelled` goes on with if it names a label: a word, or a part of one.

    A line break stands for the end of the label that `spelled` is, where longer labels begin with it too.
    """
    begun = f" {spelled}" if spelled else ""
    rests = [f" {label}"[len(begun) :] for label in labels if f" {label}".startswith(begun)]
    words = {re.match(r"\s*\S*", rest).group() or "\n" for rest in rests}  # type: ignore[union-attr]
    return sorted(words)


def fill_missing_mass(mass: dict[str, float], position: Position) -> dict[str, float]:
    """Labels without mass get the probability of the least likely token that was sent: theirs is at most that.

    Without it a label would drop out wherever it falls behind the tokens that a provider lists, and a division by the
    teacher's prior could not bring it back.
    """
    least = math.exp(min(logprob for _, logprob in position))
    return {label: value or least for label, value in mass.items()}


def normalize_mass(mass: dict[str, float]) -> dict[str, float] | None:
    """Probabilities that add up to 1, or None where no label has any mass."""
    total = sum(mass.values())
    return {label: value / total for label, value in mass.items()} if total > 1e-9 else None
