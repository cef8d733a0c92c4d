"""Measure what a provider's bad day costs: random faults, random kills, and a budget for half of the requests.

Usage: python benchmarks/teacher_faults.py [--quick] [--json FILE]

Five parts, each with a real server in its own process that counts requests and answers: faults (429 with and without
Retry-After, 5xx, hangs, cut connections, cut JSON, empty answers, wrong schemas, refusals), compared with the same
prompts without faults; bodies of odd forms, with thinking and with broken-off answers; batches whose lines contain
U+2028, are cut or missing; `kill -9` of the asking process at random moments; and a cap of half of the full cost.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import polars as pl  # noqa: E402
from asking import PRICE, ask, counts, server, write_task  # noqa: E402
from common import wanted, write_result  # noqa: E402
from odd_bodies import LINES, NAMELESS  # noqa: E402
from slow_server import label_of  # noqa: E402

from distill_dagster.config import BudgetSpec  # noqa: E402
from distill_dagster.core.hashing import to_canonical_json  # noqa: E402
from distill_dagster.prompts.seeds import compute_prompt_id  # noqa: E402
from distill_dagster.tables.data_versions import VOLATILE_COLUMNS  # noqa: E402
from distill_dagster.tables.messages import make_user_messages  # noqa: E402
from distill_dagster.tasks import TaskFolder  # noqa: E402
from distill_dagster.teacher.completions.store import CompletionStore  # noqa: E402

SHARE = 0.25
"""Of all requests: one in four ends in a fault."""
WIDTH = 64
ODD_SHARE, ROUNDS, SLICES = 0.5, 12, 10
TASK: dict[str, Any] = {"concurrency": WIDTH, "timeout_s": 2.0, "max_retries": 12, "reasks": 10, "min_success": 0.0}


def texts_of(rows: int) -> list[str]:
    return [f"message {n}: what became of my order" for n in range(rows)]


def plain(completions: pl.DataFrame) -> pl.DataFrame:
    """Return the table without columns that differ between runs, and without the number of attempts."""
    kept = [c for c in completions.columns if c not in VOLATILE_COLUMNS]
    asked = ("request_key", "completion_id", "params", "prompt_tokens", "completion_tokens")
    return completions.select(kept).drop(asked)


def faults(folder: Path, rows: int) -> dict[str, Any]:
    with server(folder, delay=0.05) as address:
        store = CompletionStore.open_in_folder(folder / "calm")
        calm = ask(write_task(folder, address, **TASK), store, texts_of(rows), BudgetSpec())
        store.close()
    with server(folder, delay=0.05, faults=SHARE, seed=1) as address:
        store = CompletionStore.open_in_folder(folder / "stormy")
        started = time.perf_counter()
        stormy = ask(write_task(folder, address, **TASK), store, texts_of(rows), BudgetSpec())
        wall = time.perf_counter() - started
        seen, ledger, stored = counts(address), store.read_ledger(), store.count()
        again = ask(write_task(folder, address, **TASK), store, texts_of(rows), BudgetSpec())
        asked_again = counts(address)["asked"] - seen["asked"]
        store.close()
    status = dict(stormy.completions["status"].value_counts().iter_rows())
    right = pl.Series([to_canonical_json(label_of(text)) for text in texts_of(rows)]).value_counts()
    answered = stormy.completions.filter(pl.col("status") == "ok")["answer"].value_counts()
    settled = ledger.filter(pl.col("state") == "settled")
    return {
        "rows": rows,
        "faults": {name: n for name, n in seen["outcomes"].items() if name != "ok"},
        "status": status,
        "requests": seen["asked"],
        # A request that the server saw has its row in the ledger, and a prompt that was asked for has one in the table.
        "accounted": round(min(stormy.completions.height / rows, ledger.height / max(1, seen["asked"])), 4),
        "open_reservations": ledger.filter(pl.col("state") == "reserved").height,
        # Complete answers minus stored answers: asked twice although they had arrived.
        "paid_twice": settled.height - stored + asked_again,
        "same_table": plain(stormy.completions).equals(plain(calm.completions)),
        "same_again": again.usage.calls == 0 and plain(again.completions).equals(plain(stormy.completions)),
        "right_answers": sorted(answered.rows()) == sorted(right.rows()),
        "faults_wall_s": round(wall, 1),
    }


def accounted_rows(completions: list[pl.DataFrame], texts: list[str]) -> int:
    """Count the rows with the right answer, and those whose answer was cut at max_tokens and says so."""
    right = {compute_prompt_id(make_user_messages(text)): to_canonical_json(label_of(text)) for text in texts}
    rows = pl.concat(completions).select("prompt_id", "status", "answer").iter_rows()
    return sum(status == "truncated" or (status == "ok" and right[id_] == answer) for id_, status, answer in rows)


def ask_slices(
    task: TaskFolder, store: CompletionStore, slices: list[list[str]]
) -> tuple[list[pl.DataFrame], int, int]:
    """Ask for each slice until it has all answers. Returns the tables, failed slices, and rounds that were needed."""
    tables, failed, rounds = list[pl.DataFrame](), 0, 0
    for texts in slices:
        for turn in range(1, ROUNDS + 1):
            try:
                asked = ask(task, store, texts, BudgetSpec())
            except Exception as error:  # what a user would see as a failed asset
                print(f"a slice failed: {type(error).__name__}: {error}", flush=True)
                failed += 1
                continue
            rounds = max(rounds, turn)
            if not asked.missing_rows:
                tables.append(asked.completions)
                break
    return tables, failed, rounds


def compare_bill(store: CompletionStore, seen: dict[str, Any]) -> float:
    """Return the tokens in the ledger as a share of those that the server counted: at least 1 if none is hidden."""
    return round(int(store.read_ledger()["tokens"].sum()) / sum(seen["tokens"]), 3)


def odd_bodies(folder: Path, rows: int) -> dict[str, Any]:
    texts = texts_of(rows)
    slices = [texts[start::SLICES] for start in range(SLICES)]
    with server(folder, delay=0.01, odd=ODD_SHARE, seed=2) as address:
        store = CompletionStore.open_in_folder(folder / "odd")
        tables, failed, rounds = ask_slices(write_task(folder, address, **TASK), store, slices)
        seen, ledger = counts(address), store.read_ledger()
        figures = {
            "odd_bodies": sum(n for name, n in seen["outcomes"].items() if name != "ok"),
            "odd_bodies_kinds": len(seen["outcomes"].keys() - {"ok"}),
            # Rows without their right answer at the end, and requests without a row in the ledger.
            "odd_bodies_lost": rows - accounted_rows(tables, texts) + seen["asked"] - ledger.height,
            "odd_bodies_slices_failed": failed,
            "odd_bodies_rounds": rounds,
            "odd_bodies_billed": compare_bill(store, seen),
        }
        store.close()
    return figures


def batch_lines(folder: Path, rows: int) -> dict[str, Any]:
    texts = texts_of(rows)
    slices = [texts[start::SLICES] for start in range(SLICES)]
    settings = TASK | {"mode": "batch", "batch": {"poll_s": 0.1}, "smoke_rows": 0}  # a smoke test would be online
    with server(folder, odd=0.2, seed=3) as address:
        store = CompletionStore.open_in_folder(folder / "batches")
        tables, failed, _ = ask_slices(write_task(folder, address, **settings), store, slices)
        seen, ledger = counts(address), store.read_ledger()
        figures = {
            "batch_odd_lines": {name: n for name, n in seen["outcomes"].items() if name in LINES},
            "batch_lines_lost": rows - accounted_rows(tables, texts) + seen["asked"] - ledger.height,
            "batch_slices_failed": failed,
            "batch_billed": compare_bill(store, seen),
            # An answer that names no request has its cost in the ledger, and cannot be stored.
            "batch_paid_twice": ledger.filter(pl.col("state") == "settled").height
            - store.count()
            - seen["outcomes"].get(NAMELESS, 0),
        }
        store.close()
    return figures


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{benchmarks!r}, {project!r}]
from teacher_faults import TASK, texts_of
from asking import ask, write_task
from distill_dagster.config import BudgetSpec
from distill_dagster.teacher.completions.store import CompletionStore
folder = Path(sys.argv[1])
task = write_task(folder, sys.argv[2], **TASK)
print("ready", flush=True)
ask(task, CompletionStore.open_in_folder(folder / "store"), texts_of(int(sys.argv[3])), BudgetSpec())
"""


