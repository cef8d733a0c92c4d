"""From token log-probabilities to a distribution over labels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from distill_dagster.kinds.classification import fold_label, make_word_pattern
from distill_dagster.teacher.providers.exchange import Position

SHORTEST_FRAGMENT = 4
"""The characters of a label that a token has to spell, unless it spells a whole word of it."""
LEAST_MASS = 0.02
"""The share of the probability that all labels together need if the chosen token begins one of them."""
LEAST_MASS_UNCHOSEN = 0.5
"""The same if the chosen token begins no label, as in "The category is …". The answer is then another one."""


@dataclass
class LabelMass:
    """Probability mass by label, and by a text that is the beginning of several labels.

    `chosen`: the first chosen token that is no white space begins a label.
    """

    labels: dict[str, float] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    chosen: bool = False

    @property
    def total(self) -> float:
        """All mass."""
        return sum(self.labels.values()) + sum(self.shared.values())

    @property
    def least(self) -> float:
        """The least mass with which an answer is one of the labels."""
        return LEAST_MASS if self.chosen else LEAST_MASS_UNCHOSEN

    def resolve(self, spelled: str, inner: LabelMass) -> None:
        """Divide the mass shared under `spelled` like the mass in `inner`, which was found after that text.

        One of its labels is certain to follow the shared text, so all of its mass is divided. An empty `inner` changes
        nothing.
        """
        if (total := inner.total) <= 0:
            return
        whole = self.shared.pop(spelled)
        for label, mass in inner.labels.items():
            self.labels[label] = self.labels.get(label, 0.0) + whole * mass / total
        for longer, mass in inner.shared.items():
            self.shared[longer] = self.shared.get(longer, 0.0) + whole * mass / total


def _find_possible_labels(text: str, labels: list[str]) -> list[str]:
    """The labels that a text can still become. A complete label may be followed by a character that is no letter."""
    folded = fold_label(text)
    possible = [label for label in labels if fold_label(label).startswith(folded)]
    if possible:
        return possible
    complete = [label for label in labels if re.match(make_word_pattern(label), folded)]
    return [max(complete, key=len)] if complete else []


def _find_spellings(position: Position, labels: list[str], prefix: str) -> dict[str, tuple[str, list[str]]]:
    """The tokens at one position that spell labels, each with the text so far and the labels that begin with it.

    Only the longest tokens at the beginning of a label count. If " notifications" is a token, then " not" begins other
    words ("not now"), and its mass says nothing about the label. Case and a leading space do not change the length.
    """
    spellings: dict[str, tuple[str, list[str]]] = {}
    longest: dict[str, int] = {}
    for token, _ in position:
        text = prefix + token if prefix.strip() else (prefix + token).lstrip()
        matching = _find_possible_labels(text, labels) if text.strip() else []
        if len(text.strip()) < SHORTEST_FRAGMENT:
            # " not" and " can" begin many words, so a short fragment says nothing, and a whole word does.
            word = re.escape(text.strip()) + r"\b"
            matching = [label for label in matching if re.match(word, label, re.IGNORECASE)]
        spellings[token] = (text, matching)
        for label in matching:
            longest[label] = max(longest.get(label, 0), min(len(text.rstrip()), len(label)))
    kept = {}
    for token, (text, matching) in spellings.items():
        best = [label for label in matching if min(len(text.rstrip()), len(label)) == longest[label]]
        if best:
            kept[token] = (text, best)
    return kept


def compute_label_mass(
    positions: list[Position], labels: list[str], spelled: str = "", ended: bool = False
) -> LabelMass:
    """Distribute the probability of each token over the labels that begin with it.

    Follows the chosen tokens. At each position, the other tokens branch off to labels of their own. The spellings of a
    label add up: " card" and "card" are two tokens.

    Args:
        positions: the likeliest tokens at each position, with natural log-probabilities; the first is the chosen one.
        spelled: the beginning of the answer that the request already contains.
        ended: whether the answer ended by itself after the last token. Then "data" is the label "data" and not the
            beginning of "data loss".
    """
    mass, prefix, path = LabelMass(), spelled, 1.0
    for index, position in enumerate(positions):
        taken, last = position[0][0], index == len(positions) - 1
        spellings = _find_spellings(position, labels, prefix)
        for token, logprob in dict(position).items():
            text, possible = spellings.get(token, ("", []))
            probability = path * math.exp(logprob)
            if ended and token == taken and last:
                possible = [label for label in possible if fold_label(label) == fold_label(text.strip())] or possible
            if len(possible) == 1:
                mass.labels[possible[0]] = mass.labels.get(possible[0], 0.0) + probability
            elif possible and (token != taken or last):
                mass.shared[text] = mass.shared.get(text, 0.0) + probability
        if taken.strip():
            prefix, possible = spellings.get(taken, ("", []))
            mass.chosen = mass.chosen or bool(possible)
            if len(possible) <= 1:
                break
        path *= math.exp(dict(position)[taken])
    return mass


def divide_shared(mass: LabelMass, labels: list[str]) -> dict[str, float]:
    """The mass of each label, with shared mass divided equally among the labels that it can become."""
    divided = {label: mass.labels.get(label, 0.0) for label in labels}
    for text, shared in mass.shared.items():
        possible = _find_possible_labels(text, labels)
        for label in possible:
            divided[label] += shared / len(possible)
    return divided


def list_next_words(labels: list[str], spelled: str = "") -> list[str]:
    """The words, or parts of words, that follow `spelled` in an answer that names a label.

    A line break ends the label `spelled` itself, if longer labels begin with it too.
    """
    beginning = f" {spelled}" if spelled else ""
    rests = [f" {label}"[len(beginning) :] for label in labels if f" {label}".startswith(beginning)]
    words = {re.match(r"\s*\S*", rest).group() or "\n" for rest in rests}  # type: ignore[union-attr]
    return sorted(words)


def fill_missing_mass(mass: dict[str, float], position: Position) -> dict[str, float]:
    """Give labels without mass the probability of the least likely token in the response, which is an upper bound.

    Without it, a label would vanish if it is not among the tokens that a provider lists. Dividing by the teacher's
    prior could not restore it.
    """
    least = math.exp(min(logprob for _, logprob in position))
    return {label: value or least for label, value in mass.items()}


def normalize_mass(mass: dict[str, float]) -> dict[str, float] | None:
    """Probabilities that sum to 1, or None if no label has any mass."""
    total = sum(mass.values())
    return {label: value / total for label, value in mass.items()} if total > 1e-9 else None
