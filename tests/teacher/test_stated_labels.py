"""Teachers that state the probabilities or the order of the labels, asked over HTTP, in batches and from recordings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.config import CascadeSpec, Task
from distill_dagster.core.errors import TeacherError
from distill_dagster.curation.candidates.cascade import find_unsure_prompts
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.curation.candidates.priors import build_uniform_prior, estimate_vote_prior
from distill_dagster.pipeline.stages import prompts
from distill_dagster.pipeline.stages import teacher as stage
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.prompts.templates import Templates, get_template_names
from distill_dagster.tables.schemas import COMPLETIONS, TEACHER_PRIOR
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.teacher.asking.ask import Asker, AskResult, run_ask
from distill_dagster.teacher.asking.estimate import estimate_requests
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.asking.stated_labels import SEVERAL, StatedLabelAsker
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import Endpoint, resolve_endpoint
from distill_dagster.teacher.providers.responses import build_filtered_response
from tests.support.batches import BatchProvider
from tests.support.provider import FakeProvider, ReceivedRequest
from tests.support.task import (
    LABELS,
    TASK,
    build_asker,
    build_stage_context,
    jsonl,
    pass_gate,
    reload_folder,
    write_small_task,
)

TEXTS = ("a refund please", "my delivery", "the login")
VERBALIZED: dict[str, Any] = {
    "api": "chat",
    "soft_labels": "verbalized",
    "max_tokens": None,
    "few_shot": {"draws": None},
    "max_retries": 0,
    "min_success": 0.0,
    "response_format": "prompt",
}


def find_label(text: str) -> str:
    return next(label for label in LABELS if label in text)


def state(seen: ReceivedRequest) -> str:
    label = find_label(seen.text)
    others = {name: 0.05 for name in LABELS if name != label}
    return json.dumps({"label": label, "probabilities": {label: 0.9} | others})


Ask = Callable[..., AskResult]


def make_prompts(*texts: str) -> pl.DataFrame:
    return build_seed_prompts("shop", Slice.model_validate({"description": "d", "seeds": list(texts)}))


@pytest.fixture
def ask(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> Ask:
    calls = iter(range(100))

    def do(texts: tuple[str, ...] = TEXTS, reasoning: bool = False, **teacher: Any) -> AskResult:
        folder = write_task(tmp_path / str(next(calls)), provider.url, reasoning, **teacher)
        return run_ask(build_asker(folder, store), make_prompts(*texts))

    return do


def write_task(path: Path, url: str, reasoning: bool = False, **teacher: Any) -> TaskFolder:
    """A task whose teacher states soft labels, with the defaults of the tokens and draws."""
    folder = write_small_task(path, reasoning=reasoning, teacher=VERBALIZED | {"api_base": url} | teacher)
    examples = folder.path / "examples.jsonl"
    rows = [json.loads(line) for line in examples.read_text().splitlines()]
    examples.write_text(jsonl([row | {"reasoning": f"It names the {row['label']}."} for row in rows]))
    return reload_folder(folder)


def soft(row: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["prob"] for entry in row["soft_labels"]}


def read_one(ask: Ask, provider: FakeProvider, text: str, **more: Any) -> dict[str, Any]:
    """The row of one prompt to which the teacher answers `text`."""
    provider.answer = lambda seen: text
    return ask((f"anything {len(provider.requests)}",), **more).completions.row(0, named=True)  # no stored answer


def test_one_call_states_the_whole_distribution(ask: Ask, provider: FakeProvider) -> None:
    provider.answer = state
    asked = ask()
    assert (asked.usage.calls, asked.missing_rows) == (3, 0), "one draw of examples by default"
    for row in asked.completions.iter_rows(named=True):
        label = json.loads(row["answer"])
        assert soft(row) == {label: 0.9} | {name: 0.05 for name in LABELS if name != label}
        assert (row["status"], row["error"], row["reasoning"]) == ("ok", None, None)
    assert {seen.body["max_tokens"] for seen in provider.requests} == {256}
    [system, user] = provider.requests[0].body["messages"]
    assert (
        '{"label": "<category>", "probabilities": {"<category>": 0.9, "<another category>": 0.1}}' in system["content"]
    )
    assert "Message: example: please refund me\nCategory: refund\n" in system["content"]
    assert "reasoning" not in system["content"].lower()
    assert user == {"role": "user", "content": provider.requests[0].text}
    assert "response_format" not in provider.requests[0].body


def test_the_reasoning_is_part_of_the_json(ask: Ask, provider: FakeProvider) -> None:
    provider.answer = lambda seen: json.dumps({"reasoning": f"on {seen.text}"} | json.loads(state(seen)))
    rows = ask(reasoning=True).completions.to_dicts()
    assert {row["reasoning"] for row in rows} == {f"on {text}" for text in TEXTS}
    assert {max(soft(row).values()) for row in rows} == {0.9}
    assert {seen.body["max_tokens"] for seen in provider.requests} == {1024}
    system = provider.requests[0].body["messages"][0]["content"]
    assert '{"reasoning": "<reasoning>", "label"' in system
    assert "Reasoning: It names the refund.\nCategory: refund\n" in system


def test_a_schema_is_sent_if_the_provider_takes_one(ask: Ask, provider: FakeProvider) -> None:
    def answer(seen: ReceivedRequest) -> str:
        pairs = [{"label": find_label(seen.text), "probability": 0.8}, {"label": "login", "probability": 0.2}]
        return json.dumps({"reasoning": "r", "label": find_label(seen.text), "probabilities": pairs})

    provider.answer = answer
    rows = ask(("a refund please",), reasoning=True, response_format="json_schema").completions.to_dicts()
    assert soft(rows[0]) == {"refund": 0.8, "login": 0.2}
    sent = provider.requests[0].body["response_format"]["json_schema"]
    assert sent["strict"] is True
    assert list(sent["schema"]["properties"]) == ["reasoning", "label", "probabilities"]
    pair = sent["schema"]["properties"]["probabilities"]["items"]["properties"]
    assert pair["label"]["enum"] == LABELS
    provider.answer = lambda seen: '{"ranking": ["login"]}'
    ask(("the login",), soft_labels="ranking", response_format="json_schema")
    sent = provider.requests[-1].body["response_format"]["json_schema"]
    assert sent["schema"]["properties"] == {"ranking": {"type": "array", "items": {"type": "string", "enum": LABELS}}}


REFUND = {"refund": 0.9, "login": 0.1}
LISTED = [{"label": "refund", "probability": 0.9}, {"label": "login", "probability": 0.1}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"label": "refund", "probabilities": REFUND}),
        json.dumps({"Label": "Refund.", "Probabilities": {"REFUND": "90 %", "Login": "10 %"}}),
        json.dumps({"label": "refund", "probs": {"refund": 90, "login": 10, "nonsense": 0}}),
        json.dumps({"label": "refund", "probabilities": LISTED}),
        json.dumps({"label": "refund", "soft_labels": [["refund", 0.9], ["login", 0.1]]}),
        json.dumps({"probabilities": REFUND}),  # the likeliest is the label
        json.dumps({"reasoning": "money", **REFUND}),  # no field around them
        json.dumps(LISTED),
        json.dumps({"label": "refund", "probabilities": {"login": 0.9, "refund": 0.1}}),  # the label is the answer
        json.dumps({"label": "refund", "probabilities": {"refund": 0.45, "login": 0.05}} | {"probabilities": REFUND}),
        f"Here it is:\n```json\n{json.dumps({'label': 'refund', 'probabilities': REFUND}, indent=1)}\n```\nBye.",
        f"<think>login? {{'label': 'login'}}</think>{json.dumps({'label': 'refund', 'probabilities': REFUND})}",
        '{"label": "<category>", "probabilities": {"<category>": 0.9}}\n'
        + json.dumps({"label": "refund", "probabilities": REFUND}),  # it repeats the form first
    ],
)
def test_every_form_is_read(ask: Ask, provider: FakeProvider, text: str) -> None:
    row = read_one(ask, provider, text)
    assert (row["answer"], row["error"], soft(row)) == ('"refund"', None, REFUND)


def test_what_is_stated_badly_is_read_by_stated_rules(ask: Ask, provider: FakeProvider) -> None:
    row = read_one(ask, provider, '{"label": "refund", "probabilities": {"refund": 0.8}}')
    assert soft(row) == {"refund": 0.8, "delivery": 0.1, "login": 0.1}, "the rest is divided among the others"
    row = read_one(ask, provider, '{"label": "refund", "confidence": 0.8}')
    assert soft(row) == {"refund": 0.8, "delivery": 0.1, "login": 0.1}
    row = read_one(ask, provider, '{"label": "refund", "probabilities": {"refund": 0.9, "login": 0.6}}')
    assert soft(row) == {"refund": 0.6, "login": 0.4}, "scaled"
    row = read_one(ask, provider, '{"label": "login", "probabilities": {"refund": 0.5, "login": 0.5}}')
    assert (row["answer"], soft(row)) == ('"login"', {"login": 0.500001, "refund": 0.499999})


@pytest.mark.parametrize(
    ("text", "finish", "status", "error"),
    [
        ('{"label": "spam", "probabilities": {"spam": 1.0}}', None, "ok", "no label is named in 'spam'"),
        ('{"probabilities": {"spam": 1.0}}', None, "ok", "states no probabilities of a label of the task"),
        ('{"probabilities": {"refund": "likely"}}', None, "ok", "'likely' for 'refund'"),
        ('{"label": "refund", "probabilities": {"refund": 0.9, "lo', "length", "truncated", "cut at max_tokens"),
        ('{"label": "refund", "probabilities": {"refund": 0.9, "lo', None, "ok", "malformed"),
        ('{"label": "refund"} {"label": "login"}', None, "ok", SEVERAL),
        ("<think>hm", "length", "truncated", "still thinking"),
        ("I'm sorry, but I can't help with that.", None, "refused", "the teacher refused: I'm sorry"),
        ("something else", None, "ok", "no label is named"),
        ("", "content_filter", "filtered", None),
    ],
)
def test_answers_without_a_label_say_why(
    ask: Ask, provider: FakeProvider, text: str, finish: str | None, status: str, error: str | None
) -> None:
    provider.finish = finish
    row = read_one(ask, provider, text, reasks=0)
    assert (row["status"], row["answer"], row["soft_labels"]) == (status, None, None)
    assert row["error"] is None if error is None else error in row["error"]


def test_an_answer_without_probabilities_is_asked_for_again_and_kept_if_that_does_not_help(
    ask: Ask, provider: FakeProvider
) -> None:
    times: dict[str, int] = {}

    def answer(seen: ReceivedRequest) -> str:
        times[seen.text] = times.get(seen.text, 0) + 1
        return find_label(seen.text) if "refund" not in seen.text and times[seen.text] < 3 else state(seen)

    provider.answer = answer
    asked = ask(reasks=1)
    assert asked.usage.calls == 5
    by_answer = {row["answer"]: row for row in asked.completions.to_dicts()}
    assert by_answer['"refund"']["soft_labels"] is not None
    login = by_answer['"login"']
    assert (login["status"], login["soft_labels"], login["error"]) == ("ok", None, "the answer states no probabilities")
    task = Task.model_validate(TASK | {"teacher": {"model": "m", "soft_labels": "verbalized"}})
    candidates = choose_candidates(task, make_prompts(*TEXTS), asked.completions, build_uniform_prior(LABELS, 1))
    assert sorted(candidates["answer"]) == ['"delivery"', '"login"', '"refund"'], "the label counts as one vote"


def test_a_teacher_that_never_states_probabilities_fails_the_smoke_test(ask: Ask, provider: FakeProvider) -> None:
    provider.answer = lambda seen: "login"
    with pytest.raises(TeacherError, match=r"0 usable answers.*72 requests.*states no probabilities"):
        ask(tuple(f"the login number {n}" for n in range(80)), reasks=0)
    assert len(provider.requests) == 8
    provider.answer = lambda seen: '{"ranking": ["login"]}'
    with pytest.raises(TeacherError, match="smoke test"):
        ask(tuple(f"a login number {n}" for n in range(80)), reasks=0)
    assert ask(tuple(f"my login number {n}" for n in range(80)), soft_labels="ranking").usage.calls == 80
    with pytest.raises(TeacherError, match="smoke test"):  # what it passed with ranks says nothing of probabilities
        ask(tuple(f"their login number {n}" for n in range(80)), reasks=0)


def test_teachers_of_one_task_may_be_asked_differently(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.answer = lambda seen: (
        state(seen) if "JSON" in seen.body["messages"][0]["content"] else find_label(seen.text)
    )
    base = {"model": "openai/fake", "api": "chat", "api_base": provider.url, "min_success": 0.0}
    teachers = {"plain": base, "stated": base | {"soft_labels": "verbalized", "response_format": "prompt"}}
    folder = write_small_task(tmp_path, teacher=None, teachers=teachers, cascade={"min_confidence": 0.95})
    own = folder.path / "templates"
    own.mkdir()
    for name in ("classification_system", "classification_stated_system"):
        (own / f"{name}.j2").write_text("Mine. {{ format }}" if "stated" in name else "Mine.")
    folder = reload_folder(folder)
    assert [p for p in check_task_folder(folder) if p.severity == "error" and "templates" in str(p.file)] == []
    table = make_prompts(*TEXTS)
    for name, view in folder.task.list_teachers():
        names = get_template_names(view.kind, view.reasoning, view.teacher.has_stated_soft_labels)
        endpoint = resolve_endpoint(view.teacher)
        builder = RequestBuilder(view, Templates(folder.read_templates(), names), [], endpoint)
        rows = run_ask(Asker(builder, store, name=name), table).completions
        assert [row["soft_labels"] is not None for row in rows.to_dicts()] == [name == "stated"] * rows.height
        unsure = find_unsure_prompts(view, folder.task.cascade or CascadeSpec(), table, rows)
        assert unsure.height == (3 if name == "stated" else 0), "what it states is how sure it is"


_WORDS = st.sampled_from([*LABELS, "spam", "label", "probabilities", "ranking", "reasoning", "rank", "1"])
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _WORDS | st.text(max_size=5)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4))


@given(value=_VALUES, soft_labels=st.sampled_from(["verbalized", "ranking"]), cut=st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_answer_costs_more_than_its_row(value: Any, soft_labels: str, cut: bool) -> None:
    task = Task.model_validate(TASK | {"teacher": {"model": "openai/m", "soft_labels": soft_labels}})
    asker = StatedLabelAsker(task, Templates({}, get_template_names(task.kind, False, True)), Endpoint("m", "m"))
    text = json.dumps(value)
    response = replace(build_filtered_response(""), text=text, finish_reason="length" if cut else "stop")
    row = asker.read_response(response)
    if row["soft_labels"] is not None:
        shares = {entry["label"]: entry["prob"] for entry in row["soft_labels"]}
        assert set(shares) <= set(LABELS)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=lambda label: shares[label]) == json.loads(row["answer"])
    assert (row["answer"] is None) <= (row["error"] is not None)


def test_samples_and_draws_are_averaged(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    shares = iter([0.9, 0.7, 0.4, 0.8])

    def answer(seen: ReceivedRequest) -> str:
        share = next(shares)
        label = "refund" if share > 0.5 else "login"
        stated = {"refund": share, "login": round(1 - share, 2)}
        return json.dumps({"reasoning": f"for {label}", "label": label, "probabilities": stated})

    provider.answer = answer
    sampled = {"samples": 2, "temperature": 0.7, "few_shot": {"draws": 2}, "concurrency": 1}
    for reasoning in (False, True):
        folder = write_task(tmp_path / str(reasoning), provider.url, reasoning, **sampled)
        table = make_prompts("a refund please")
        asked = run_ask(build_asker(folder, store), table).completions
        assert asked.height == 4
        candidate = choose_candidates(folder.task, table, asked, build_uniform_prior(LABELS, 4)).to_dicts()[0]
        assert (candidate["answer"], candidate["agreement"]) == ('"refund"', 0.75)
        assert candidate["confidence"] == pytest.approx(0.7, abs=1e-4)
        assert soft(candidate)["login"] == pytest.approx(0.3, abs=1e-4)
        assert candidate["reasoning"] == "for refund"
        shares = iter([0.4, 0.9, 0.7, 0.8])


def test_ranks_have_stated_weights(ask: Ask, provider: FakeProvider) -> None:
    for stated in (
        {"ranking": ["login", "refund", "delivery"]},
        {"ranking": ["Login", "spam", "login", "refund"]},
        {"ranking": [{"rank": 2, "label": "refund"}, {"rank": 1, "label": "login"}]},
        {"ranking": {"1": "login", "2": "refund"}},
        ["login", "refund"],
        {"label": ["login", "refund"]},
        {"label": "login", "ranking": ["refund", "login"]},  # the label is the answer
    ):
        row = read_one(ask, provider, json.dumps(stated), soft_labels="ranking", ranking_weights=[0.7, 0.2])
        assert (row["answer"], soft(row)) == ('"login"', {"login": 0.7, "refund": 0.2, "delivery": 0.1})
    system = provider.requests[0].body["messages"][0]["content"]
    assert "at most 2" in system
    assert '{"ranking": ["<category>", "<next category>"]}' in system


@pytest.mark.parametrize(
    ("stated", "error"),
    [({"ranking": ["spam"]}, "names no label"), ({"ranking": 3}, "no list of labels"), ({"ranking": []}, "no list")],
)
def test_a_ranking_of_other_things_is_no_answer(
    ask: Ask, provider: FakeProvider, stated: dict[str, Any], error: str
) -> None:
    row = read_one(ask, provider, json.dumps(stated), soft_labels="ranking")
    assert row["answer"] is None
    assert error in row["error"]


def test_other_weights_ask_nothing_again(ask: Ask, provider: FakeProvider) -> None:
    provider.answer = lambda seen: json.dumps({"ranking": [find_label(seen.text)]})
    first = ask(soft_labels="ranking", ranking_weights=[0.8])
    again = ask(soft_labels="ranking", ranking_weights=[0.6])
    assert (again.usage.calls, again.usage.cached) == (0, 3)
    assert {max(soft(row).values()) for row in first.completions.to_dicts()} == {0.8}
    assert {max(soft(row).values()) for row in again.completions.to_dicts()} == {0.6}


def test_the_prior_is_the_mean_of_what_is_stated(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    folder = write_task(tmp_path, provider.url, calibration="examples")
    provider.answer = lambda seen: '{"label": "refund", "probabilities": {"refund": 0.8, "login": 0.2}}'
    asked = run_ask(build_asker(folder, store), make_prompts(*TEXTS)).completions
    prior = estimate_vote_prior(asked, LABELS, 1)
    assert prior.schema == TEACHER_PRIOR
    found = dict(prior.select("label", "prob").iter_rows())
    assert found == pytest.approx({"refund": (1 + 2.4) / 6, "login": (1 + 0.6) / 6, "delivery": 1 / 6})
    candidate = choose_candidates(folder.task, make_prompts(TEXTS[0]), asked, prior).to_dicts()[0]
    weights = {label: share / found[label] for label, share in {"refund": 0.8, "login": 0.2}.items()}
    assert candidate["confidence"] == pytest.approx(weights["refund"] / sum(weights.values()), abs=1e-4)


def test_batches_state_them_too(tmp_path: Path, store: CompletionStore) -> None:
    with BatchProvider(LABELS) as provider:
        provider.answer = state
        folder = write_task(tmp_path, provider.url, mode="batch", batch={"poll_s": 0.05})
        asked = run_ask(build_asker(folder, store), make_prompts(*TEXTS))
    assert set(asked.completions["mode"]) == {"batch"}
    assert {max(soft(row).values()) for row in asked.completions.to_dicts()} == {0.9}
    assert len(provider.batches) == 1


def test_a_recording_of_such_answers_is_replayed(tmp_path: Path, store: CompletionStore) -> None:
    recorded = {"soft_labels": "verbalized", "model": "replay/logs", "response_format": None, "max_retries": None}
    folder = write_small_task(tmp_path, teacher=VERBALIZED | recorded)
    (folder.path / "recorded").mkdir()
    body = {"choices": [{"message": {"content": json.dumps({"label": "refund", "probabilities": REFUND})}}]}
    rows: list[dict[str, Any]] = [
        {"request": {"messages": [{"role": "user", "content": "I want a refund"}]}, "response": body},
        {"text": "login asks twice", "label": "login", "probs": {"login": 0.7, "refund": 0.3}},
    ]
    (folder.path / "recorded" / "logs.jsonl").write_text(jsonl(rows))
    env = build_stage_context(reload_folder(folder), tmp_path / "home")
    prompts.make_prompt_context(env, None)
    prompts.make_seed_prompts(env, "shop")
    pass_gate(env)
    stage.make_teacher_completions(env, "shop")
    frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
    env.store.close()
    found = {json.loads(row["answer"]): soft(row) for row in frame.to_dicts() if row["answer"]}
    assert found == {"refund": REFUND, "login": {"login": 0.7, "refund": 0.3}}


def test_the_estimate_counts_these_requests(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    provider.answer = state
    folder = write_task(tmp_path, provider.url, price={"input_usd": 2.0, "output_usd": 8.0})
    [shop, _] = estimate_requests(folder, store, ["shop", "web"], lambda _: None)
    table = build_seed_prompts("shop", folder.read_slice("shop"))
    asked = run_ask(build_asker(folder, store), table).completions
    assert (shop.calls, asked.height) == (3, 3)
    assert asked.select("prompt_tokens", "completion_tokens").sum_horizontal().sum() <= shop.tokens
    assert shop.usd is not None
    assert 0 < asked["cost_usd"].sum() <= shop.usd
    [after, _] = estimate_requests(folder, store, ["shop", "web"], lambda _: None)
    assert (after.calls, after.cached) == (0, 3)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"soft_labels": "verbalized", "api": "text"}, "needs `api: chat`"),
        ({"soft_labels": "ranking", "api": "text"}, "needs `api: chat`"),
        ({"ranking_weights": [0.9]}, "ranking_weights is for"),
        ({"soft_labels": "ranking", "ranking_weights": [0.1, 0.9]}, "must not increase"),
        ({"soft_labels": "ranking", "ranking_weights": [0.9, 0.9]}, "not be above 1"),
        ({"soft_labels": "ranking", "ranking_weights": []}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task.model_validate(TASK | {"teacher": {"model": "openai/m"} | teacher})


@pytest.mark.parametrize("soft_labels", ["verbalized", "ranking"])
def test_kinds_without_labels_have_nothing_to_state(soft_labels: str) -> None:
    teacher = {"model": "openai/m", "soft_labels": soft_labels}
    with pytest.raises(ValueError, match="needs a kind with labels"):
        Task.model_validate(TASK | {"kind": "qa", "labels": [], "teacher": teacher})


def test_an_own_template_replaces_the_built_in_one(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore
) -> None:
    provider.answer = state
    folder = write_task(tmp_path, provider.url)
    own = folder.path / "templates"
    own.mkdir()
    (own / "classification_stated_system.j2").write_text("Mine. {{ format }}")
    assert [p for p in check_task_folder(reload_folder(folder)) if p.severity == "error"] == []
    run_ask(build_asker(reload_folder(folder), store), make_prompts("the login"))
    assert provider.requests[0].body["messages"][0]["content"].startswith("Mine. Answer with one JSON object")
    (own / "classification_system.j2").write_text("{{ text }}")
    [problem] = [p for p in check_task_folder(reload_folder(folder)) if p.severity == "error"]
    assert "not the name of a template" in problem.message
