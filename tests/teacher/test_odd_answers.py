"""Odd answers of a real server cost at most their own row: the others go on, and the ledger has what was billed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import Slice
from distill_dagster.teacher.asking.ask import AskResult, run_ask
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import PermanentTeacherError
from tests.support.batches import BatchProvider
from tests.support.provider import FakeProvider, ReceivedRequest
from tests.support.task import LABELS, build_asker, write_small_task

TEXTS = ("a refund please", "an odd delivery", "the login")
USAGE = {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
VOTES: dict[str, Any] = {"api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1}}
LOGPROBS = VOTES | {"soft_labels": "logprobs"}
Change = Callable[[dict[str, Any]], Any]


def make_odd(provider: FakeProvider, change: Change) -> None:
    """Change the answer to the second text."""

    def change_body(body: dict[str, Any], seen: ReceivedRequest) -> Any:
        return change(body) if "odd" in seen.text else body

    provider.change_body = change_body


def ask(tmp_path: Path, provider: FakeProvider, store: CompletionStore, **teacher: Any) -> AskResult:
    settings = {"api_base": provider.url, "max_retries": 0, "min_success": 0, "reasks": 0, "smoke_rows": 0} | teacher
    folder = write_small_task(tmp_path / str(len(list(tmp_path.iterdir()))), teacher=settings)
    prompts = build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": list(TEXTS)}))
    return run_ask(build_asker(folder, store), prompts)


def get_odd_row(asked: AskResult) -> dict[str, Any]:
    """The row of the odd answer. The others must be fine."""
    rows = asked.completions.filter(pl.col("slice") == "shop").to_dicts()
    fine = [row for row in rows if row["status"] == "ok" and row["answer"] in ('"refund"', '"login"')]
    assert len(rows) == 3
    assert len(fine) == 2
    return next(row for row in rows if row not in fine)


def set_message(**fields: Any) -> Change:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0]["message"] |= fields
        return body | {"usage": USAGE}

    return change


def set_choice(**fields: Any) -> Change:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0] |= fields
        return body | {"usage": USAGE}

    return change


UNUSABLE = [
    (set_message(content=12), "message.content is a number"),
    (set_message(content={"a": 1}), "an object without a text"),
    (set_choice(message=None), "neither a message nor a text"),
    (lambda body: body | {"choices": [], "usage": USAGE}, "`choices` is empty"),
    (lambda body: body | {"choices": 3, "usage": USAGE}, "`choices` is a number"),
    (set_choice(finish_reason="network_error"), "broken off: finish_reason is 'network_error'"),
    (set_choice(finish_reason=None), "no finish_reason"),
    (set_choice(finish_reason="error", error={"code": 502, "message": "upstream"}), "upstream"),
]
unusable = pytest.mark.parametrize(("change", "says"), UNUSABLE, ids=[says for _, says in UNUSABLE])


@unusable
def test_an_unusable_answer_fails_alone_with_its_body(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, change: Change, says: str
) -> None:
    make_odd(provider, change)
    row = get_odd_row(ask(tmp_path, provider, store, **VOTES))
    assert row["status"] == "failed"
    assert 'the answer to "an odd delivery" cannot be used' in row["error"]
    assert says in row["error"]
    assert json.loads(row["raw_text"])["usage"] == USAGE
    assert (row["prompt_tokens"], row["completion_tokens"], row["answer"]) == (30, 4, None)
    ledger = store.read_ledger()
    assert ledger["state"].to_list() == ["settled"] * 3
    assert ledger.filter(pl.col("request_key") == row["request_key"])["tokens"].to_list() == [34]
    assert store.count() == 2, "it is no answer, so the next run asks again"
    provider.change_body = None
    again = ask(tmp_path, provider, store, **VOTES).completions
    assert again["status"].to_list() == ["ok"] * 3
    assert len(provider.requests) == 4


@unusable
def test_a_batch_with_an_unusable_answer_keeps_the_others(
    tmp_path: Path, store: CompletionStore, change: Change, says: str
) -> None:
    with BatchProvider(LABELS) as provider:
        make_odd(provider, change)
        settings = VOTES | {"mode": "batch", "batch": {"poll_s": 0.02, "wait_s": 300}}
        row = get_odd_row(ask(tmp_path, provider, store, **settings))
        assert row["status"] == "failed"
        assert says in row["error"]
        assert json.loads(row["raw_text"])["usage"] == USAGE
        assert store.read_ledger()["state"].to_list() == ["settled"] * 3
        assert len(provider.asked) == 3


@pytest.mark.parametrize(
    ("change", "status", "answer"),
    [
        (set_choice(finish_reason="MAX_TOKENS", message={"content": "del"}), "truncated", None),
        (set_choice(finish_reason="SAFETY", message={"content": ""}), "filtered", None),
        (set_message(content=None, refusal="I cannot talk about delivery."), "refused", None),
        (set_message(content=[{"type": "text", "text": "delivery"}]), "ok", '"delivery"'),
        (lambda body: body | {"usage": {"prompt_tokens": 2**80}, "model": 3}, "ok", '"delivery"'),
    ],
)
def test_an_odd_answer_that_can_be_read_is_stored(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, change: Change, status: str, answer: str | None
) -> None:
    make_odd(provider, change)
    rows = ask(tmp_path, provider, store, **VOTES).completions
    odd = rows.filter(pl.col("raw_text").is_in(["refund\n", "login\n"]).not_()).to_dicts()
    assert [(row["status"], row["answer"]) for row in odd if row["answer"] not in ('"refund"', '"login"')] == [
        (status, answer)
    ]
    assert store.count() == 3


def test_a_body_without_tokens_counts_in_full(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    make_odd(provider, lambda body: [body])
    row = get_odd_row(ask(tmp_path, provider, store, **VOTES))
    ledger = store.read_ledger().filter(pl.col("request_key") == row["request_key"])
    assert ledger["state"].to_list() == ["lost"]
    assert ledger["tokens"].to_list() == ledger["worst_tokens"].to_list()


def test_an_answer_whose_tokens_are_half_known_counts_in_full(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    make_odd(provider, lambda body: body | {"usage": {"prompt_tokens": 30}})
    ask(tmp_path, provider, store, **VOTES)
    assert store.read_ledger()["state"].value_counts().sort("state").rows() == [("lost", 1), ("settled", 2)]


@pytest.mark.parametrize("words", ["half a \ud83d pair", "a \x00 zero"])
def test_an_error_may_contain_characters_that_no_database_stores(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, words: str
) -> None:
    make_odd(provider, lambda _: {"error": {"code": 500, "message": words}})
    row = get_odd_row(ask(tmp_path, provider, store, **VOTES))
    assert f"HTTP 200 with an error (500): {words[:2]}" in row["error"]
    assert "\x00" not in row["error"]


def test_an_error_with_http_200_is_free_and_retried(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    seen: list[str] = []

    def change(body: dict[str, Any]) -> Any:
        seen.append("odd")
        return {"choices": None, "error": {"code": 502, "message": "upstream"}} if len(seen) == 1 else body

    make_odd(provider, change)
    assert ask(tmp_path, provider, store, **VOTES, max_retries=1).completions["status"].to_list() == ["ok"] * 3
    assert sorted(store.read_ledger()["state"]) == ["released", "settled", "settled", "settled"]


def no_logprob(body: dict[str, Any]) -> dict[str, Any]:
    for token in body["choices"][0]["logprobs"]["content"]:
        token |= {"logprob": None, "top_logprobs": None}
    return body


def lose_one_logprob(body: dict[str, Any]) -> dict[str, Any]:
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][-1]["logprob"] = None
    return body


def test_an_unknown_log_probability_is_not_certainty(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    make_odd(provider, no_logprob)
    row = get_odd_row(ask(tmp_path, provider, store, **LOGPROBS))
    assert (row["status"], row["soft_labels"]) == ("failed", None)
    assert "log-probabilities of the answer are unusable" in row["error"]
    assert store.read_ledger()["state"].to_list() == ["settled"] * 3


def test_a_token_without_a_log_probability_is_left_out_of_the_soft_label(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    make_odd(provider, lose_one_logprob)
    rows = ask(tmp_path, provider, store, **LOGPROBS).completions
    assert rows["status"].to_list() == ["ok"] * 3
    shares = {row["answer"]: len(row["soft_labels"]) for row in rows.to_dicts()}
    assert shares == {'"refund"': 3, '"delivery"': 2, '"login"': 3}


def test_one_answer_without_log_probabilities_stops_nothing_if_others_have_them(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    make_odd(provider, set_choice(logprobs=None))
    row = get_odd_row(ask(tmp_path, provider, store, **LOGPROBS, concurrency=1))
    assert row["status"] == "failed"
    assert "sent no token log-probabilities" in row["error"]
    assert row["raw_text"].strip() == "delivery"


def test_a_server_that_never_sends_log_probabilities_stops_the_asking(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.logprobs = False
    with pytest.raises(PermanentTeacherError, match="sent no token log-probabilities"):
        ask(tmp_path, provider, store, **LOGPROBS, concurrency=1)
    assert len(provider.requests) == 2


def test_an_answer_that_breaks_the_reading_costs_its_own_row(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill_dagster.teacher.asking import soft_labels

    compute = soft_labels.compute_label_mass

    def break_at_delivery(positions: Any, *args: Any, **kwargs: Any) -> Any:
        if "delivery" in positions[0][0][0]:
            raise IndexError("on purpose")
        return compute(positions, *args, **kwargs)

    monkeypatch.setattr(soft_labels, "compute_label_mass", break_at_delivery)
    row = get_odd_row(ask(tmp_path, provider, store, **LOGPROBS))
    assert row["status"] == "failed"
    assert 'the answer to "an odd delivery" cannot be read: IndexError: on purpose' in row["error"]
    assert store.count() == 3, "it is stored, so that a later version reads it without asking"


def test_a_stored_answer_of_an_earlier_version_is_not_asked_again(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    """Earlier versions stored broken-off answers, and counts that no table holds."""
    import sqlalchemy as sa

    ask(tmp_path, provider, store, **VOTES)
    keys = ask(tmp_path, provider, store, **VOTES).completions.sort("raw_text")["request_key"].to_list()
    for key, name, value in ((keys[0], "finish_reason", "abort"), (keys[1], "prompt_tokens", 2**80)):
        with store.database.begin() as connection:
            table = sa.table("completions", sa.column("request_key"), sa.column("response"))
            here = table.c.request_key == key
            stored = json.loads(connection.execute(sa.select(table.c.response).where(here)).scalar_one())
            text = json.dumps(stored | {name: value})
            connection.execute(sa.update(table).where(here).values(response=text))
    rows = {row["request_key"]: row for row in ask(tmp_path, provider, store, **VOTES).completions.to_dicts()}
    assert (rows[keys[0]]["status"], rows[keys[0]]["answer"]) == ("truncated", None)
    assert rows[keys[1]]["status"] == "failed"
    assert "does not fit the table" in rows[keys[1]]["error"]
    assert rows[keys[2]]["status"] == "ok"
    assert len(provider.requests) == 3


def test_a_key_in_an_unusable_body_is_masked_everywhere(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-9f8e7d6c5b4a39281706"
    monkeypatch.setenv("SHOP_KEY", key)
    make_odd(provider, lambda body: body | {"choices": None, "error": {"code": 500, "message": f"refused {key}"}})
    row = get_odd_row(ask(tmp_path, provider, store, **VOTES, api_key_env="SHOP_KEY"))
    assert "refused ***" in row["error"]
    assert "refused ***" in row["raw_text"]
    store.close()
    assert key.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "store").iterdir())


def test_the_newest_unusable_body_of_a_request_is_kept(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    keys = []
    for number in (1, 2):
        make_odd(provider, set_message(content=number))
        keys.append(get_odd_row(ask(tmp_path, provider, store, **VOTES))["request_key"])
    assert keys[0] == keys[1]
    found = store.find_unusable([*keys, "another"])
    assert list(found) == keys[:1]
    assert json.loads(found[keys[0]].answer.text)["choices"][0]["message"]["content"] == 2
    assert "message.content is a number" in str(found[keys[0]])


def test_an_overload_with_http_200_halves_the_concurrency(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill_dagster.teacher.completions import engine

    limits: dict[str, Any] = {}
    monkeypatch.setattr(engine, "_limits_by_teacher", limits)
    make_odd(provider, lambda _: {"error": {"code": 429, "message": "slow down"}})
    get_odd_row(ask(tmp_path, provider, store, **VOTES, concurrency=8))
    assert [limit.width < 8 for limit in limits.values()] == [True]


def test_an_empty_account_with_http_200_stops_the_asking(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.change_body = lambda *_: {"error": {"code": "insufficient_quota", "message": "top up"}}
    with pytest.raises(PermanentTeacherError, match="top up"):
        ask(tmp_path, provider, store, **VOTES, concurrency=1)
    assert len(provider.requests) == 1
