"""Read the label in an answer that is the name of a label: from its text, or from its token log-probabilities."""

from __future__ import annotations

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.thinking import split_thinking
from distill_dagster.kinds import ParsedAnswer
from distill_dagster.kinds.classification import explain_missing_label, parse_label
from distill_dagster.kinds.reading import CUT, STILL_THINKING
from distill_dagster.teacher.asking.soft_labels import LabelMass
from distill_dagster.teacher.providers.exchange import Position


def read_label(text: str, labels: list[str], *, cut: bool) -> ParsedAnswer:
    """Read the label that a text names after the model's thinking.

    Args:
        cut: the text was cut at `max_tokens`. Then only a label at its beginning counts.
    """
    split = split_thinking(text)
    thinking = split.thinking or None
    if not split.ended:
        return ParsedAnswer("truncated", None, thinking, STILL_THINKING)
    label = parse_label(split.answer, labels, cut=cut)
    if label is not None:
        return ParsedAnswer("ok", to_canonical_json(label), thinking)
    if cut:
        return ParsedAnswer("truncated", None, thinking, CUT if split.answer.strip() else STILL_THINKING)
    return ParsedAnswer("ok", None, thinking, explain_missing_label(split.answer))


def read_soft_label(thinking: str | None, shares: dict[str, float] | None, mass: LabelMass | None) -> ParsedAnswer:
    """Read the likeliest label of a distribution, or say why there is none.

    Args:
        mass: the mass of the labels; None if the answer was cut while the model was still thinking.
    """
    if mass is None:
        return ParsedAnswer("truncated", None, thinking, STILL_THINKING)
    if shares is None:
        error = f"no label was begun: all labels have {mass.total:.2%} of the probability, less than {mass.least:.0%}"
        return ParsedAnswer("ok", None, thinking, error)
    return ParsedAnswer("ok", to_canonical_json(max(shares, key=lambda label: shares[label])), thinking)


def skip_thinking(positions: list[Position]) -> tuple[list[Position] | None, str | None]:
    """The positions of an answer after the model's thinking, and the thinking.

    The positions are None if the thinking never ended.
    """
    split = split_thinking("".join(position[0][0] for position in positions))
    place = 0
    for index, position in enumerate(positions):
        if place >= split.start or not split.ended:
            return positions[index:] if split.ended else None, split.thinking or None
        place += len(position[0][0])
    return [], split.thinking or None
