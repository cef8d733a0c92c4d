"""Ask the judge which of two answers is better, in both orders.

Judges prefer the answer in one place, often the first (Zheng et al. 2023; Wang et al. 2023, "Large Language Models are
not Fair Evaluators"). A preference counts only if it stays when the order is swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill_dagster.tables.messages import Message
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.judge.ask import ask_about_all, ask_judge
from distill_dagster.teacher.judge.requests import Judge, JudgeScore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.client import Endpoint


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to the same messages, as canonical JSON texts, in the order in which the judge sees them."""

    messages: list[Message]
    first: str
    second: str

    def swap(self) -> AnswerPair:
        """The same pair in the other order."""
        return AnswerPair(self.messages, self.second, self.first)


@dataclass(frozen=True)
class PairResult:
    """The judge's choice for each pair, in order: `best` is 0 for the answer shown first, 1 for the other one.

    `failed` counts the pairs without an answer of the judge, for which asking again may help.
    """

    choices: list[JudgeScore]
    failed: int
    usage: Usage


def compare_pairs(
    judge: Judge,
    pairs: Sequence[AnswerPair],
    endpoint: Endpoint,
    store: CompletionStore,
    account: Account | None = None,
) -> PairResult:
    """Ask the judge about each pair, in the order given. The caller swaps.

    A budget stop is no failure: pairs that were not asked about count as `failed`.

    Raises:
        TeacherError: the judge refuses every request, or fewer than `min_success` of the pairs have an answer.
    """
    return event_loop.run_in_loop(_compare_async(judge, pairs, endpoint, store, account))


async def _compare_async(
    judge: Judge, pairs: Sequence[AnswerPair], endpoint: Endpoint, store: CompletionStore, account: Account | None
) -> PairResult:
    engine = CompletionEngine(endpoint, judge.teacher, store, account)

    async def compare(pair: AnswerPair) -> JudgeScore:
        return await ask_judge(engine, judge, {"messages": pair.messages}, [pair.first, pair.second])

    what = "asking the judge to compare answers"
    choices, usage = await ask_about_all(engine, judge, pairs, compare, "pairs", what)
    return PairResult(choices, sum(choice.failed for choice in choices), usage)