def kills(folder: Path, times: int, rows: int) -> dict[str, Any]:
    chance, repeated, in_flight, worst, same = random.Random(7), 0, 0, 0.0, 0
    code = CHILD.format(benchmarks=str(Path(__file__).resolve().parent), project=str(PROJECT))
    for turn in range(times):
        place = folder / f"kill-{turn}"
        place.mkdir()
        with server(place, delay=0.1) as address:
            command = [sys.executable, "-c", code, str(place), address, str(rows)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            child.stdout.readline()
            while not counts(address)["asked"]:
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 0.1 * rows / WIDTH))
            child.kill()
            child.wait()
            time.sleep(0.3)  # the server finishes open requests
            store = CompletionStore.open_in_folder(place / "store")
            ledger, stored, before = store.read_ledger(), store.count(), counts(address)["asked"]
            open_ = ledger.filter(pl.col("state") == "reserved").height
            task = write_task(place, address, **TASK)
            asked = ask(task, store, texts_of(rows), BudgetSpec())
            after = counts(address)["asked"]
            again = after - rows  # every prompt must be asked once
            repeated, in_flight = repeated + again, in_flight + open_
            worst = max(worst, again / open_ if open_ else float(again > 0))
            clean = CompletionStore.open_in_folder(place / "clean")
            undisturbed = ask(task, clean, texts_of(rows), BudgetSpec())
            same += plain(asked.completions).equals(plain(undisturbed.completions))
            assert after - before == rows - stored, (after, before, rows, stored)
            store.close()
            clean.close()
        print(f"kill {turn}: {stored} stored, {open_} in flight, {again} asked twice", flush=True)
    return {
        "kills": times,
        "kills_repeated": repeated,
        "kills_in_flight": in_flight,
        "kills_repeated_over_inflight": round(worst, 3),
        "kills_same_table": same,
    }


