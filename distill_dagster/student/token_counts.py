"""What the rows of a training teach: tokens with loss, texts that are cut, rows without a target, padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from distill_dagster.core.checks import CheckResult, CheckSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.kinds.base import ANSWER_MARK
from distill_dagster.student.batches import Item, MicroBatches
from distill_dagster.student.types import TrainRow

ROWS_WHOLE_CHECK = CheckSpec(
    "rows_whole", "Training cut the prompt of few rows and no target, and every row has a target."
)
MOST_PROMPTS_CUT = 0.05
"""The share of rows whose prompt may be cut before the check fails."""


@dataclass(frozen=True)
class TokenCounts:
    """Counts over the training rows of one epoch.

    `target_tokens` are those with loss; an encoder has none. `prompts_cut` and `targets_cut` count rows with a text
    that is longer than `max_tokens` or `answer_tokens`. `rationales_cut` are those of `targets_cut` of which the
    reasoning is too long, as a target of its own (`multitask`).
    """

    rows: int
    target_tokens: int
    prompts_cut: int
    targets_cut: int
    rationales_cut: int = 0


def count_learned_tokens(items: Sequence[Item]) -> TokenCounts:
    """Count what encoded rows teach."""
    return TokenCounts(
        rows=len(items),
        target_tokens=sum(part.get("target", 0) for part in _list_parts(items)),
        prompts_cut=sum(_has(item, "prompt_cut") for item in items),
        targets_cut=sum(_has(item, "target_cut") for item in items),
        rationales_cut=sum(item.get("rationale", {}).get("target_cut", False) for item in items),
    )


def leave_out_empty_targets(rows: list[TrainRow], needs_rows: bool = True) -> tuple[list[TrainRow], int]:
    """The rows with an answer to write, and how many have none. Those would teach to end at once.

    Args:
        needs_rows: whether it is an error if no row is left.

    Raises:
        DistillError: all answers are empty.
    """
    texts = [row.target or row.answer_label for row in rows]
    kept = [row for row, text in zip(rows, texts, strict=True) if text.removeprefix(ANSWER_MARK).strip()]
    if needs_rows and rows and not kept:
        raise DistillError("No row has an answer to learn: all targets are empty. Look at the answers of the dataset.")
    return kept, len(rows) - len(kept)


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
    """Refuse to train on rows whose answers, or reasoning, are cut.

    Raises:
        DistillError: more targets are cut than allowed, so that a student would not learn to end them.
    """
    if counts.targets_cut <= max_cut_targets * counts.rows:
        return
    problems = []
    if counts.rationales_cut:
        problems.append(
            f"The reasoning of {counts.rationales_cut} of {counts.rows} rows is longer than `answer_tokens`, "
            f"{answer_tokens}. It would be cut, and the student would not learn to end it. Set "
            f"`objective.max_reasoning_tokens` lower than that, so that such rows teach their answer alone, or raise "
            f"`answer_tokens` of the student."
        )
    if (answers_cut := counts.targets_cut - counts.rationales_cut) > 0:
        problems.append(
            f"{answers_cut} of {counts.rows} answers are longer than `answer_tokens`, {answer_tokens}. They "
            f"would be cut, and the student would not learn to end them. Raise `answer_tokens` of the student, drop "
            f"long answers with a filter, or allow a share of them with `max_cut_targets`."
        )
    raise DistillError(" ".join(problems))


def check_rows_whole(rows: int, prompts_cut: int, targets_cut: int, rows_without_target: int) -> CheckResult:
    """Check that the rows of a training were learned as they are. Those without a target are not among `rows`."""
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
