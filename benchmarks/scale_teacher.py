"""The teacher stage with 1, 2 and 4 Ray workers on the same cores, against a server that takes 200 ms.

All workers share one completion store in PostgreSQL. First without limits: requests per second, and processor time per
request. Then with a limit of requests per minute that all workers share: the server counts every sliding minute, and
`limit_exceeded` is the number of minutes with more than that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asking import ask, counts, server, write_task

from distill_dagster.config import BudgetSpec
from distill_dagster.core.database_urls import add_driver
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.store import CompletionStore
from tests.support.postgres import Server, run_postgres

WORKERS = (1, 2, 4)
CONCURRENCY = 16
DELAY_S = 0.2
PER_MINUTE = 1500
FREE_S, LIMITED_S = 20, 110
"""Seconds of asking without and with the limit: of the second more than a minute, so that minutes can have too many."""
QUICK_FREE_S, QUICK_LIMITED_S = 4, 12
STORE_MB = 100
SAMPLE_S = 0.2


@dataclass(frozen=True)
class Share:
    """What one worker asks for."""

    folder: Path
    url: str
    texts: list[str]


def ask_share(share: Share) -> dict[str, float]:
    """Ask for one share in this process. Returns when it began and ended, and the processor time that it took."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.time()
    with closing(CompletionStore(share.url)) as store:
        made = ask(TaskFolder(share.folder), store, share.texts, BudgetSpec(usd=1000.0, month_usd=5000.0))
        assert made.completions.height == len(share.texts)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"started": started, "ended": time.time(), "cpu_s": cpu}


@contextmanager
def watch_connections(postgres: Server, database: str) -> Iterator[Callable[[], int]]:
    """Count the connections of others to a database, in a thread. Yields what returns the most there were at a time."""
    most, ended = [0], threading.Event()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            most[0] = max(most[0], postgres.rows(database, query)[0][0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        ended.set()
        thread.join()


def ask_with(workers: int, ray: RayWorkers, folder: Path, url: str, requests: int) -> dict[str, float]:
    """Ask for so many requests with so many workers. Returns requests per second, and CPU ms of a worker by request."""
    each, began = requests // workers, time.monotonic_ns()
    shares = [
        Share(folder, url, [f"{began}-{worker}-{n}: where is my order" for n in range(each)])
        for worker in range(workers)
    ]
    found = list(ray.map(ask_share, shares))
    wall = max(one["ended"] for one in found) - min(one["started"] for one in found)
    asked = each * workers
    return {"req_s": asked / wall, "cpu_ms": sum(one["cpu_s"] for one in found) / asked * 1000, "asked": asked}


def measure(quick: bool, scratch: Path) -> dict[str, float]:
    """Ask with each number of workers, first without limits, then with one that all share."""
    figures: dict[str, float] = {"limit_exceeded": 0}
    free_s, limited_s = (QUICK_FREE_S, QUICK_LIMITED_S) if quick else (FREE_S, LIMITED_S)
    # By default workers get what the server and PostgreSQL leave.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray = RayWorkers("local", max(WORKERS), STORE_MB)
    with run_postgres(fsync="on") as postgres, server(scratch, delay=DELAY_S) as address:
        url = add_driver(postgres.url(postgres.create_database()))
        folder = write_task(scratch, address, concurrency=CONCURRENCY, max_tokens=16).path
        ray.connect()
        ask_with(max(WORKERS), ray, folder, url, 4 * CONCURRENCY)  # each worker imports what it needs
        for workers in WORKERS:
            database = postgres.create_database()
            ideal = workers * CONCURRENCY / DELAY_S
            with watch_connections(postgres, database) as count_connections:
                requests = int(min(ideal, 300) * free_s)
                free = ask_with(workers, ray, folder, add_driver(postgres.url(database)), requests)
            figures |= {
                f"teacher_req_s_w{workers}": round(free["req_s"], 1),
                f"teacher_share_of_ideal_w{workers}": round(free["req_s"] / ideal, 3),
                f"teacher_cpu_ms_w{workers}": round(free["cpu_ms"], 2),
                f"teacher_connections_w{workers}": count_connections(),
            }
        for workers in WORKERS:
            settings = {"concurrency": CONCURRENCY, "max_tokens": 16, "requests_per_minute": PER_MINUTE}
            folder = write_task(scratch, address, **settings).path
            urllib.request.urlopen(urllib.request.Request(f"{address}/forget", method="POST")).close()
            url = add_driver(postgres.url(postgres.create_database()))
            limited = ask_with(workers, ray, folder, url, PER_MINUTE * limited_s // 60)
            with urllib.request.urlopen(f"{address}/minutes?requests={PER_MINUTE}") as answer:
                minutes: dict[str, Any] = json.load(answer)
            assert minutes["requests"] == limited["asked"], "each request is sent once"
            figures["limit_exceeded"] += minutes["exceeded"]
            figures |= {
                f"teacher_most_per_minute_w{workers}": minutes["most"],
                f"teacher_share_of_limit_w{workers}": round(limited["req_s"] * 60 / PER_MINUTE, 3),
                f"teacher_limited_cpu_ms_w{workers}": round(limited["cpu_ms"], 2),
            }
        figures["teacher_per_minute"] = PER_MINUTE
        assert not counts(address)["in_flight"]
    return figures
