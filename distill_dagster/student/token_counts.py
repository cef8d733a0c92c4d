"""What the rows of a training teach: tokens with loss, texts that are cut, rows without a target, padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from distill_dagster.core.checks import CheckResult, CheckSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.batches import Item, MicroBatches

ROWS_WHOLE_CHECK = CheckSpec(
    "rows_whole", "Training cut the prompt of few rows and no target, and every row has a target."
)
MOST_PROMPTS_CUT = 0.05
"""The share of rows whose prompt may be cut before the check fails."""


@dataclass(frozen=True)
class TokenCounts:
    """Counts over the training rows of one epoch.

    `target_tokens` are those with loss; an encoder has none. `prompts_cut` and `targets_cut` count rows with a text
    that is longer than `max_tokens` or `answer_tokens`. `rows_without_target` have an empty answer.
    """

    rows: int
    target_tokens: int
    prompts_cut: int
    targets_cut: int
    rows_without_target: int


def count_learned_tokens(items: Sequence[Item]) -> TokenCounts:
    """Count what encoded rows teach."""
    return TokenCounts(
        rows=len(items),
        target_tokens=sum(part.get("target", 0) for part in _list_parts(items)),
        prompts_cut=sum(_has(item, "prompt_cut") for item in items),
        targets_cut=sum(_has(item, "target_cut") for item in items),
        rows_without_target=sum(_has(item, "no_target") for item in items),
    )


def measure_padding(items: Sequence[Item], batches: Iterable[Sequence[int]], micro_batches: MicroBatches) -> float:
    """The share of the tokens of an epoch that are padding.

    Args:
        batches: the places of the items of every optimizer step.
    """
    tokens = computed = 0
    for batch in batches:
        for part in micro_batches.cut([items[place] for place in batch]):
            lengths = [item["length"] for item in part]
            tokens += sum(lengths)
            computed += len(lengths) * max(lengths)
    return round(1 - tokens / computed, 4) if computed else 0.0


def require_whole_targets(counts: TokenCounts, max_cut_targets: float, answer_tokens: int) -> None:
    """Refuse to train on rows whose answers are cut or missing.

    Raises:
        DistillError: more targets are cut than allowed, so that a student would not learn to end them, or no row has a
            target.
    """
    if counts.rows_without_target == counts.rows:
        raise DistillError("No row has an answer to learn: all targets are empty. Look at the answers of the dataset.")
    if counts.targets_cut > max_cut_targets * counts.rows:
        raise DistillError(
            f"{counts.targets_cut} of {counts.rows} answers are longer than `answer_tokens`, {answer_tokens}. They "
            f"would be cut, and the student would not learn to end them. Raise `answer_tokens` of the student, drop "
            f"long answers with a filter, or allow a share of them with `max_cut_targets`."
        )


def check_rows_whole(rows: int, prompts_cut: int, targets_cut: int, rows_without_target: int) -> CheckResult:
    """Check that the rows of a training were learned as they are."""
    passed = prompts_cut <= MOST_PROMPTS_CUT * rows and not targets_cut and not rows_without_target
    details = {"prompts_cut": prompts_cut, "targets_cut": targets_cut, "rows_without_target": rows_without_target}
    return CheckResult("rows_whole", passed, "warning", {"rows": rows, **details})


def _list_parts(items: Iterable[Item]) -> Iterator[Item]:
    """The items, and those of their second task."""
    for item in items:
        yield item
        if "rationale" in item:
            yield item["rationale"]


def _has(item: Item, name: str) -> bool:
    return any(part.get(name, False) for part in _list_parts([item]))
