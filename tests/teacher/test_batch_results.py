"""Result files of batches as providers and gateways write them: what was answered and billed is never lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import Slice
from distill_dagster.teacher.asking.ask import AskResult, run_ask
from distill_dagster.teacher.completions.batch_files import build_request_line
from distill_dagster.teacher.completions.batch_results import ResultLine, assign_lines, parse_result_lines
from distill_dagster.teacher.completions.batch_store import BatchStore
from distill_dagster.teacher.completions.batches import BatchPendingError, forget_batch
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.exchange import Request
from tests.support.batches import BatchProvider
from tests.support.kind_folder import write_kind_folder
from tests.support.provider import FakeProvider
from tests.support.task import build_asker

TEXTS = ("first question", "second question", "third question")
KEYS = [f"{n:064x}" for n in range(4)]
SPEC = TeacherSpec(model="openai/fake", api_base="http://127.0.0.1:9/v1")
Ask = Callable[..., AskResult]


@pytest.fixture
def provider() -> Iterator[BatchProvider]:
    with BatchProvider([], answer=lambda seen: f"the answer to {seen.text}") as provider:
        yield provider


@pytest.fixture
def ask(tmp_path: Path, provider: BatchProvider, store: CompletionStore) -> Ask:
    calls = iter(range(100))

    def do(texts: tuple[str, ...] = TEXTS, **teacher: Any) -> AskResult:
        settings: dict[str, Any] = {"mode": "batch", "batch": {"poll_s": 0.05}, "min_success": 0.0}
        settings |= {"price": {"input_usd": 1.0, "output_usd": 1.0}, "few_shot": {"draws": 1, "per_label": 0}}
        path = tmp_path / str(next(calls))
        folder = write_kind_folder(path, "generation", provider.url, teacher=settings | teacher)
        slice_ = Slice.model_validate({"description": "d", "seeds": list(texts)})
        return run_ask(build_asker(folder, store), build_seed_prompts("shop", slice_, answers=True))

    return do


def errors(asked: AskResult) -> list[str]:
    return asked.completions.filter(pl.col("status") == "failed")["error"].to_list()


def states(store: CompletionStore) -> dict[str, int]:
    return dict(store.read_ledger()["state"].value_counts().iter_rows())


def test_an_answer_with_other_line_separators_is_one_line(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    marks = "\x85\u2028\u2029\x0b\x0c\x1c"
    provider.answer = lambda seen: f"one{marks}two"
    provider.rewrite = lambda text, line: line.replace("\\u000b", "\x0b").replace("\\f", "\x0c")  # not escaped either
    asked = ask((*TEXTS, "a question\u2028in\x85three lines"))
    assert asked.missing_rows == 0
    assert set(asked.completions["raw_text"]) == {f"one{marks}two"}
    assert ask((*TEXTS, "a question\u2028in\x85three lines")).usage.calls == 0
    assert states(store) == {"settled": 4}


def test_no_line_of_a_request_contains_another_line_separator() -> None:
    text = "one\x85two\u2028three\u2029four\nfive"
    request = Request("teacher", 0, {"max_tokens": 4}, messages=[{"role": "user", "content": text}])
    line = build_request_line(resolve_endpoint(SPEC), SPEC, request)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["body"]["messages"] == request.messages


def test_a_line_that_is_cut_counts_as_billed_and_says_so(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.rewrite = lambda text, line: line[: len(line) - 60] if text == TEXTS[1] else line
    asked = ask()
    [error] = errors(asked)
    assert "cannot be read" in error
    assert "counts as billed" in error
    assert states(store) == {"settled": 2, "lost": 1}
    lost = store.read_ledger().filter(pl.col("state") == "lost").row(0, named=True)
    assert lost["usd"] == lost["worst_usd"] > 0
    raw = asked.completions.filter(pl.col("status") == "failed")["raw_text"].item()
    assert "the answer to second question" in raw, "what came is kept with the row"
    provider.rewrite = lambda text, line: line
    assert ask().missing_rows == 0
    assert [len(lines) for lines in provider.lines] == [3, 1]


def test_a_line_that_names_no_request_counts_for_one_without_a_line(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.rewrite = lambda text, line: "<html>502</html>" if text == TEXTS[0] else line
    [error] = errors(ask())
    assert "cannot be read" in error
    assert states(store) == {"settled": 2, "lost": 1}


def test_answers_that_the_provider_counts_and_does_not_send_are_billed(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.rewrite = lambda text, line: "" if text == TEXTS[2] else line
    [error] = errors(ask())
    assert "counts 3 answers and sent fewer" in error
    assert states(store) == {"settled": 2, "lost": 1}


def test_a_result_file_that_is_gone_costs_its_batch_and_no_more(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    end = provider.end

    def forget(id_: str, status: str | None = None) -> None:
        end(id_, status)
        del provider.files[provider.batches[id_]["output_file_id"]]

    provider.end = forget  # type: ignore[method-assign]
    assert len(errors(ask())) == 3
    assert states(store) == {"lost": 3}
    provider.end = end  # type: ignore[method-assign]
    assert ask().missing_rows == 0


def test_a_batch_that_the_provider_does_not_know_is_named_with_its_command(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.polls = None
    with pytest.raises(BatchPendingError):
        ask(batch={"wait_s": 0})
    [note] = BatchStore(store).list_open()
    provider.batches.clear()
    with pytest.raises(TeacherError, match=f"--forget {note.submission}"):
        ask()
    forget_batch(store, note.submission)
    provider.polls = 1
    assert ask().missing_rows == 0
    assert states(store) == {"lost": 3, "settled": 3}


def test_an_odd_answer_costs_its_own_row(ask: Ask, provider: BatchProvider, store: CompletionStore) -> None:
    def rewrite(text: str, line: str) -> str:
        value = json.loads(line)
        body = value["response"]["body"]
        if text == TEXTS[0]:
            body["choices"] = []
        if text == TEXTS[1]:
            body["choices"][0]["message"]["content"] = [
                {"type": "text", "text": "in "},
                {"type": "text", "text": "parts"},
            ]
        if text == TEXTS[2]:
            body["choices"][0]["finish_reason"] = "error"
        return json.dumps(value)

    provider.rewrite = rewrite
    asked = ask()
    assert asked.completions.filter(pl.col("status") == "ok")["raw_text"].to_list() == ["in parts"]
    first, third = errors(asked)
    assert "the response contains no answer: `choices` is empty" in first + third
    assert "the answer was broken off" in first + third
    ledger = store.read_ledger()
    assert set(ledger["state"]) == {"settled"}, "their tokens are known"
    assert min(ledger["tokens"]) > 0


def test_a_filtered_prompt_is_not_asked_again(ask: Ask, provider: BatchProvider, store: CompletionStore) -> None:
    def rewrite(text: str, line: str) -> str:
        value = json.loads(line)
        body = {"error": {"message": "no", "type": "invalid_request_error", "code": "content_filter"}}
        return json.dumps(value | {"response": {"status_code": 400, "body": body}})

    provider.rewrite = rewrite
    assert set(ask().completions["status"]) == {"filtered"}
    assert ask().usage.calls == 0
    assert store.read_ledger()["tokens"].sum() == 0


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_what_a_batch_did_not_reach_costs_nothing(
    ask: Ask, provider: BatchProvider, store: CompletionStore, status: str
) -> None:
    provider.answered = 1
    provider.on_create = lambda batch: provider.end(batch["id"], status)
    assert len(errors(ask())) == 2
    assert states(store) == {"settled": 1, "released": 2}


def test_a_long_wait_for_the_batch_api_stops_the_asking(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.faults, provider.headers = [429], {"Retry-After": "5000"}
    with pytest.raises(TeacherPausedError, match="on purpose") as caught:
        ask(max_retries=5)
    assert not isinstance(caught.value, BatchPendingError)
    assert provider.calls == ["POST /files", "GET /batches"], "one try, and a look whether the batch exists"
    provider.headers = {}
    assert ask().missing_rows == 0


def chat(text: str = "fine") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def parse(*lines: Any) -> list[ResultLine]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return list(parse_result_lines("\n".join(texts).encode(), SPEC))


@pytest.mark.parametrize(
    "response",
    [
        {"status_code": 200, "body": chat()},
        {"status_code": "200", "body": chat()},
        {"status_code": 200, "body": json.dumps(chat())},
        {"body": chat()},
        {"status_code": None, "body": chat()},
    ],
)
@pytest.mark.parametrize("error", [None, {}, "", {"message": None, "code": None}])
def test_forms_of_a_whole_line(response: dict[str, Any], error: Any) -> None:
    [line] = parse({"custom_id": KEYS[0], "response": response, "error": error})
    assert line.response is not None
    assert (line.key, line.response.text, line.error, line.billed) == (KEYS[0], "fine", "", True)


@pytest.mark.parametrize(
    ("response", "line_error", "error", "billed"),
    [
        (None, {"code": "batch_expired", "message": "Too late."}, "Too late.", False),
        ({}, "no capacity", "no capacity", False),
        ({"status_code": 500, "body": {"error": "oh"}}, None, "HTTP 500: oh", False),
        ({"status_code": 429, "body": None}, None, "HTTP 429", False),
        ({"status_code": 504, "body": "late"}, None, "HTTP 504: late", True),
        ({"status_code": 200, "body": {"error": {"message": "m", "code": 500}}}, None, "500): m", False),
        ({"status_code": 200, "body": [1]}, None, "no answer", True),
        (None, None, "cannot be read", True),
        ("x", None, "cannot be read", True),
    ],
)
def test_forms_of_a_line_without_an_answer(response: Any, line_error: Any, error: str, billed: bool) -> None:
    [found] = parse({"custom_id": KEYS[0], "response": response, "error": line_error})
    assert (found.key, found.billed) == (KEYS[0], billed)
    assert error in found.error


def test_a_line_that_is_cut_may_still_name_its_request() -> None:
    [found] = parse('{"custom_id": "' + KEYS[0] + '", "response": {"bo')
    assert (found.key, found.billed) == (KEYS[0], True)


@pytest.mark.parametrize("line", ["null", "7", "[]", '"x"', "{}", "not json", "{" * 3000, '{"custom_id": null}'])
def test_lines_that_name_no_request(line: str) -> None:
    assert all(found.key is None and found.billed and found.error for found in parse(line))


def test_a_file_may_begin_with_a_bom_and_contain_bytes_that_are_no_utf8() -> None:
    good = json.dumps({"custom_id": KEYS[1], "response": {"status_code": 200, "body": chat()}}).encode()
    lines = list(
        parse_result_lines(b"\xef\xbb\xbf" + good + b"\r\n\n\xff\xfe\n" + good.replace(b"fine", b"\xff"), SPEC)
    )
    assert [line.response and line.response.text for line in lines] == ["fine", "\ufffd\ufffd", "\ufffd"]
    assert [bool(line.error) for line in lines] == [False, True, False]


def test_an_answer_counts_more_than_an_error_and_each_request_has_a_result() -> None:
    answer, failed = ResultLine(KEYS[0], None, billed=True), ResultLine(KEYS[0], None, "no")
    nameless = ResultLine(None, None, "cannot be read", billed=True)
    for lines in ([answer, failed], [failed, answer]):
        found = assign_lines(KEYS, [*lines, nameless], "missing", answered=2)
        assert found[KEYS[0]] is answer
        assert [found[key].error for key in KEYS[1:]] == ["cannot be read", "missing", "missing"]
    unknown = assign_lines(KEYS[:1], [ResultLine("else", None, billed=True)], "missing", answered=1)
    assert "'else' names no request of the batch" in unknown[KEYS[0]].error
    assert unknown[KEYS[0]].billed
    twice = assign_lines(KEYS[:2], [answer, answer], "missing", answered=2)
    assert twice[KEYS[1]].billed, "the provider counts two answers"


def test_an_open_batch_of_online_requests_is_no_pause(
    ask: Ask, provider: BatchProvider, store: CompletionStore
) -> None:
    provider.polls = None
    with pytest.raises(BatchPendingError):
        ask(batch={"wait_s": 0})
    with FakeProvider([], answer=lambda seen: "x") as online, pytest.raises(BatchPendingError):
        ask(mode="online", api_base=online.url)
    assert PauseStore(store).find(SPEC) is None
