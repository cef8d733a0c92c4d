"""Batch mode against a server that speaks OpenAI's files and batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from distill_dagster.config import BudgetSpec, Task, TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tasks import Slice
from distill_dagster.teacher.asking.ask import Asker, AskResult, run_ask
from distill_dagster.teacher.completions.batch_results import compute_batch_cost
from distill_dagster.teacher.completions.batch_services import SUBMISSION_KEY
from distill_dagster.teacher.completions.batch_store import BatchStore
from distill_dagster.teacher.completions.batches import BatchPendingError, collect_batches
from distill_dagster.teacher.completions.ledger import LEDGER, Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import resolve_endpoint
from tests.support.batches import BatchProvider
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, TASK, build_asker, build_request_builder, merge_settings, write_small_task
from tests.support.waiting import HANG_S

TEXTS = ("a refund please", "my delivery", "the login")
Ask = Callable[..., AskResult]


@pytest.fixture
def provider() -> Iterator[BatchProvider]:
    with BatchProvider(LABELS) as provider:
        yield provider


@pytest.fixture
def online() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS) as online:
        yield online


def settings(provider: BatchProvider, **teacher: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"mode": "batch", "batch": {"poll_s": 0.05}, "max_retries": 0, "min_success": 0.0}
    return merge_settings(base | {"api_base": provider.url}, teacher)


@pytest.fixture
def ask(tmp_path: Path, provider: BatchProvider, store: CompletionStore) -> Ask:
    calls = iter(range(100))

    def do(
        texts: tuple[str, ...] = TEXTS, origin: str = "", account: Account | None = None, **teacher: Any
    ) -> AskResult:
        folder = write_small_task(tmp_path / str(next(calls)), teacher=settings(provider, **teacher))
        slice_ = Slice.model_validate({"description": "d", "seeds": list(texts)})
        asker = Asker(build_request_builder(folder), store, account, origin=origin)
        return run_ask(asker, build_seed_prompts("shop", slice_))

    return do


@pytest.mark.parametrize("api", ["text", "chat"])
def test_one_batch_answers_the_requests_that_are_not_stored(
    ask: Ask, provider: BatchProvider, store: CompletionStore, api: str
) -> None:
    provider.polls = 3
    asked = ask(TEXTS[:2], api=api)
    assert (asked.usage.calls, asked.usage.cached) == (4, 0)
    assert set(asked.completions["mode"]) == {"batch"}
    assert asked.completions["latency_s"].null_count() == 4
    assert asked.completions["cost_usd"].null_count() == 4
    assert set(asked.completions["status"]) == {"ok"}
    assert {json.loads(a) for a in asked.completions["answer"]} == {"refund", "delivery"}
    assert asked.usage.prompt_tokens > 0
    [lines] = provider.lines
    assert {line["body"]["model"] for line in lines} == {"fake"}
    assert {line["url"] for line in lines} == {"/v1/completions" if api == "text" else "/v1/chat/completions"}
    assert sorted(provider.asked) == sorted(asked.completions["request_key"])
    [made] = provider.batches.values()
    assert list(made["metadata"]) == [SUBMISSION_KEY]

    more = ask(TEXTS, api=api)
    assert (more.usage.calls, more.usage.cached) == (2, 4)
    assert len(provider.lines[1]) == 2
    again = ask(TEXTS, api=api)
    assert (again.usage.calls, again.usage.cached) == (0, 6)
    assert len(provider.batches) == 2
    assert compute_data_version(again.completions) == compute_data_version(more.completions)
    assert not any(call == "POST /chat/completions" for call in provider.calls)


def test_batch_and_online_share_request_keys(ask: Ask, provider: BatchProvider) -> None:
    asked = ask()
    online = ask(mode="online")
    assert (online.usage.calls, online.usage.cached) == (0, 6)
    assert set(online.completions["mode"]) == {"batch"}
    assert list(online.completions["request_key"]) == list(asked.completions["request_key"])
    base = merge_settings(TASK, {"teacher": {"soft_labels": "votes"}})
    [plain, batched] = [Task.model_validate(merge_settings(base, {"teacher": t})) for t in ({}, {"mode": "batch"})]
    assert plain.hash_teacher_settings({}) == batched.hash_teacher_settings({})


def test_a_failed_line_is_a_failed_row_and_the_next_run_asks_again(ask: Ask, provider: BatchProvider) -> None:
    provider.fail_line = lambda text: "login" in text
    asked = ask()
    failed = asked.completions.filter(pl.col("status") == "failed")
    assert failed.height == 2
    assert set(failed["error"]) == {"HTTP 500: no answer to the login"}
    assert set(failed["mode"]) == {"batch"}
    provider.fail_line = lambda text: False
    assert ask().missing_rows == 0
    assert [len(lines) for lines in provider.lines] == [6, 2]


def test_the_next_run_asks_again_for_the_rest_of_an_expired_batch(ask: Ask, provider: BatchProvider) -> None:
    provider.answered = 4
    asked = ask()
    assert asked.missing_rows >= 1
    errors = asked.completions.filter(pl.col("status") == "failed")["error"]
    assert errors.len() == 2
    assert all("in time" in error for error in errors)
    provider.answered = None
    assert ask().missing_rows == 0
    assert [len(lines) for lines in provider.lines] == [6, 2]


def test_the_next_run_asks_again_after_a_cancelled_batch(ask: Ask, provider: BatchProvider) -> None:
    provider.polls = None
    provider.on_create = lambda batch: batch.update(status="cancelled")
    assert set(ask().completions["error"]) == {
        "the batch was cancelled before this request was answered; the next run asks again"
    }
    provider.polls, provider.on_create = 1, lambda batch: None
    assert ask().missing_rows == 0


def test_a_batch_that_the_provider_refuses(ask: Ask, provider: BatchProvider) -> None:
    provider.refuse = "the model cannot be used in batches"
    with pytest.raises(TeacherError, match="the batch was refused: the model cannot be used in batches"):
        ask(min_success=0.5)
    provider.refuse = None
    assert ask().missing_rows == 0


def test_a_run_without_waiting_finds_the_answers_later(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.polls = None
    with pytest.raises(BatchPendingError, match="under way; 0 of 6"):
        ask(batch={"wait_s": 0})
    with pytest.raises(BatchPendingError):
        ask(batch={"wait_s": 0})
    assert len(provider.batches) == 1
    provider.end("batch_0")
    asked = ask(batch={"wait_s": 0})
    assert asked.missing_rows == 0
    assert len(provider.batches) == 1
    assert BatchStore(store).list_open() == []


def test_an_open_batch_of_an_earlier_setting_is_named_with_its_command(
    tmp_path: Path, ask: Ask, provider: BatchProvider, online: FakeProvider, store: CompletionStore
) -> None:
    """`mode: batch` was removed from task.yaml while a batch was open."""
    provider.polls = None
    with pytest.raises(BatchPendingError):
        ask(TEXTS[:2], batch={"wait_s": 0}, origin="shop_mail/teacher_completions[shop]")
    [left] = BatchStore(store).list_open()
    for owner in (None, "another-host:1:1"):  # it does not matter which process submitted it
        if owner is not None:
            with store.database.begin() as connection:
                connection.execute(sa.update(LEDGER).values(owner=owner))
        with pytest.raises(BatchPendingError) as caught:
            ask(mode="online", api_base=online.url)
        message = str(caught.value)
        assert "`distill batches shop_mail`" in message
        assert left.submission in message
        assert "shop_mail/teacher_completions[shop]" in message
    assert online.texts == [TEXTS[2]] * 2, "the prompt that is in no batch was asked once, and its answers are stored"
    provider.end("batch_0")
    spec = write_small_task(tmp_path / "spec", teacher=settings(provider, mode="online")).task.teacher
    [done], _ = collect_batches(resolve_endpoint(spec), spec, store, "shop_mail")
    assert done.answers == 4
    asked = ask(mode="online")
    assert (asked.usage.calls, asked.usage.cached, asked.missing_rows) == (0, 6, 0)


def test_a_cap_ends_the_submitting_but_not_the_run(ask: Ask, provider: BatchProvider) -> None:
    asked = ask(account=Account("t", "c1", "slices", BudgetSpec(tokens=100)))
    assert asked.usage.stopped is not None
    assert "budget.tokens" in asked.usage.stopped
    usable = asked.completions.filter(pl.col("status") == "ok").height
    assert 0 < usable < 6
    assert usable == len(provider.asked)
    more = ask(account=Account("t", "c1", "slices", BudgetSpec(tokens=20_000)))
    assert (more.usage.stopped, more.missing_rows, more.usage.cached) == (None, 0, usable)
    assert len(provider.asked) == len(set(provider.asked)) == 6


def test_slices_with_the_same_prompt_share_one_request(ask: Ask, provider: BatchProvider) -> None:
    provider.polls = None
    for texts in (TEXTS[:2], TEXTS[1:]):
        with pytest.raises(BatchPendingError):
            ask(texts, batch={"wait_s": 0})
    assert len(provider.asked) == len(set(provider.asked)) == 6
    for id_ in list(provider.batches):
        provider.end(id_)
    assert ask(TEXTS).usage.calls == 0


def test_overload_is_retried_and_a_rejected_key_is_redacted(
    ask: Ask, provider: BatchProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "a-planted-key-0815")
    provider.faults = [500, 0, 0, 429]
    assert ask(max_retries=2, api_key_env="SHOP_KEY").missing_rows == 0
    assert len(provider.batches) == 1
    provider.faults = [0, 401]
    with pytest.raises(TeacherError) as caught:
        ask(("another login",), api_key_env="SHOP_KEY")
    assert "on purpose" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert ask(("another login",), api_key_env="SHOP_KEY").missing_rows == 0
    assert len(provider.asked) == len(set(provider.asked))


def test_a_batch_whose_creation_was_not_confirmed_is_adopted(ask: Ask, provider: BatchProvider) -> None:
    def lose(batch: dict[str, Any]) -> None:
        raise ConnectionResetError

    provider.on_create = lose  # the connection breaks after the batch is created
    asked = ask()
    assert asked.missing_rows == 0
    assert len(provider.batches) == 1


def test_many_requests_make_several_batches(ask: Ask, provider: BatchProvider) -> None:
    assert ask(batch={"max_requests": 4}).usage.calls == 6
    assert [len(lines) for lines in provider.lines] == [4, 2]


def test_a_provider_without_a_batch_api_is_an_error_with_a_remedy(ask: Ask) -> None:
    with pytest.raises(TeacherError, match=r"no batch API for ollama/llama3.*mode: online"):
        ask(model="ollama/llama3", api="chat", soft_labels="votes")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "embedded/smollm2-135m-instruct"}, "has none"),
        ({"model": "replay/x", "soft_labels": "votes"}, "has none"),
        ({"model": "openai/x", "api": "text", "resolve_labels": True}, "need `mode: online`"),
    ],
)
def test_settings_that_batch_mode_cannot_serve_are_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSpec.model_validate(teacher | {"mode": "batch"})


def spec_of(model: str, **more: Any) -> TeacherSpec:
    return TeacherSpec.model_validate({"model": model, **more})


def test_the_batch_price_is_the_listed_price_or_unknown() -> None:
    import litellm

    known = litellm.model_cost["gpt-4o-mini"]
    expected = 1000 * known["input_cost_per_token_batches"] + 10 * known["output_cost_per_token_batches"]
    assert compute_batch_cost(spec_of("openai/gpt-4o-mini"), 1000, 10) == pytest.approx(expected)
    assert expected < 1000 * known["input_cost_per_token"] + 10 * known["output_cost_per_token"]
    assert compute_batch_cost(spec_of("openai/unknown-model"), 1000, 10) is None
    assert compute_batch_cost(spec_of("openai/gpt-4o-mini"), None, 10) is None


RUN = """
    import sys
    from pathlib import Path
    from distill_dagster.prompts.seeds import build_seed_prompts
    from distill_dagster.tasks import Slice, TaskFolder
    from distill_dagster.teacher.asking.ask import run_ask
    from distill_dagster.teacher.completions.store import CompletionStore
    from tests.support.task import build_asker

    store = CompletionStore.open_in_folder(Path(sys.argv[2]))
    slice_ = Slice.model_validate({"description": "d", "seeds": sys.argv[3:]})
    asked = run_ask(build_asker(TaskFolder(Path(sys.argv[1])), store), build_seed_prompts("shop", slice_))
    print(asked.missing_rows, asked.usage.calls)
