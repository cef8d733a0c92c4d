"""What all processes share that ask one provider: send times, waits and pauses, and the deployment's concurrency."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distill_dagster.config import TeacherSpec
from distill_dagster.config.deployment import TeacherLimitsSpec
from distill_dagster.tasks import deployment_file
from distill_dagster.teacher.completions import pacing
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.pacing import PACING, Pace, Schedule, Wait, build_pace
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import event_loop, rate_limits
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.exchange import Request, Response
from tests.support.provider import FakeProvider, Fault, ReceivedRequest

Make = Callable[..., CompletionEngine]


@pytest.fixture
def process(provider: FakeProvider, tmp_path: Path) -> Iterator[Make]:
    """What one process asks with: an engine with a store of its own on the common database, and limits of its own."""
    stores: list[CompletionStore] = []

    def make(**teacher: Any) -> CompletionEngine:
        stores.append(CompletionStore.open_in_folder(tmp_path / "store"))
        # Engines with another concurrency share nothing within this process.
        settings = {"max_retries": 0, "concurrency": 16 + len(stores)} | teacher
        spec = TeacherSpec(model="openai/fake", api_base=provider.url, **settings)
        return CompletionEngine(resolve_endpoint(spec), spec, stores[-1], Account("t", "c", "test"))

    yield make
    for store in stores:
        store.close()


async def ask(engine: CompletionEngine, texts: list[str]) -> list[Response | BaseException]:
    def build(text: str) -> Request:
        messages = [{"role": "user", "content": text}]
        return Request(engine.endpoint.identity, 0, {"temperature": 0.0, "max_tokens": 4}, messages=messages)

    found = await asyncio.gather(*(engine.answer(build(text)) for text in texts), return_exceptions=True)
    await engine.close()
    return found


def ask_together(*work: tuple[CompletionEngine, list[str]]) -> list[Response | BaseException]:
    async def both() -> list[Response | BaseException]:
        found = await asyncio.gather(*(ask(engine, texts) for engine, texts in work))
        return [one for of_engine in found for one in of_engine]

    return event_loop.run_in_loop(both())


def count_released(engine: CompletionEngine) -> int:
    return engine.store.read_ledger()["state"].to_list().count("released")


@pytest.mark.parametrize("seed", range(6))
def test_no_minute_at_the_provider_has_more_than_declared(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of any size that ask at any time, each of which comes as late as is allowed."""
    dice = random.Random(seed)
    requests, tokens = dice.choice([7, 60, 300]), dice.choice([500, 4000, 30_000])
    largest = dice.choice([10, 120, 900])  # also above the limit: such a request is sent alone
    pace = Pace("p", requests_per_minute=requests, tokens_per_minute=tokens)
    clock = {"now": 1e9}
    monkeypatch.setattr(pacing, "_read_clock", lambda _: clock["now"])
    engine = sa.create_engine("sqlite://")
    arrivals: list[tuple[float, int]] = []
    with engine.begin() as connection:
        PACING.create(connection)
        while clock["now"] < 1e9 + 300:
            schedule = Schedule(connection, "p")
            for _ in range(dice.randint(1, 9)):
                size = dice.randint(1, largest)
                if isinstance(found := schedule.take(pace, size), Wait):
                    break
                assert found is not None
                send = clock["now"] + found - schedule._read_at
                assert clock["now"] - pacing.BURST_S - 1e-6 <= send <= clock["now"] + pacing.HORIZON_S + 1e-6
                late = dice.choice([0.0, dice.uniform(0, 2), pacing.LATE_S + pacing.PATH_S])
                arrivals.append((send + late, min(size, tokens)))
            schedule.write()
            clock["now"] += dice.choice([0.0, dice.uniform(0, 3), dice.uniform(0, 60) if dice.random() < 0.02 else 0.0])
    arrivals.sort()
    most_requests = most_tokens = 0
    for at, _ in arrivals:
        minute = [size for other, size in arrivals if at <= other < at + 59.999]
        most_requests, most_tokens = max(most_requests, len(minute)), max(most_tokens, sum(minute))
    assert most_requests <= requests
    assert most_tokens <= tokens
    if largest < tokens / 20:
        assert most_requests > 0.85 * requests or most_tokens > 0.75 * tokens, "the limits are used"