def budget(folder: Path, times: int, rows: int) -> dict[str, Any]:
    over, shares, followed = 0, [], 0
    for turn in range(times):
        place = folder / f"budget-{turn}"
        place.mkdir()
        with server(place, delay=0.02, faults=0.1 if turn % 2 else 0.0, seed=turn) as address:
            task = write_task(place, address, **TASK)
            store = CompletionStore.open_in_folder(place / "store")
            one = (40 * PRICE["input_usd"] + 3 * PRICE["output_usd"]) / 1e6
            cap = rows * one / 2
            asked = ask(task, store, texts_of(rows), BudgetSpec(usd=cap))
            tokens = counts(address)["tokens"]
            billed = (tokens[0] * PRICE["input_usd"] + tokens[1] * PRICE["output_usd"]) / 1e6
            over += billed > cap * (1 + 1e-9)
            shares.append(billed / cap)
            missing = asked.missing_rows
            rest = ask(task, store, texts_of(rows), BudgetSpec(usd=cap * 50))
            followed += missing > 0 and rest.missing_rows == 0
            store.close()
    return {
        "budget_runs": times,
        "budget_over": over,
        "budget_spent_share_min": round(min(shares), 3),
        "budget_spent_share_max": round(max(shares), 3),
        "budget_followed": followed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = faults(folder, 200 if quick else 5000)
        figures |= odd_bodies(folder, 200 if quick else 2000)
        figures |= batch_lines(folder, 200 if quick else 2000)
        print(figures, flush=True)
        figures |= kills(folder, 2 if quick else 20, 300 if quick else 1000)
        figures |= budget(folder, 2 if quick else 20, 200 if quick else 600)
    print(figures)
    write_result(wanted(arguments, "teacher_faults"), figures)


if __name__ == "__main__":
    main()
