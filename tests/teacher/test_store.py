"""The completion store keeps every acknowledged answer, whichever process wrote it and however that process ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from distill_dagster.teacher.completions.store import KEYS_PER_LOOKUP, CompletionStore
from distill_dagster.teacher.providers.exchange import Response


def response(text: str = "refund", **changes: object) -> Response:
    values = {
        "text": text,
        "finish_reason": "stop",
        "positions": [[(" refund", -0.1), (" login", -2.5)], [("\n", -0.0)]],
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "cached_tokens": None,
        "cost_usd": None,
        "latency_s": 0.25,
        "in_flight": 1,
        "model_reported": "fake-1",
        "received_at": "2026-01-01T00:00:00.000+00:00",
    }
    return Response(**(values | changes))  # type: ignore[arg-type]


def test_an_answer_is_read_back_unchanged(tmp_path: Path) -> None:
    store = CompletionStore.open_in_folder(tmp_path / "deep" / "store")
    given = response(
        "Ünï\x00\n\U0001f600", positions=[[("a", float("-inf")), ("b", -1e-300)]], reasoning="why", cost_usd=0.1 + 0.2
    )
    store.put("k", given)
    assert store.get(["k", "other", "k"]) == {"k": given}
    store.close()
    assert CompletionStore.open_in_folder(tmp_path / "deep" / "store").get(["k"]) == {"k": given}


def test_more_keys_than_one_query_holds(tmp_path: Path) -> None:
    store = CompletionStore.open_in_folder(tmp_path)
    stored = {f"key {n} 'é\"": response(str(n)) for n in range(KEYS_PER_LOOKUP + 10)}
    store.commit(stored)
    assert store.get([*stored, "other"]) == stored
    assert store.find_stored_keys([*stored, "other"]) == set(stored)
    assert store.get([]) == {}
    store.close()


def test_the_first_answer_is_kept(tmp_path: Path) -> None:
    store = CompletionStore.open_in_folder(tmp_path)
    store.put("k", response("first"))
    store.put("k", response("second"))
    assert store.get(["k"])["k"].text == "first"
    assert store.count() == 1


def test_many_keys_are_read_in_one_query(tmp_path: Path) -> None:
    store = CompletionStore.open_in_folder(tmp_path)
    for n in range(20):
        store.put(f"k{n}", response(str(n)))
    wanted = [f"k{n}" for n in range(2500)]
    assert {k: v.text for k, v in store.get(wanted).items()} == {f"k{n}": str(n) for n in range(20)}
    assert store.get([]) == {}


def test_an_empty_store_takes_over_the_answers_of_a_folder_once(tmp_path: Path) -> None:
    old = CompletionStore.open_in_folder(tmp_path / "old")
    new = CompletionStore(f"sqlite:///{tmp_path / 'new.db'}")
    new.take_over(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    for n in range(1200):
        old.put(f"k{n}", response(str(n)))
    new.take_over(tmp_path / "old")
    assert {k: v.text for k, v in new.get(f"k{n}" for n in range(1200)).items()} == {
        f"k{n}": str(n) for n in range(1200)
    }
    old.put("later", response("later"))
    new.take_over(tmp_path / "old")
    assert new.count() == 1200
    assert old.count() == 1201


def _write(folder: Path, name: str, barrier: Barrier, keys: int) -> None:
    barrier.wait()  # both open the store, and make its table, at the same moment
    store = CompletionStore.open_in_folder(folder)
    for n in range(keys):
        store.put(f"shared{n}", response(name))
        store.put(f"{name}{n}", response(name))
    store.close()


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder, barrier = tmp_path / str(attempt), context.Barrier(3)
        writers = [context.Process(target=_write, args=(folder, name, barrier, 25)) for name in ("a", "b", "c")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0, 0]
        store = CompletionStore.open_in_folder(folder)
        assert store.count() == 100
        for name in ("a", "b", "c"):
            assert {v.text for v in store.get([f"{name}{n}" for n in range(25)]).values()} == {name}
        store.close()


WRITER = """
import sys
from pathlib import Path
from distill_dagster.teacher.completions.store import CompletionStore
from tests.teacher.test_store import response
store = CompletionStore.open_in_folder(Path(sys.argv[1]))
for n in range(100_000):
    store.put(f"k{n}", response("x" * 2000))
    print(n, flush=True)
"""


def test_kill_leaves_every_acknowledged_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 60:
                writer.send_signal(signal.SIGKILL)
                break
        acknowledged = 60
        for line in writer.stdout:  # its output before the signal; the last line may be cut
            if line.endswith(b"\n"):
                acknowledged = int(line)
    assert writer.returncode == -signal.SIGKILL
    store = CompletionStore.open_in_folder(tmp_path)
    found = store.get([f"k{n}" for n in range(acknowledged + 1)])
    assert len(found) == acknowledged + 1
    assert {v.text for v in found.values()} == {"x" * 2000}
    store.put("after", response())
    assert store.get(["after"])


@pytest.mark.parametrize("pragma", ["journal_mode", "synchronous"])
def test_answers_are_flushed_to_the_disk(pragma: str, tmp_path: Path) -> None:
    store = CompletionStore.open_in_folder(tmp_path)
    with store._engine.connect() as connection:
        value = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one()
    assert value == {"journal_mode": "wal", "synchronous": 2}[pragma]
