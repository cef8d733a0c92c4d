"""Budget, limits and waits that processes of two hosts share in PostgreSQL. A process poses as a host by its name."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from distill_dagster.config import BudgetSpec, TeacherSpec
from distill_dagster.core.database_urls import add_driver
from distill_dagster.teacher.completions import pacing
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import LEDGER, Account
from distill_dagster.teacher.completions.store import MAX_CONNECTIONS, CompletionStore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import BudgetError
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.exchange import Request, Response
from tests.support.postgres import Server
from tests.support.provider import FakeProvider
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.services
RUN = """
import sys
from distill_dagster.core import processes
processes.HOST = sys.argv[1]
from tests.services.test_shared_limits import ask_as_host
ask_as_host(*sys.argv[1:])
"""
PER_MINUTE, CAP_TOKENS, REQUESTS = 600, 220, 25
PRICE = {"input_usd": 100.0, "output_usd": 200.0}


def build_engine(url: str, provider: str, limited: bool, tokens: int | None) -> CompletionEngine:
    limits = {"requests_per_minute": PER_MINUTE} if limited else {}
    spec = TeacherSpec(model="openai/fake", api_base=provider, price=PRICE, max_retries=0, **limits)  # type: ignore[arg-type]
    account = Account("t", "c", "test", BudgetSpec(tokens=tokens))
    return CompletionEngine(resolve_endpoint(spec), spec, CompletionStore(url), account)


def ask(engine: CompletionEngine, texts: list[str]) -> list[Response | BaseException]:
    async def ask_all() -> list[Response | BaseException]:
        found = []
        for message in ([{"role": "user", "content": text}] for text in texts):
            request = Request(engine.endpoint.identity, 0, {"temperature": 0.0, "max_tokens": 4}, messages=message)
            found.append(engine.answer(request))
        answers = await asyncio.gather(*found, return_exceptions=True)
        await engine.close()
        return answers

    return event_loop.run_in_loop(ask_all())


def ask_as_host(host: str, url: str, provider: str, limited: str, tokens: str) -> None:
    """What a process of another host does: it asks as soon as a line comes in, and tells what came."""
    engine = build_engine(url, provider, limited == "1", int(tokens) or None)
    print("ready", flush=True)
    sys.stdin.readline()
    found = ask(engine, [f"{host} {number}" for number in range(REQUESTS)])
    print(sum(isinstance(one, Response) for one in found), sum(isinstance(one, BudgetError) for one in found))


def start_host(host: str, url: str, provider: str, limited: bool = False, tokens: int = 0) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, host, url, provider, str(int(limited)), str(tokens)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def let_ask(*hosts: subprocess.Popen[str]) -> None:
    """Let the hosts ask at the same time."""
    for host in hosts:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
    for host in hosts:
        assert host.stdin is not None
        host.stdin.write("go\n")
        host.stdin.flush()


def test_hosts_share_a_budget_and_the_requests_per_minute(
    server: Server, database: str, provider: FakeProvider
) -> None:
    url, times = add_driver(server.url(database)), list[float]()
    provider.fail = lambda *_: times.append(time.monotonic())
    hosts = [start_host(f"host-{n}", url, provider.url, limited=True, tokens=CAP_TOKENS) for n in range(2)]
    let_ask(*hosts)
    counts = [host.communicate(timeout=HANG_S)[0].split() for host in hosts]
    answered = [int(answers) for answers, _ in counts]
    assert all(int(refused) + answers == REQUESTS for (_, refused), answers in zip(counts, answered, strict=True))
    assert 0 < sum(answered) == len(provider.requests) < 2 * REQUESTS, "the cap stopped both"
    store = CompletionStore(url)
    used = store.sum_budget_usage(Account("t", "c", "test"))
    assert 0.6 * CAP_TOKENS < used.tokens <= CAP_TOKENS
    assert used.reserved_tokens == 0
    assert set(store.read_ledger()["owner"].str.split(":").list.first()) == {"host-0", "host-1"}
    store.close()
    gap = pacing.Pace("p", requests_per_minute=PER_MINUTE).compute_gap(1, 1)
    assert max(times) - min(times) > (len(times) - 1) * gap - pacing.LATE_S - pacing.BURST_S
    most = server.rows("postgres", "SHOW max_connections")[0][0]
    assert int(most) > 2 * MAX_CONNECTIONS


def test_what_a_dead_process_of_another_host_reserved_holds_until_its_lease_ends(
    server: Server, database: str, provider: FakeProvider
) -> None:
    url = add_driver(server.url(database))
    provider.pause_s = 60.0
    other = start_host("elsewhere", url, provider.url)
    let_ask(other)
    wait_until(lambda: len(provider.requests) >= 8, "the requests of the other host")
    other.kill()
    other.wait()
    provider.pause_s = 0.0
    mine = build_engine(url, provider.url, False, None)
    assert isinstance(ask(mine, ["mine"])[0], Response)
    states = mine.store.read_ledger()["state"].to_list()
    assert states.count("reserved") == 8, "nobody here knows whether that process lives"
    with mine.store.database.begin() as connection:
        connection.execute(sa.update(LEDGER).where(LEDGER.c.state == "reserved").values(lease_until=1.0))
    mine.store.close()
    again = build_engine(url, provider.url, False, None)
    assert isinstance(ask(again, ["elsewhere 0"])[0], Response)
    assert again.store.read_ledger()["state"].to_list().count("lost") == 8, "it may be billed"
    again.store.close()


def test_a_store_has_few_connections_and_survives_a_lost_one(
    server: Server, database: str, provider: FakeProvider
) -> None:
    engine = build_engine(add_driver(server.url(database)), provider.url, True, None)
    assert all(isinstance(one, Response) for one in ask(engine, [str(n) for n in range(20)]))
    own = f"datname = '{database}' AND pid <> pg_backend_pid()"
    assert 1 <= len(server.rows(database, f"SELECT pid FROM pg_stat_activity WHERE {own}")) <= MAX_CONNECTIONS
    server.rows(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}")
    assert isinstance(ask(engine, ["after the server restarted"])[0], Response)
    engine.store.close()