"""


@pytest.mark.parametrize("moment", ["file", "create", "created", "polling"])
def test_a_killed_process_neither_loses_nor_doubles_a_batch(
    tmp_path: Path, provider: BatchProvider, store: CompletionStore, ask: Ask, moment: str
) -> None:
    """`file`: during the upload. `create`: before the batch exists. `created`: it exists, and the client has no id."""
    folder = write_small_task(tmp_path / "killed", teacher=settings(provider))
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(folder.path), str(tmp_path / "store"), *TEXTS]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_FOLDER)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    provider.polls = None
    reached: list[bool] = []

    def kill(*_: Any) -> None:
        if not reached:
            reached.append(True)
            process.send_signal(signal.SIGKILL)
            process.wait()

    class Calls(list[str]):
        def append(self, call: str) -> None:
            super().append(call)
            if call == {"file": "POST /files", "create": "POST /batches"}.get(moment):
                kill()
                raise ConnectionResetError  # the request never had an effect
            if moment == "polling" and call.startswith("GET /batches/"):
                kill()

    if not reached:
        provider.calls = Calls()
    if moment == "created":
        provider.on_create = kill
    process.wait(timeout=HANG_S)
    assert reached
    assert process.returncode == -signal.SIGKILL
    assert len(provider.batches) == (0 if moment in ("file", "create") else 1)
    [note] = BatchStore(store).list_open()
    assert (note.batch_id is None) == (moment != "polling")
    assert not note.is_submitting

    provider.calls, provider.polls = [], 2
    asked = ask()
    assert asked.missing_rows == 0
    assert len(provider.batches) == 1
    assert len(provider.asked) == len(set(provider.asked)) == 6
    assert BatchStore(store).list_open() == []


def test_two_processes_at_once_ask_once(tmp_path: Path, provider: BatchProvider, store: CompletionStore) -> None:
    provider.polls = 6
    folder = write_small_task(tmp_path / "both", teacher=settings(provider))
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(folder.path), str(tmp_path / "store"), *TEXTS]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_FOLDER)}
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=HANG_S)[0].split() for process in started]
    assert [missing for missing, _ in ended] == ["0", "0"]
    assert sorted(calls for _, calls in ended) == ["0", "6"]
    assert len(provider.asked) == 6


def test_a_new_database_collects_the_open_batches(
    tmp_path: Path, provider: BatchProvider, store: CompletionStore
) -> None:
    """The new store takes over answers, ledger and notes, so it collects and pays for the batch of the old store."""
    provider.polls = None
    price = {"input_usd": 1.0, "output_usd": 1.0}
    teacher = settings(provider, batch={"wait_s": 0, "poll_s": 0.05}, price=price)
    folder = write_small_task(tmp_path / "moved", teacher=teacher)
    account = Account("shop_mail", "c1", "slices", BudgetSpec(month_usd=1.0))
    prompts = build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": list(TEXTS)}))

    def ask_from(store: CompletionStore) -> AskResult:
        asker = build_asker(folder, store)
        asker.engine.account = account
        asker.origin = "shop_mail/teacher_completions[shop]"
        return run_ask(asker, prompts)

    with pytest.raises(BatchPendingError):
        ask_from(store)
    new = CompletionStore(f"sqlite:///{tmp_path / 'new.db'}")
    new.take_over(tmp_path / "store")
    assert new.sum_budget_usage(account, month=True) == store.sum_budget_usage(account, month=True)
    assert new.sum_budget_usage(account).reserved_tokens > 0
    [submission] = BatchStore(new).list_open(task="shop_mail")
    with pytest.raises(BatchPendingError):
        ask_from(new)
    assert len(provider.batches) == 1, "nothing is submitted twice"
    provider.end(str(submission.batch_id))
    spec = folder.task.teacher
    [done], left = collect_batches(resolve_endpoint(spec), spec, new, "shop_mail")
    assert (done.answers, left) == (6, [])
    assert ask_from(new).usage.calls == 0
    assert (new.sum_budget_usage(account).reserved_tokens, new.sum_budget_usage(account).usd > 0) == (0, True)
    new.take_over(tmp_path / "store")
    assert BatchStore(new).list_open() == [], "a store that was used takes nothing more"
    new.close()