def test_processes_share_the_requests_per_minute(process: Make, provider: FakeProvider) -> None:
    times: list[float] = []
    provider.fail = lambda *_: times.append(time.monotonic())
    one, two = process(requests_per_minute=1200), process(requests_per_minute=1200)
    found = ask_together((one, [f"a{n}" for n in range(15)]), (two, [f"b{n}" for n in range(15)]))
    assert sum(isinstance(response, Response) for response in found) == 30
    gap = one._pace.compute_gap(1, 1)  # type: ignore[union-attr]
    assert max(times) - min(times) > 29 * gap - pacing.LATE_S
    assert one.calls == two.calls == 15


def test_a_send_time_that_was_missed_is_replaced(
    process: Make, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = rate_limits.ProviderLimits.wait_for_send_time
    times: list[float] = []

    async def come_late_once(limits: Any, send_at: float | None, late_s: float) -> bool:
        times.append(send_at or 0.0)
        return await waited(limits, send_at if len(times) > 1 else time.monotonic() - late_s - 0.1, late_s)

    monkeypatch.setattr(rate_limits.ProviderLimits, "wait_for_send_time", come_late_once)
    engine = process(requests_per_minute=600)
    assert [type(one) for one in ask_together((engine, ["x"]))] == [Response]
    assert len(provider.requests) == 1
    assert times[1] - times[0] == pytest.approx(engine._pace.compute_gap(1, 1), abs=0.05)  # type: ignore[union-attr]
    assert count_released(engine) == 1, "the first reservation costs nothing"


def test_send_times_end_at_the_horizon_and_a_dead_process_takes_no_more_with_it(process: Make) -> None:
    engine = process(requests_per_minute=60)
    ask_together((engine, ["x"]))
    pace = engine._pace
    assert pace is not None
    with engine.store.database.begin() as connection:
        dies = Schedule(connection, pace.provider)
        taken = [found for _ in range(100) if isinstance(found := dies.take(pace, 1), float)]
        assert 4 <= len(taken) <= 6
        dies.write()
        found = Schedule(connection, pace.provider).take(pace, 1)
    assert isinstance(found, Wait)
    assert found.reason is None
    assert pacing.HORIZON_S / 2 <= found.seconds < pacing.HORIZON_S


def test_requests_beyond_the_horizon_ask_again_and_all_are_sent(
    process: Make, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "HORIZON_S", 0.2)
    times: list[float] = []
    provider.fail = lambda *_: times.append(time.monotonic())
    work = [(process(requests_per_minute=1200), [f"{name}{n}" for n in range(15)]) for name in "ab"]
    assert all(isinstance(found, Response) for found in ask_together(*work))
    assert len(times) == 30
    gap = work[0][0]._pace.compute_gap(1, 1)  # type: ignore[union-attr]
    assert 29 * gap - pacing.LATE_S < max(times) - min(times)


def test_without_limits_nothing_is_written_and_rarely_read(process: Make) -> None:
    engine = process()
    statements: list[str] = []
    sa.event.listen(engine.store._quick, "before_cursor_execute", lambda *args: statements.append(args[2]))
    started = time.monotonic()
    ask_together((engine, [str(n) for n in range(60)]))
    about = [sql for sql in statements if "provider_pacing" in sql]
    assert all(sql.startswith("SELECT") for sql in about)
    assert 1 <= len(about) <= 2 + (time.monotonic() - started) / pacing.LOOK_INTERVAL_S


@pytest.mark.parametrize("rate", [None, 6000])
def test_a_wait_that_one_process_was_asked_for_is_heeded_by_all(
    process: Make, provider: FakeProvider, rate: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "LOOK_INTERVAL_S", 0.0)
    times: dict[str, float] = {}

    def fail(seen: ReceivedRequest, before: int) -> Fault | None:
        times.setdefault(seen.text, time.monotonic())
        return Fault(429, retry_after="2") if seen.text == "refused" and not before else None

    provider.fail = fail
    one, two = process(requests_per_minute=rate), process(requests_per_minute=rate)
    assert len(ask_together((one, ["refused"]))) == 1
    assert [type(found) for found in ask_together((two, ["other"]))] == [Response]
    assert times["other"] - times["refused"] >= 1.8


def test_a_long_pause_stops_the_others_but_not_who_starts_later(process: Make, provider: FakeProvider) -> None:
    provider.fail = lambda seen, _: Fault(429, retry_after="3600") if seen.text == "refused" else None
    settings = {"requests_per_minute": 6000}
    running = process(**settings)
    assert [type(found) for found in ask_together((running, ["before"]))] == [Response]
    assert [type(found) for found in ask_together((process(**settings), ["refused"]))] == [TeacherPausedError]
    [stopped] = ask_together((running, ["after"]))
    assert isinstance(stopped, TeacherPausedError)
    assert "on purpose" in stopped.reason
    assert 3000 < stopped.until - time.time() <= 3600
    assert provider.texts == ["before", "refused"]
    late = process(**settings)
    assert [type(found) for found in ask_together((late, ["tries"]))] == [Response]
    assert PauseStore(late.store).find(late.spec) is None
    again = process(**settings)
    assert [type(found) for found in ask_together((again, ["more"]))] == [Response]


def test_the_deployment_limits_the_concurrency_of_all_processes(
    process: Make, provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deployment.yaml").write_text("teachers:\n  openai/fake: {concurrency: 3}\n")
    monkeypatch.setenv(deployment_file.DEPLOYMENT_VARIABLE, str(tmp_path / "deployment.yaml"))
    intervals: list[tuple[float, float]] = []
    provider.pause_s = 0.1
    provider.fail = lambda *_: intervals.append((time.monotonic(), time.monotonic() + 0.1))
    work = [(process(), [f"{name}{n}" for n in range(8)]) for name in "ab"]
    assert all(isinstance(found, Response) for found in ask_together(*work))
    assert len(intervals) == 16
    most = max(sum(start <= at < end for start, end in intervals) for at, _ in intervals)
    assert 2 <= most <= 3


def test_the_lower_limit_of_task_and_deployment_applies() -> None:
    spec = TeacherSpec(model="openai/fake", requests_per_minute=100)
    pace = build_pace(spec, TeacherLimitsSpec(requests_per_minute=50, tokens_per_minute=1000, concurrency=4))
    assert (pace.requests_per_minute, pace.tokens_per_minute, pace.concurrency) == (50, 1000, 4)
    assert build_pace(spec, TeacherLimitsSpec(requests_per_minute=500)).requests_per_minute == 100


def test_a_clock_that_was_set_back_does_not_stop_the_asking(process: Make) -> None:
    engine = process(requests_per_minute=6000)
    ask_together((engine, ["x"]))
    with engine.store.database.begin() as connection:
        later = {"sent_at": time.time() + 86400, "closed_until": time.time() + 90000, "closed_at": time.time() + 86400}
        connection.execute(sa.update(PACING).values(**later))
    started = time.monotonic()
    assert [type(found) for found in ask_together((engine, ["y"]))] == [Response]
    assert time.monotonic() - started < 5


def test_limits_hold_between_teacher_and_judge_in_one_transaction(tmp_path: Path) -> None:
    """Two settings of one provider share its send times, also if one transaction decides on both."""
    from distill_dagster.teacher.completions.ledger import Reservation
    from distill_dagster.teacher.providers.prices import WorstCase

    account = Account("t", "c", "test")
    paces = [Pace("p", requests_per_minute=60), Pace("p", requests_per_minute=120)]
    wanted = [Reservation(f"k{n}", account, "m", WorstCase(1, None), 60.0, pace=paces[n % 2]) for n in range(4)]
    with closing(CompletionStore.open_in_folder(tmp_path)) as store:
        decisions = store.commit({}, (), wanted)
    times = [decision.send_at for decision in decisions]
    assert [round(two - one, 2) for one, two in pairwise(times)] == [0.52, 1.03, 0.52]  # type: ignore[operator]
