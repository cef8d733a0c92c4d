"""2,000 odd bodies through a real server: no exception leaves the row, and the ledger has what the server counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_dagster.config import ReplaySpec
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.recordings import scan_recordings
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import Slice
from distill_dagster.teacher.asking.ask import Asker, run_ask
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.ledger import LEDGER
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.body_parts import MAX_COUNT
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.replay import ReplayTeacher
from tests.support.batches import BatchProvider
from tests.support.kind_folder import write_kind_folder
from tests.support.odd_bodies import CHAT, TEXT, make_odd_bodies
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, build_request_builder, jsonl, write_small_task

FINE = "where is my refund"
STATUSES = {"ok", "failed", "refused", "truncated", "filtered"}
SETTINGS = {"max_retries": 0, "min_success": 0, "reasks": 0, "smoke_rows": 0, "max_tokens": 8}
VOTES = SETTINGS | {"api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1}}
LABEL_TEACHERS = {
    "votes": VOTES,
    "logprobs": VOTES | {"soft_labels": "logprobs"},
    "text": VOTES | {"api": "text", "soft_labels": "logprobs"},
    "batch": VOTES | {"mode": "batch", "batch": {"poll_s": 0.01, "wait_s": 300}},
}


def fuzz(examples: int) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


class Bench:
    """A provider, a store and requests that all examples share. Every example has prompts of its own."""

    def __init__(self, tmp_path: Path, provider: FakeProvider) -> None:
        self.provider, self.store = provider, CompletionStore.open_in_folder(tmp_path / "store")
        self.bodies: dict[str, Any] = {}
        self._numbers, self._path, self._builders = count(), tmp_path, dict[str, RequestBuilder]()
        provider.change_body = lambda body, seen: self.bodies.get(seen.text, body)

    @property
    def sent(self) -> int:
        """How many requests the provider has seen."""
        return len(self.provider.asked if isinstance(self.provider, BatchProvider) else self.provider.requests)

    def get_builder(self, name: str) -> RequestBuilder:
        if name not in self._builders:
            path, url = self._path / name, self.provider.url
            if name in LABEL_TEACHERS:
                folder = write_small_task(path, teacher=LABEL_TEACHERS[name] | {"api_base": url})
            else:
                folder = write_kind_folder(path, name, url, teacher=SETTINGS | {"response_format": "json_schema"})
            self._builders[name] = build_request_builder(folder)
        return self._builders[name]

    def ask(self, name: str, bodies: list[Any]) -> None:
        """Ask for texts with these bodies and for one with a good answer, and check the rows and the ledger."""
        number, before = next(self._numbers), self.sent
        self.bodies = {f"odd {number} {n}": body for n, body in enumerate(bodies)}
        texts = [*self.bodies, f"{FINE} {number}"]
        prompts = build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": texts}))
        completions = run_ask(Asker(self.get_builder(name), self.store), prompts).completions
        by_id = dict(zip(completions["prompt_id"], completions.to_dicts(), strict=True))
        rows = {m[0]["content"]: by_id[id_] for id_, m in prompts.select("prompt_id", "messages").iter_rows()}
        assert rows[texts[-1]]["status"] == "ok"
        for text, body in self.bodies.items():
            check_row(rows[text], text)
            check_ledger(self.read_attempts(rows[text]["request_key"]), rows[text], body)
        assert self.sent - before == len(texts), "each was sent once"

    def read_attempts(self, key: str) -> list[Any]:
        with self.store.database.connect() as connection:
            return list(connection.execute(sa.select(LEDGER).where(LEDGER.c.request_key == key)))


def check_row(row: dict[str, Any], text: str) -> None:
    assert row["status"] in STATUSES
    if row["status"] == "failed":
        assert f'the answer to "{text}"' in row["error"]
        assert row["raw_text"]
    if row["answer"] is not None:
        json.loads(row["answer"])
    assert all(0 <= share["prob"] <= 1 for share in row["soft_labels"] or [])


def check_ledger(attempts: list[Any], row: dict[str, Any], body: Any) -> None:
    [attempt] = attempts
    tokens = read_tokens(body)
    if attempt.state == "released":
        assert "HTTP 200 with an error" in row["error"]
    elif tokens is None:
        assert attempt.state in ("lost", "settled")
    else:
        assert (attempt.state, attempt.tokens) == ("settled", tokens)


def read_tokens(body: Any) -> int | None:
    """What a body says it used, if it says so without any doubt."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    good = [value for value in counts if type(value) is int and 0 <= value <= MAX_COUNT]
    return sum(good) if len(good) == 2 and good[0] else None


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with FakeProvider(LABELS) as provider:
        bench = Bench(tmp_path_factory.mktemp("online"), provider)
        yield bench
        bench.store.close()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with BatchProvider(LABELS, polls=0) as provider:
        bench = Bench(tmp_path_factory.mktemp("batch"), provider)
        yield bench
        bench.store.close()


def list_bodies(bodies: list[dict[str, Any]]) -> st.SearchStrategy[list[Any]]:
    return st.lists(make_odd_bodies(bodies), min_size=10, max_size=10)


@fuzz(70)
@given(name=st.sampled_from(["votes", "tool_call", "generation"]), bodies=list_bodies(CHAT))
def test_chat(online: Bench, name: str, bodies: list[Any]) -> None:
    online.ask(name, bodies)


@fuzz(300)
@given(body=make_odd_bodies(CHAT))
def test_chat_with_log_probabilities(online: Bench, body: Any) -> None:
    """One body at a time: two answers without any log-probabilities rightly stop the asking."""
    online.ask("logprobs", [body])


@fuzz(300)
@given(body=make_odd_bodies(TEXT))
def test_text_with_log_probabilities(online: Bench, body: Any) -> None:
    online.ask("text", [body])


@fuzz(30)
@given(bodies=list_bodies(CHAT))
def test_batch(batch: Bench, bodies: list[Any]) -> None:
    batch.ask("batch", bodies)


@fuzz(40)
@given(bodies=list_bodies(CHAT))
def test_recorded(online: Bench, bodies: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a log contains costs at most its own record when it is read, and its own row when it is replayed."""
    good = {"choices": [{"message": {"content": "refund"}}]}
    texts = [f"recorded {n}" for n in range(len(bodies) + 1)]
    rows = [
        {"request": {"messages": [{"role": "user", "content": text}]}, "response": body}
        for text, body in zip(texts, [*bodies, good], strict=True)
    ]
    path = tmp_path_factory.mktemp("log") / "logs.jsonl"
    path.write_text(jsonl(rows), encoding="utf-8", errors="backslashreplace")
    found = scan_recordings(path, ReplaySpec())
    assert len(found.recordings) + len(found.problems) + sum(found.left_out.values()) >= len(rows)
    teacher = ReplayTeacher({normalize_text(r.prompt): [r] for r in found.recordings if r.prompt}, str)
    builder = online.get_builder("votes")
    endpoint = Endpoint("replay/logs", teacher.version, recorded=teacher)
    replay = RequestBuilder(builder.task, builder.templates, [], endpoint)
    prompts = build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": texts}))
    completions = run_ask(Asker(replay, online.store), prompts).completions
    by_id = dict(zip(completions["prompt_id"], completions.to_dicts(), strict=True))
    for id_, messages in prompts.select("prompt_id", "messages").iter_rows():
        row = by_id[id_]
        assert row["status"] in STATUSES
        assert row["status"] != "failed" or teacher.find(messages[0]["content"]) == []
        assert row["status"] == "ok" or messages[0]["content"] != texts[-1]
