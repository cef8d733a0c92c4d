"""The engine against a real server: budgets, rate limits, retries, and requests that are sent once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from distill_dagster.config import BudgetSpec, TeacherSpec
from distill_dagster.config.teacher import PriceSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.formatting import format_time
from distill_dagster.teacher.completions.engine import CompletionEngine, get_limits
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.pacing import BURST_S
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers import attempts, event_loop, rate_limits
from distill_dagster.teacher.providers.attempts import BudgetError, PermanentTeacherError, TeacherPausedError
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.prices import compute_worst_case
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.waiting import HANG_S, wait_until

PRICE = PriceSpec(input_usd=100.0, output_usd=200.0)


Make = Callable[..., CompletionEngine]


@pytest.fixture
def engine(provider: FakeProvider, store: CompletionStore) -> Make:
    def make(budget: BudgetSpec | None = None, campaign: str = "c1", **teacher: Any) -> CompletionEngine:
        spec = TeacherSpec(model="openai/fake", api_base=provider.url, price=PRICE, **({"max_retries": 0} | teacher))
        return CompletionEngine(
            resolve_endpoint(spec), spec, store, Account("t", campaign, "test", budget or BudgetSpec())
        )

    return make


def request(text: str, engine: CompletionEngine, sample: int = 0) -> Request:
    messages = [{"role": "user", "content": text}]
    return Request(engine.endpoint.identity, sample, {"temperature": 0.0, "max_tokens": 4}, messages=messages)


def answers(engine: CompletionEngine, texts: list[str]) -> list[Response | BaseException]:
    """Ask for all of them at once."""

    async def ask() -> list[Response | BaseException]:
        asked = (engine.answer(request(text, engine)) for text in texts)
        found = await asyncio.gather(*asked, return_exceptions=True)
        await engine.close()
        return found

    return event_loop.run_in_loop(ask())


def came(found: list[Response | BaseException]) -> int:
    return sum(isinstance(one, Response) for one in found)


def states(store: CompletionStore) -> dict[str, int]:
    return dict(store.read_ledger()["state"].value_counts().iter_rows())


def test_concurrent_equal_requests_are_sent_once(engine: Make, provider: FakeProvider) -> None:
    provider.pause_s = 0.1
    found = answers(engine(), ["the login"] * 10 + ["a refund"] * 10)
    assert came(found) == 20
    assert len(provider.requests) == 2


def test_an_engine_waits_for_a_request_of_another_engine(engine: Make, provider: FakeProvider) -> None:
    provider.pause_s = 0.3
    one, two = engine(), engine()

    async def both() -> list[Response]:
        return list(await asyncio.gather(one.answer(request("x", one)), two.answer(request("x", two))))

    first, second = event_loop.run_in_loop(both())
    assert first == second
    assert len(provider.requests) == 1
    assert (one.cached, two.cached) == (0, 1)


def test_if_the_first_of_equal_requests_fails_one_of_the_others_asks(engine: Make, provider: FakeProvider) -> None:
    provider.pause_s = 0.1
    provider.fail = lambda seen, before: Fault(400, pause_s=0.1) if before == 0 else None
    found = answers(engine(), ["x"] * 5)
    assert came(found) == 4
    assert len(provider.requests) == 2


@pytest.mark.parametrize("cap", ["usd", "month_usd", "tokens", "month_tokens"])
def test_a_cap_is_never_exceeded_and_raising_it_sends_the_rest(
    cap: str, engine: Make, provider: FakeProvider, tmp_path: Path
) -> None:
    texts = [f"number {n}" for n in range(60)]
    everything = engine(campaign="free")
    assert came(answers(everything, texts)) == 60
    total = everything.spent_usd if cap.endswith("usd") else everything.prompt_tokens + everything.completion_tokens
    with closing(CompletionStore.open_in_folder(tmp_path / "capped")) as other:
        account = Account("t", "c1", "test", BudgetSpec.model_validate({cap: total / 2}))
        spec = everything.spec
        half = CompletionEngine(resolve_endpoint(spec), spec, other, account)
        found = answers(half, texts)
        spent = other.sum_budget_usage(account, month=cap.startswith("month"))
        used = spent.usd if cap.endswith("usd") else spent.tokens
        assert used <= total / 2
        assert (spent.reserved_usd, spent.reserved_tokens) == (0, 0)
        assert 15 < came(found) <= 30
        stopped = [one for one in found if isinstance(one, BudgetError)]
        assert len(stopped) == 60 - came(found)
        assert f"budget.{cap}" in str(stopped[0])
        asked = len(provider.requests)
        account = replace(account, budget=BudgetSpec.model_validate({cap: total * 2}))
        raised = CompletionEngine(resolve_endpoint(spec), spec, other, account)
        assert came(answers(raised, texts)) == 60
        assert len(provider.requests) - asked == 60 - came(found)


def test_stored_answers_are_returned_at_a_cap(engine: Make, provider: FakeProvider) -> None:
    assert came(answers(engine(), ["a", "b"])) == 2
    found = answers(engine(BudgetSpec(usd=0.0)), ["a", "b", "c"])
    assert [type(one).__name__ for one in found] == ["Response", "Response", "BudgetError"]
    assert len(provider.requests) == 2


def test_a_new_campaign_starts_at_zero_and_the_month_continues(engine: Make) -> None:
    budget = BudgetSpec(tokens=60)
    assert 0 < came(answers(engine(budget, "monday"), [f"m{n}" for n in range(20)])) < 20
    assert 0 < came(answers(engine(budget, "tuesday"), [f"t{n}" for n in range(20)])) < 20
    assert came(answers(engine(BudgetSpec(month_tokens=60), "wednesday"), ["w"])) == 0


def test_a_usd_cap_needs_a_price(provider: FakeProvider, store: CompletionStore) -> None:
    spec = TeacherSpec(model="openai/fake", api_base=provider.url)
    with pytest.raises(TeacherError, match=r"price is not known.*teacher\.price"):
        CompletionEngine(resolve_endpoint(spec), spec, store, Account("t", "c", "p", BudgetSpec(usd=1)))
    assert provider.requests == []


def test_attempts_that_may_be_billed_are_settled_in_full(
    engine: Make, provider: FakeProvider, store: CompletionStore
) -> None:
    def fail(seen: ReceivedRequest, _: int) -> Fault | None:
        return {"slow": Fault(pause_s=6.0), "cut": Fault(200, '{"choices": [{"mess'), "busy": Fault(503)}.get(seen.text)

    provider.fail = fail
    one = engine(timeout_s=3)
    found = answers(one, ["slow", "cut", "busy", "fine"])
    assert came(found) == 1
    rows = {row["request_key"]: row for row in store.read_ledger().iter_rows(named=True)}
    for text, state in {"slow": "lost", "cut": "lost", "busy": "released", "fine": "settled"}.items():
        asked = request(text, one)
        row = rows[asked.key]
        assert row["state"] == state
        if state == "lost":
            assert row["usd"] == row["worst_usd"] > 0
            assert row["tokens"] == row["worst_tokens"]
        if state == "released":
            assert (row["usd"], row["tokens"]) == (None, 0)
        if state == "settled":
            assert 0 < row["usd"] < row["worst_usd"]


def test_a_cap_holds_for_a_server_that_counts_no_tokens(
    engine: Make, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.usage = False
    one = engine(BudgetSpec(tokens=200))
    found = answers(one, [f"number {n}" for n in range(30)])
    assert 0 < came(found) < 30
    spent = store.sum_budget_usage(one.account)
    assert 100 < spent.tokens <= 200
    assert spent.tokens == store.read_ledger()["worst_tokens"].sum()
    assert one.spent is None, "what it cost is not known"


def test_every_attempt_is_in_the_ledger(engine: Make, provider: FakeProvider, store: CompletionStore) -> None:
    provider.fail = lambda seen, before: Fault(500) if before < 2 else None
    one = engine(max_retries=3)
    assert came(answers(one, ["x"])) == 1
    assert one.calls == 3
    assert states(store) == {"released": 2, "settled": 1}
    ledger = store.read_ledger()
    assert ledger["request_key"].n_unique() == 1
    assert ledger["task"].to_list() == ["t"] * 3


def test_a_filtered_prompt_has_a_filtered_response(engine: Make, provider: FakeProvider) -> None:
    provider.fail = lambda *_: Fault(400, '{"error": {"message": "no", "code": "content_filter"}}')
    for _ in range(2):
        found = answers(engine(), ["x"])[0]
        assert isinstance(found, Response)
        assert found.finish_reason == "content_filter"
    assert len(provider.requests) == 1


def test_an_empty_account_stops_all_requests(engine: Make, provider: FakeProvider) -> None:
    provider.fail = lambda *_: Fault(429, '{"error": {"message": "quota", "code": "insufficient_quota"}}')
    one = engine(max_retries=5, concurrency=2)
    found = answers(one, [str(n) for n in range(20)])
    assert {type(error) for error in found} == {PermanentTeacherError}
    assert len(provider.requests) <= 2


def test_overload_halves_the_concurrency_and_it_recovers(engine: Make, provider: FakeProvider) -> None:
    provider.fail = lambda seen, before: Fault(429) if before == 0 and seen.text.startswith("busy") else None
    one = engine(concurrency=16, max_retries=3)
    limits = get_limits(one.endpoint, one.spec)
    assert came(answers(one, [f"busy {n}" for n in range(4)])) == 4
    assert limits.width < 16
    assert came(answers(one, [f"fine {n}" for n in range(200)])) == 200
    assert limits.width == 16
    assert limits.busy == 0


def test_retry_after_is_respected(engine: Make, provider: FakeProvider) -> None:
    times: list[float] = []

    def fail(seen: ReceivedRequest, before: int) -> Fault | None:
        times.append(time.monotonic())
        return Fault(429, retry_after="2") if len(times) == 1 else None

    provider.fail = fail
    one = engine(max_retries=2, concurrency=1)
    assert came(answers(one, ["a", "b"])) == 2
    assert times[1] - times[0] >= 1.9  # also for the other request: it is the teacher who is busy


@pytest.mark.parametrize("api_base", ["own", "litellm"])
def test_a_wait_that_no_request_waits_for_stops_all_asking(
    provider: FakeProvider, store: CompletionStore, monkeypatch: pytest.MonkeyPatch, api_base: str
) -> None:
    """A daily limit: three are answered, then the provider asks for an hour."""
    words = "Rate limit reached on requests per day. Please try again in 1h0m0s."
    monkeypatch.setenv("SHOP_KEY", "a-planted-key-0815")
    address: dict[str, Any] = {"model": "openai/fake", "api_base": provider.url, "terms": {"acknowledged": True}}
    if api_base == "litellm":
        address["model"] = "hosted_vllm/fake"
    body = json.dumps({"error": {"message": f"{words} Key: a-planted-key-0815", "code": "rate_limit_exceeded"}})

    def fail(seen: ReceivedRequest, _: int) -> Fault | None:
        return Fault(429, body, retry_after="3600") if len(provider.requests) > 3 else None

    provider.fail = fail
    spec = TeacherSpec(**address, api_key_env="SHOP_KEY", concurrency=2, max_retries=5)
    one = CompletionEngine(resolve_endpoint(spec), spec, store)
    found = answers(one, [f"number {n}" for n in range(12)])
    assert came(found) == 3
    assert len(provider.requests) <= 5, "those that were under way"
    errors = [error for error in found if not isinstance(error, Response)]
    assert {type(error) for error in errors} == {TeacherPausedError}
    assert one.pending in errors
    assert words in str(errors[0])
    assert "planted" not in str(errors[0])
    pause = PauseStore(store).find(spec)
    assert pause is not None
    assert 3500 < pause.until - time.time() <= 3600
    assert format_time(pause.until) in str(errors[0])
    two = CompletionEngine(resolve_endpoint(spec), spec, store)
    asked = len(provider.requests)
    assert [type(error) for error in answers(two, ["more"])] == [TeacherPausedError], "also for other stages and slices"
    assert answers(two, ["number 0"])[0] in found, "what is stored is there all the same"
    assert len(provider.requests) == asked
    assert set(states(store)) == {"settled", "released"}


def test_a_long_wait_may_come_with_status_200(engine: Make, provider: FakeProvider, store: CompletionStore) -> None:
    """OpenRouter: the error and the headers of the provider behind it are in the body."""
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(1000 * (time.time() + 7200)))}
    error = {"message": "Rate limit exceeded: free-models-per-day", "code": 429, "metadata": {"headers": headers}}
    provider.fail = lambda *_: Fault(200, json.dumps({"error": error}))
    one = engine(max_retries=3)
    found = answers(one, ["x", "y"])
    assert {type(error) for error in found} == {TeacherPausedError}
    assert "free-models-per-day" in str(found[0])
    pause = PauseStore(store).find(one.spec)
    assert pause is not None
    assert pause.until - time.time() > 7000
    assert len(provider.requests) <= 2


def test_after_the_pause_the_teacher_is_asked_again(
    engine: Make, provider: FakeProvider, store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.fail = lambda seen, before: Fault(429, retry_after="7200") if before == 0 else None
    one = engine()
    assert [type(error) for error in answers(one, ["x"])] == [TeacherPausedError]
    noted = PauseStore(store).find(one.spec)
    assert noted is not None
    monkeypatch.setattr(attempts, "time", lambda: noted.until + 1)
    assert came(answers(engine(), ["x"])) == 1
    assert PauseStore(store).find(one.spec) is None, "an answer ends the pause, before its time too"


def test_many_short_waits_without_an_answer_are_a_long_one(
    engine: Make, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_WAIT_S", 1.5)
    provider.fail = lambda *_: Fault(503, retry_after="1")
    found = answers(engine(max_retries=9, concurrency=1), ["x"])
    assert [type(error) for error in found] == [TeacherPausedError]
    assert len(provider.requests) == 2


def test_a_wait_is_told(engine: Make, provider: FakeProvider) -> None:
    heard: list[str] = []
    provider.fail = lambda seen, before: Fault(429, retry_after="2") if before == 0 else None
    with progress.listen_to_progress(lambda one: heard.append(one.work)):
        assert came(answers(engine(max_retries=1), ["x"])) == 1
    assert any("the teacher asks to wait" in work for work in heard)


@pytest.mark.parametrize(
    ("status", "requests", "state"),
    [
        *[(status, 2, "released") for status in (500, 502, 503, 507, 521, 522, 523, 525, 526, 529, 530)],
        *[(status, 2, "lost") for status in (408, 504, 520, 524)],
        *[(status, 1, "released") for status in (400, 413, 422, 501, 505)],
    ],
)
def test_what_a_status_means_for_retries_and_the_bill(
    engine: Make, provider: FakeProvider, store: CompletionStore, status: int, requests: int, state: str
) -> None:
    page = f"<html><title>{status}: Cloudflare says so</title></html>"
    provider.fail = lambda seen, before: Fault(status, page) if before == 0 else None
    found = answers(engine(max_retries=1), ["x"])
    assert len(provider.requests) == requests
    assert came(found) == requests - 1
    if requests == 1:
        assert str(status) in str(found[0])
    assert states(store) == ({state: 1, "settled": 1} if requests == 2 else {state: 1})


def test_requests_per_minute(engine: Make, provider: FakeProvider) -> None:
    one = engine(requests_per_minute=1200, concurrency=64)
    started = time.monotonic()
    assert came(answers(one, [str(n) for n in range(30)])) == 30
    assert time.monotonic() - started > 29 * 60 / 1200 - BURST_S


def test_tokens_per_minute(engine: Make, provider: FakeProvider) -> None:
    one = engine(concurrency=64)
    tokens = compute_worst_case(request("10", one), one.price).tokens
    slow = engine(tokens_per_minute=1200 * tokens, concurrency=64, timeout_s=59)
    started = time.monotonic()
    assert came(answers(slow, [str(n) for n in range(10, 40)])) == 30
    assert time.monotonic() - started > 29 * 60 / 1200 - BURST_S


ASKS = """
import sys
from tests.teacher.test_engine import other_process
other_process(*sys.argv[1:])
"""


def other_process(url: str, folder: str, text: str) -> None:
    spec = TeacherSpec(model="openai/fake", api_base=url, price=PRICE)
    store = CompletionStore.open_in_folder(Path(folder))
    engine = CompletionEngine(resolve_endpoint(spec), spec, store, Account("t", "c1", "test"))
    print(came(answers(engine, [text])), engine.calls, engine.cached)


def start(provider: FakeProvider, folder: Path, text: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", ASKS, provider.url, str(folder), text],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_an_engine_waits_for_a_request_of_another_process(tmp_path: Path, engine: Make, provider: FakeProvider) -> None:
    provider.pause_s = 2.0
    other = start(provider, tmp_path / "store", "shared")
    wait_until(lambda: provider.requests, "the request of the other process")
    mine = engine()
    assert came(answers(mine, ["shared"])) == 1
    assert other.communicate(timeout=HANG_S)[0].split() == ["1", "1", "0"]
    assert len(provider.requests) == 1
    assert (mine.calls, mine.cached) == (0, 1)


def test_reservations_of_a_killed_process_are_settled_in_full(
    tmp_path: Path, engine: Make, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.pause_s = 30.0
    other = start(provider, tmp_path / "store", "shared")
    wait_until(lambda: provider.requests, "the request of the other process")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    provider.pause_s = 0.0
    mine = engine()
    assert came(answers(mine, ["shared"])) == 1
    assert states(store) == {"lost": 1, "settled": 1}
    lost = store.read_ledger().filter(pl.col("state") == "lost").row(0, named=True)
    assert lost["usd"] == lost["worst_usd"] > 0
    assert store.sum_budget_usage(mine.account).usd == pytest.approx(lost["usd"] + mine.spent_usd)


def test_reservations_of_another_host_hold_until_their_lease_ends(engine: Make, store: CompletionStore) -> None:
    one = engine()
    assert came(answers(one, ["x"])) == 1
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE ledger SET state = 'reserved', owner = 'elsewhere:1:1', usd = NULL"))
    assert store.sum_budget_usage(one.account).reserved_usd > 0
    fresh = CompletionStore(str(store._engine.url))
    two = CompletionEngine(one.endpoint, one.spec, fresh, one.account)
    assert came(answers(two, ["y"])) == 1
    assert states(store) == {"reserved": 1, "settled": 1}
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE ledger SET lease_until = 1 WHERE state = 'reserved'"))
    fresh.close()
    again = CompletionStore(str(store._engine.url))
    assert came(answers(CompletionEngine(one.endpoint, one.spec, again, one.account), ["z"])) == 1
    again.close()
    assert states(store) == {"lost": 1, "settled": 2}


def test_an_interrupted_request_is_settled_in_full(
    engine: Make, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.pause_s = 20.0
    one = engine()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of a parallel test run ignore it

    def interrupt() -> None:
        wait_until(lambda: provider.requests, "the request")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        answers(one, ["x"])
    signal.signal(signal.SIGINT, before)
    assert states(store) == {"lost": 1}


def test_the_ledger_can_be_queried_by_duckdb(tmp_path: Path, engine: Make, store: CompletionStore) -> None:
    import duckdb

    assert came(answers(engine(), ["a", "b"])) == 2
    ledger = store.read_ledger()
    found = duckdb.sql("SELECT sum(usd), count(*) FROM ledger WHERE state = 'settled'")
    assert found is not None
    spent, requests = found.fetchall()[0]
    assert requests == ledger.height == 2
    assert spent == pytest.approx(store.sum_budget_usage(Account("t", "c1", "")).usd)
