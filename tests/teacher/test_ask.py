"""Asking a real HTTP server, which answers or fails as the test needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.core.errors import DistillError, TeacherError
from distill_dagster.curation.candidates.label_answers import choose_label_candidates
from distill_dagster.curation.candidates.priors import build_uniform_prior
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.teacher.asking.ask import Asker, AskResult, run_ask
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import PermanentTeacherError
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS, build_asker, build_request_builder, write_small_task

MODES = [{"api": "text"}, {"api": "chat"}]
by_api = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["api"])


def prompts(*texts: str) -> pl.DataFrame:
    return build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": list(texts)}))


TEXTS = ("a refund please", "my delivery", "the login")
Ask = Callable[..., AskResult]


@pytest.fixture
def ask(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> Ask:
    """Ask the provider for texts with these teacher settings. Each call has an asker of its own."""
    calls = iter(range(100))

    def do(
        texts: tuple[str, ...] = TEXTS, sequential: int = 0, labels: list[str] = LABELS, **teacher: Any
    ) -> AskResult:
        named = [{"name": label, "description": "d"} for label in labels]
        teacher = {"api_base": provider.url, "max_retries": 0} | teacher
        folder = write_small_task(tmp_path / str(next(calls)), labels=named, teacher=teacher)
        if labels != LABELS:
            rows = [
                f'{{"id": "{n}{label}", "text": "{n} of {label}", "label": "{label}"}}\n'
                for label in labels
                for n in "ab"
            ]
            for file in ("examples.jsonl", "dev.jsonl", "golden.jsonl"):
                (folder.path / file).write_text("".join(rows).replace(" of ", f" {file} "))
        return run_ask(build_asker(folder, store), prompts(*texts), sequential=sequential)

    return do


def answers(asked: AskResult) -> dict[str, str | None]:
    return dict(asked.completions.filter(pl.col("sample_index") == 0).select("prompt_id", "answer").iter_rows())


def soft(row: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["prob"] for entry in row["soft_labels"]}


@by_api
def test_answers_and_their_distributions(ask: Ask, provider: FakeProvider, mode: dict[str, str]) -> None:
    asked = ask(**mode)
    table = prompts(*TEXTS)
    assert answers(asked) == {
        row["prompt_id"]: f'"{next(x for x in LABELS if x in row["messages"][0]["content"])}"'
        for row in table.iter_rows(named=True)
    }
    assert (asked.usage.calls, asked.usage.cached, asked.missing_rows) == (6, 0, 0)
    assert {seen.path for seen in provider.requests} == {
        "/v1/completions" if mode["api"] == "text" else "/v1/chat/completions"
    }
    for row in asked.completions.iter_rows(named=True):
        assert soft(row)[row["answer"].strip('"')] == pytest.approx(0.7, abs=2e-6)
        assert sum(soft(row).values()) == pytest.approx(1, abs=1e-5)
        assert row["status"] == "ok"
        assert row["error"] is None
        assert row["cost_usd"] is None  # the price is unknown: never 0, never a guess
        assert row["prompt_tokens"] > 0
        assert row["completion_tokens"] == 2
        assert (row["teacher"], row["model_reported"], row["finish_reason"]) == ("openai/fake", "fake-1", "stop")
        assert row["latency_s"] > 0
    assert asked.completions["completion_id"].n_unique() == 6


@by_api
def test_stored_answers_are_not_asked_again(ask: Ask, provider: FakeProvider, mode: dict[str, str]) -> None:
    first = ask(**mode)
    again = ask((*TEXTS, "one more"), **mode)
    assert (again.usage.calls, again.usage.cached) == (2, 6)
    third = ask((*TEXTS, "one more"), **mode, concurrency=1)
    assert (third.usage.calls, third.usage.cached) == (0, 8)
    assert len(provider.requests) == 8
    assert compute_data_version(third.completions) == compute_data_version(again.completions)
    assert third.completions.equals(again.completions)
    kept = again.completions.filter(pl.col("prompt_id").is_in(first.completions["prompt_id"].to_list()))
    assert kept.equals(first.completions)


@by_api
@pytest.mark.parametrize(
    "fault", [Fault(429), Fault(500), Fault(503), Fault(200, "{no json")], ids=lambda f: f"{f.status}"
)
def test_temporary_errors_are_retried(ask: Ask, provider: FakeProvider, mode: dict[str, str], fault: Fault) -> None:
    provider.fail = lambda seen, before: fault if before == 0 else None
    asked = ask(**mode, max_retries=2)
    assert (asked.usage.calls, len(provider.requests), asked.missing_rows) == (12, 12, 0)
    assert asked.completions["status"].unique().to_list() == ["ok"]
    assert compute_data_version(asked.completions) == compute_data_version(ask(**mode).completions)


@by_api
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(500), "on purpose"),
        (Fault(429), "HTTP 429: on purpose"),
        (Fault(400), "HTTP 400: on purpose"),
        (Fault(200, "{no json"), "is not JSON"),
        (Fault(200, "{}"), "contains no answer"),
        (Fault(200, '{"choices": []}'), "contains no answer"),
        (Fault(pause_s=6.0), "timed out"),
    ],
    ids=["500", "429", "400", "malformed", "empty", "no choices", "hang"],
)
def test_a_row_that_keeps_failing_is_missing(
    ask: Ask, provider: FakeProvider, mode: dict[str, str], fault: Fault, says: str
) -> None:
    provider.fail = lambda seen, _: fault if "login" in seen.text else None
    asked = ask(**mode, min_success=0.5, timeout_s=3, few_shot={"draws": 1})
    assert asked.missing_rows == 1
    failed = asked.completions.filter(pl.col("status") == "failed").to_dicts()
    assert len(failed) == 1
    assert says in failed[0]["error"]
    assert (failed[0]["answer"], failed[0]["soft_labels"], failed[0]["latency_s"]) == (None, None, None)
    provider.fail = None
    healed = ask(**mode, few_shot={"draws": 1})
    assert (healed.usage.calls, healed.usage.cached, healed.missing_rows) == (1, 2, 0)


def test_an_invalid_request_is_not_retried(ask: Ask, provider: FakeProvider) -> None:
    provider.fail = lambda *_: Fault(400)
    with pytest.raises(TeacherError):
        ask(max_retries=3)
    assert len(provider.requests) == 6


def test_a_prompt_that_misses_one_of_its_samples_is_missing(ask: Ask, provider: FakeProvider) -> None:
    provider.fail = lambda seen, _: Fault(500) if "login" in seen.text and len(provider.requests) > 3 else None
    asked = ask(concurrency=1)
    assert asked.completions.filter(pl.col("status") == "failed").height == 1
    assert asked.missing_rows == 1
    assert asked.usable_prompts == 3
    provider.fail = None
    assert ask().usage.calls == 1


@by_api
@pytest.mark.parametrize("status", [401, 404])
def test_a_teacher_that_refuses_everything_is_asked_no_more(
    ask: Ask, provider: FakeProvider, store: CompletionStore, mode: dict[str, str], status: int
) -> None:
    provider.fail = lambda *_: Fault(status)
    with pytest.raises(PermanentTeacherError, match="on purpose"):
        ask(tuple(f"text {n}" for n in range(20)), **mode, concurrency=2, max_retries=5)
    assert 1 <= len(provider.requests) <= 2
    assert store.count() == 0
    with pytest.raises(PermanentTeacherError):
        ask(tuple(f"text {n}" for n in range(20)), sequential=5, **mode, max_retries=5)
    assert len(provider.requests) <= 3


def test_too_few_answers_are_an_error_and_are_kept(ask: Ask, provider: FakeProvider, store: CompletionStore) -> None:
    provider.fail = lambda seen, _: Fault(500) if "login" in seen.text else None
    with pytest.raises(
        TeacherError, match=r"Only 67% of 3 prompts have an answer.*min_success is 90%.*on purpose"
    ) as caught:
        ask()
    assert "Stored answers are not asked for again" in str(caught.value)
    assert store.count() == 4
    assert ask(min_success=2 / 3).missing_rows == 1


@by_api
def test_no_log_probabilities(ask: Ask, provider: FakeProvider, mode: dict[str, str]) -> None:
    provider.logprobs = False
    with pytest.raises(TeacherError, match=r"sent no token log-probabilities\. Set `soft_labels: votes` in task\.yaml"):
        ask(**mode)
    provider.logprobs = True  # the server was mended: what it sent before must not stand in the way
    assert ask(**mode).usage.calls == 6


def test_an_empty_answer_is_an_answer(ask: Ask, provider: FakeProvider) -> None:
    provider.answer, provider.logprobs = lambda _: "", False
    asked = ask()
    assert asked.completions["status"].unique().to_list() == ["ok"]
    assert asked.completions["answer"].null_count() == 6
    assert ask().usage.calls == 0


@by_api
def test_votes_of_samples(ask: Ask, provider: FakeProvider, mode: dict[str, str]) -> None:
    def answer(seen: ReceivedRequest) -> str:
        others = provider.texts.count(seen.text)
        return "Login." if others == 2 else "I take it for a refund."

    provider.answer = answer
    asked = ask(("some text",), **mode, soft_labels="votes", few_shot={"draws": 3}, concurrency=1)
    assert asked.completions["answer"].to_list() == ['"refund"', '"login"', '"refund"']
    assert asked.completions["soft_labels"].to_list() == [None] * 3
    assert "logprobs" not in provider.requests[0].body
    [row] = choose_label_candidates(
        prompts("some text"), asked.completions, build_uniform_prior(LABELS, 3), LABELS
    ).to_dicts()
    assert (row["answer"], row["agreement"], row["confidence"]) == ('"refund"', pytest.approx(2 / 3), 0.666667)
    assert soft(row) == {"refund": 0.666667, "login": 0.333333}


@by_api
def test_unclear_truncated_and_filtered_answers(ask: Ask, provider: FakeProvider, mode: dict[str, str]) -> None:
    votes = mode | {"soft_labels": "votes"}
    provider.answer = lambda _: "Well"
    unclear = ask(**votes)
    assert unclear.completions["status"].unique().to_list() == ["ok"]
    assert unclear.completions["answer"].null_count() == 6
    assert unclear.missing_rows == 0  # it was answered, and would be answered the same again
    provider.finish = "length"
    cut = ask(("cut",), **votes, min_success=0)
    assert cut.completions["status"].to_list() == ["truncated"] * 2
    assert (cut.missing_rows, cut.usable_prompts) == (0, 0)
    provider.finish = "content_filter"
    assert ask(("bad",), **votes, min_success=0).completions["status"].to_list() == ["filtered"] * 2
    with pytest.raises(TeacherError, match="Only 0%"):
        ask(("bad",), **votes)


CARDS = ["card arrival", "card linking", "card linking abroad", "login"]


@pytest.mark.parametrize("tokens", [1, 4])
def test_labels_with_the_same_beginning_are_asked_for_again(ask: Ask, provider: FakeProvider, tokens: int) -> None:
    provider.labels = CARDS
    settings = {"few_shot": {"per_label": 1, "draws": 1}, "max_tokens": tokens}
    asked = ask(("a card arrival", "words"), labels=CARDS, resolve_labels=True, **settings)
    for row in asked.completions.iter_rows(named=True):
        mine = [s for s in provider.requests if prompts(s.text)["prompt_id"].item() == row["prompt_id"]]
        seen = next(s for s in mine if s.body["prompt"].endswith(" =>"))
        expected = provider.probabilities(seen.text, seen.body["prompt"])
        assert soft(row) == pytest.approx(expected, abs=2e-6)
    assert asked.usage.calls == len(provider.requests) > 2
    told = [json.loads(params)["requests"] for params in asked.completions["params"]]
    assert sum(told) == asked.usage.calls
    repeated = ask(("a card arrival", "words"), labels=CARDS, resolve_labels=True, **settings)
    assert repeated.usage.calls == 0
    assert repeated.completions.equals(asked.completions)


def test_labels_with_the_same_beginning_share_unresolved_mass(ask: Ask, provider: FakeProvider) -> None:
    provider.labels = CARDS
    asked = ask(("a card arrival",), labels=CARDS, few_shot={"draws": 1}, max_tokens=1)
    [row] = asked.completions.to_dicts()
    shares = soft(row)
    assert asked.usage.calls == 1
    assert shares["card arrival"] == pytest.approx(shares["card linking"], abs=2e-6)
    assert shares["card arrival"] == pytest.approx((1 - shares["login"]) / 3, abs=2e-6)


def test_an_answer_that_never_resolves_is_counted_once(ask: Ask, provider: FakeProvider) -> None:
    """Tokens that lead to no label: asked once for each beginning, not again at each depth."""
    provider.labels = ["card zzz", "login"]
    asked = ask(("a text with card zzz",), labels=CARDS, resolve_labels=True, few_shot={"draws": 1}, max_tokens=1)
    [row] = asked.completions.to_dicts()
    assert asked.usage.calls == 2
    assert '"requests":2' in row["params"]
    assert row["completion_tokens"] == 2


def test_an_unpaired_surrogate_is_stored_and_written(ask: Ask, provider: FakeProvider, tmp_path: Path) -> None:
    provider.answer = lambda _: "refund \ud83d"
    asked = ask(api="chat", soft_labels="votes")
    asked.completions.write_parquet(tmp_path / "t.parquet")
    assert set(asked.completions["raw_text"]) == {"refund ?"}
    assert ask(api="chat", soft_labels="votes").usage.calls == 0


def test_the_first_prompts_are_asked_alone(ask: Ask, provider: FakeProvider) -> None:
    provider.pause_s = 0.02
    asked = ask(tuple(f"refund {n}" for n in range(8)), sequential=3, few_shot={"draws": 1})
    first_ids = prompts(*(f"refund {n}" for n in range(8)))["prompt_id"].to_list()[:3]
    by_prompt = dict(asked.completions.select("prompt_id", "in_flight").iter_rows())
    assert [by_prompt[id_] for id_ in first_ids] == [1, 1, 1]
    assert 1 < max(by_prompt.values()) <= 4


def test_only_wanted_samples_are_asked(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder = write_small_task(tmp_path, teacher={"api_base": provider.url})
    table = prompts(*TEXTS)
    wanted = {id_: [n % 2] for n, id_ in enumerate(table["prompt_id"])}
    asked = run_ask(build_asker(folder, store), table, samples=wanted.__getitem__)
    assert {r["prompt_id"]: [r["sample_index"]] for r in asked.completions.to_dicts()} == wanted


def test_no_prompts_ask_nothing(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder: TaskFolder = write_small_task(tmp_path, teacher={"api_base": provider.url})
    asked = run_ask(build_asker(folder, store), prompts("x").clear())
    assert (asked.completions.height, asked.usage.calls, asked.missing_rows) == (0, 0, 0)


def test_a_template_that_fails_is_named(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder = write_small_task(tmp_path, teacher={"api_base": provider.url})
    (folder.path / "templates").mkdir()
    (folder.path / "templates" / "classification_text.j2").write_text("{{ text / 0 }}")
    with pytest.raises(DistillError, match=r"templates/classification_text\.j2"):
        run_ask(build_asker(folder, store), prompts(*TEXTS))
    assert provider.requests == []


def test_an_address_without_a_server(ask: Ask, provider: FakeProvider) -> None:
    with pytest.raises(TeacherError, match="Only 0% of 3 prompts"):
        ask(api_base="http://127.0.0.1:1/v1")


def test_an_unusable_answer_is_asked_for_again(ask: Ask, provider: FakeProvider, store: CompletionStore) -> None:
    times: dict[str, int] = {}

    def answer(seen: ReceivedRequest) -> str:
        times[seen.text] = times.get(seen.text, 0) + 1
        return "" if "login" in seen.text and times[seen.text] < 3 else next(x for x in LABELS if x in seen.text)

    provider.answer = answer
    asked = ask(api="chat", soft_labels="votes", few_shot={"draws": 1}, reasks=3)
    assert asked.usage.calls == len(TEXTS) + 2
    assert asked.completions["answer"].null_count() == 0
    row = asked.completions.filter(pl.col("answer") == '"login"').row(0, named=True)
    one = asked.completions.filter(pl.col("answer") == '"refund"').row(0, named=True)
    assert json.loads(row["params"])["requests"] == 3
    assert row["prompt_tokens"] > 2 * one["prompt_tokens"]
    assert store.count() == len(TEXTS) + 2
    again = ask(api="chat", soft_labels="votes", few_shot={"draws": 1}, reasks=3)
    assert again.usage.calls == 0
    assert compute_data_version(again.completions) == compute_data_version(asked.completions)
    fewer = ask(api="chat", soft_labels="votes", few_shot={"draws": 1}, reasks=0)
    assert (fewer.usage.calls, fewer.completions["answer"].null_count()) == (0, 1)


def test_a_failed_smoke_test_stops_the_other_requests(ask: Ask, provider: FakeProvider, store: CompletionStore) -> None:
    texts = tuple(f"the login number {n}" for n in range(80))
    settings: dict[str, Any] = {"api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1}, "reasks": 0}
    provider.answer = lambda seen: "I would rather talk about the weather"
    with pytest.raises(TeacherError, match=r"smoke test of 8 rows returned 0 usable answers.*72 requests"):
        ask(texts, **settings)
    assert len(provider.requests) == 8
    assert store.count() == 8
    with pytest.raises(TeacherError, match="smoke"):
        ask(tuple(f"{text}, please" for text in texts), **settings)
    assert len(provider.requests) == 16
    provider.answer = lambda seen: "login"
    assert ask(tuple(f"{text}, now" for text in texts), **settings).usage.calls == 80
    provider.answer = lambda seen: "the weather"  # it passed once: nothing stops this teacher and template any more
    assert ask(tuple(f"{text} again" for text in texts), **settings).usage.calls == 80


def test_a_budget_stop_in_the_smoke_test_is_no_fault_of_the_template(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    texts = tuple(f"the login number {n}" for n in range(80))
    settings = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1}}

    def ask_with(name: str, tokens: int) -> AskResult:
        folder = write_small_task(tmp_path / name, teacher=settings | {"max_retries": 0, "concurrency": 1})
        account = Account("t", "c", "slices", BudgetSpec(tokens=tokens))
        return run_ask(Asker(build_request_builder(folder), store, account), prompts(*texts))

    stopped = ask_with("low", 500)
    sent = len(provider.requests)
    assert 0 < sent < 8, "the cap is reached within the smoke test"
    assert "budget.tokens" in str(stopped.usage.stopped)
    assert stopped.missing_rows == 80 - sent
    enough = ask_with("high", 1_000_000)
    assert (enough.missing_rows, enough.usage.calls, enough.usage.cached) == (0, 80 - sent, sent)


def test_seven_of_eight_are_enough_and_a_smoke_test_can_be_left_out(ask: Ask, provider: FakeProvider) -> None:
    texts = tuple(f"the login number {n}" for n in range(80))
    settings: dict[str, Any] = {"api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1}, "reasks": 0}
    provider.answer = lambda seen: "no" if len(provider.requests) <= 80 else "login"
    assert ask(texts, smoke_rows=0, **settings).usage.calls == 80
    first: list[str] = []

    def one_in_eight(seen: ReceivedRequest) -> str:
        first.append(seen.text)
        return "no" if len(first) == 1 else "login"

    provider.answer = one_in_eight
    assert ask(tuple(f"{text} again" for text in texts), **settings).usage.calls == 80


def test_a_few_rows_leave_the_garbage_collector_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(1))
    monkeypatch.setattr("gc.unfreeze", lambda: None)
    monkeypatch.setattr("gc.get_freeze_count", lambda: 0)  # students that earlier tests trained leave libraries out
    ask()
    assert frozen == []
    monkeypatch.setattr("distill_dagster.teacher.asking.ask.FREEZE_JOBS", 1)
    ask()
    assert frozen == [1]
    monkeypatch.setattr("gc.get_freeze_count", lambda: 9)
    ask()
    assert frozen == [1]
