"""Measure requests per second of the teacher stage, against raw `litellm.acompletion`, with a server that takes 200 ms.

Usage: python benchmarks/teacher_throughput.py [--quick] [--json FILE]

The stage renders and hashes requests, uses ledger, budget and limits, stores answers durably before it uses them,
parses them and builds the table. The peer sends the same messages through litellm, as many at a time, and drops the
answers.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asking import ask, server, write_task
from common import wanted, write_result

from distill_dagster.config import BudgetSpec
from distill_dagster.teacher.completions.store import CompletionStore


def cpu_s() -> float:
    """Return seconds of processor time of this process, over all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def raw(address: str, texts: list[str], concurrency: int) -> None:
    import litellm

    left = iter(texts)

    async def worker() -> None:
        for text in left:
            messages = [
                {"role": "system", "content": "Sort the message into one of the categories."},
                {"role": "user", "content": text},
            ]
            await litellm.acompletion(
                model="openai/slow",
                messages=messages,
                temperature=0.0,
                max_tokens=16,
                api_base=f"{address}/v1",
                api_key="no-key",
                timeout=60,
                num_retries=0,
                max_retries=0,
            )

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def measured(work: Any, requests: int) -> dict[str, float]:
    """Measure requests per second, and milliseconds of processor time of this process per request."""
    before, started = cpu_s(), time.perf_counter()
    work()
    wall = time.perf_counter() - started
    return {"req_s": requests / wall, "cpu_ms": (cpu_s() - before) / requests * 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, server(Path(name), delay=0.2) as address:
        folder = Path(name)
        asyncio.run(raw(address, ["warm up"], 1))
        for concurrency in (64, 256):
            requests = concurrency * (5 if arguments.quick else 15)
            found: dict[str, list[dict[str, float]]] = {"stage": [], "raw": []}
            for turn in range(1 if arguments.quick else 3):  # alternate, so that both see the same machine
                texts = [f"{concurrency}-{turn}-{n}: where is my order" for n in range(requests)]
                peer = measured(lambda t=texts, c=concurrency: asyncio.run(raw(address, t, c)), requests)
                task = write_task(folder, address, concurrency=concurrency, requests_per_minute=10**6)
                store = CompletionStore.open_in_folder(folder / f"store-{concurrency}-{turn}")
                budget = BudgetSpec(usd=1000.0, month_usd=5000.0)
                stage = measured(lambda f=task, s=store, t=texts, b=budget: ask(f, s, t, b), requests)
                assert store.count() == requests
                store.close()
                found["raw"].append(peer)
                found["stage"].append(stage)
                print(f"c{concurrency}: stage {stage}, litellm {peer}, ratio {stage['req_s'] / peer['req_s']:.2f}")
            middle = {
                who: {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
                for who, rows in found.items()
            }
            figures |= {
                f"ratio_c{concurrency}": round(middle["stage"]["req_s"] / middle["raw"]["req_s"], 3),
                f"req_s_c{concurrency}": round(middle["stage"]["req_s"], 1),
                f"litellm_req_s_c{concurrency}": round(middle["raw"]["req_s"], 1),
                f"cpu_ms_c{concurrency}": round(middle["stage"]["cpu_ms"], 2),
                f"litellm_cpu_ms_c{concurrency}": round(middle["raw"]["cpu_ms"], 2),
            }
    figures["cpu_ms"] = figures["cpu_ms_c256"]
    write_result(wanted(arguments, "teacher_throughput"), figures)


if __name__ == "__main__":
    main()
