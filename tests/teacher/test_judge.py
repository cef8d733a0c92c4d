"""The judge: what it sees, what is stored, and what happens when it fails."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import TeacherError, TermsError
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.retry_backoff import explain_wait
from distill_dagster.pipeline.stage_table import REJECTED_ROWS
from distill_dagster.pipeline.stages import dataset, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageResult
from distill_dagster.prompts.templates import JUDGE_TEMPLATES, select_templates
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import REJECTED, SCORED
from distill_dagster.teacher.completions import engine
from distill_dagster.teacher.completions.ledger import NO_CAP
from distill_dagster.teacher.imagine.plan import get_imagine_teacher
from distill_dagster.teacher.judge.best_of import apply_choices, find_differing_answers
from distill_dagster.teacher.judge.requests import (
    Judge,
    build_score_model,
    count_judge_requests,
    get_judge_teacher,
    make_strict_schema,
)
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from distill_dagster.teacher.providers.client import resolve_endpoint
from tests.support.imagining import answer_as_teacher as answers
from tests.support.imagining import build_judge_answer, get_request_text, is_judge_request
from tests.support.kinds import build_task
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS, build_stage_context, pass_gate, reload_folder, write_small_task

RUBRIC = [
    {"name": "correct", "description": "the category fits"},
    {"name": "only_one", "description": "no other category fits as well"},
]
JUDGE_SPEC: dict[str, Any] = {"model": "openai/judge", "rubric": RUBRIC, "max_retries": 0}
JUDGE_SPEC["response_format"] = "json_schema"
STAGES: dict[str, Callable[[StageContext, str | None], StageResult]] = {
    "prompt_context": prompts.make_prompt_context,
    "seed_prompts": prompts.make_seed_prompts,
    "teacher_prior": teacher.make_teacher_prior,
    "teacher_completions": teacher.make_teacher_completions,
    "scored_completions": scores.make_scored_completions,
    "filtered_dataset": dataset.make_filtered_dataset,
}


class Run:
    """A task with one slice of three prompts, made stage by stage."""

    def __init__(self, root: Path, provider: FakeProvider, **changes: Any) -> None:
        settings: dict[str, Any] = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "max_retries": 0}
        filters = {"min_rows": 1, "validation_share": 0, "mix_examples": False}
        defaults: dict[str, Any] = {"teacher": settings, "curation": filters}
        folder = write_small_task(root, **defaults | changes)
        (folder.path / "slices" / "web.yaml").unlink()
        self.env, self.provider = build_stage_context(folder, root / "home"), provider
        self.caps: dict[str, BudgetSpec] = {}
        """Caps of the campaign by stage."""

    def change(self, old: str, new: str) -> None:
        path = self.env.folder.path / "task.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def now(self) -> TaskState:
        return TaskState(reload_folder(self.env.folder), self.env.lake)

    def update(self) -> list[str]:
        """Make what is not fresh, in order; the names of what was made."""
        made = []
        pass_gate(self.env)
        for asset, make in STAGES.items():
            partition = "shop" if self.now().stages[asset].partition else None
            if self.now().get_status(asset, partition).state != "fresh":
                changes = {
                    "folder": reload_folder(self.env.folder),
                    "campaign": asset,
                    "cap": self.caps.get(asset, NO_CAP),
                }
                make(StageContext(**(vars(self.env) | changes)), partition)
                made.append(format_artifact_name(asset, partition))
        return made

    def scored(self) -> dict[str, dict[str, Any]]:
        frame = self.env.lake.read(self.env.task_name, "scored_completions", "shop", SCORED)[0]
        return {get_user_text(row["messages"]): row for row in frame.to_dicts()}

    def judging(self) -> list[ReceivedRequest]:
        return [seen for seen in self.provider.requests if is_judge_request(seen)]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations and pictures take most of the time; other tests have them."""
    for module in (teacher, dataset):
        monkeypatch.setattr(module, "check_table", lambda *_: CheckResult("valid_table", True))
    monkeypatch.setattr(plots, "plot_counts", lambda *_: b"")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS, answer=answer) as provider:
        yield provider


def answer(seen: ReceivedRequest) -> str:
    if not is_judge_request(seen):
        return answers(seen)
    return json.dumps(build_judge_answer(correct=2 if "broken" in get_request_text(seen) else 5, only_one=4))


def judging(provider: FakeProvider, **changes: Any) -> dict[str, Any]:
    return {"judge": JUDGE_SPEC | {"api_base": provider.url} | changes}


def test_scores_and_reasons_are_columns_of_the_candidate(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    run.update()
    rows = run.scored()
    assert {text: row["judge_score"] for text, row in rows.items()} == {
        "I want a refund": 0.875, "a delivery arrived broken": 0.5, "login asks twice": 0.875
    }  # fmt: skip
    row = rows["a delivery arrived broken"]
    assert json.loads(row["judge_scores"]) == {"correct": 2, "only_one": 4}
    assert json.loads(row["judge_reasons"])["correct"] == "because of correct"
    assert (row["judge"], row["judge_error"], row["answer"]) == ("openai/judge", None, '"delivery"')
    record = run.env.lake.read_record(run.env.task_name, "scored_completions", "shop")
    assert record is not None
    assert (record.extra["teacher_calls"], record.missing_rows) == (3, 0)
    assert len(run.judging()) == 3
    assert run.update() == []


def test_the_judge_sees_the_prompt_the_answer_and_the_rubric(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, description="Sort messages.", **judging(provider))
    run.update()
    [seen] = [seen for seen in run.judging() if "login asks twice" in get_request_text(seen)]
    text = get_request_text(seen)
    assert "<<<\nlogin asks twice\n>>>" in text
    assert "<<<\nlogin\n>>>" in text
    assert "- only_one: no other category fits as well" in text
    assert "- refund: is about refund" in text
    assert not re.search(r"\bshop\b", text), "the name of a slice, or of the task"
    assert seen.body["model"] == "judge"
    schema = seen.body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["correct", "only_one"]
    assert (seen.body["temperature"], seen.body["max_tokens"]) == (0.0, 1000)


def test_a_changed_rubric_asks_only_the_judge(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    run.update()
    before = len(provider.requests)
    run.change("the category fits", "the category is right")
    assert run.update() == ["scored_completions[shop]"], "the same scores: nothing after it runs"
    assert all(is_judge_request(seen) for seen in provider.requests[before:])
    assert len(provider.requests) == before + 3
    run.change("the category is right", "the category fits")
    assert run.update() == ["scored_completions[shop]"]
    assert len(provider.requests) == before + 3, "answered by the store"
    # Address and limits change nothing.
    run.change("  model: openai/judge", "  model: openai/judge\n  timeout_s: 7")
    assert run.update() == []


def test_adding_and_removing_a_judge_scores_again(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider)
    run.update()
    assert "judge_settings" not in run.now().stages["scored_completions"].upstream
    before = run.env.lake.read_record(run.env.task_name, "scored_completions", "shop")
    assert run.scored()["I want a refund"]["judge_score"] is None

    task = run.env.folder.path / "task.yaml"
    part = json.dumps(judging(provider)["judge"])
    task.write_text(f"{task.read_text()}judge: {part}\n")
    assert run.now().get_status("scored_completions", "shop").why == ("judge_settings is new",)
    assert run.update() == ["scored_completions[shop]", "filtered_dataset"]
    task.write_text(task.read_text().replace(f"judge: {part}\n", ""))
    assert run.update() == ["scored_completions[shop]", "filtered_dataset"]
    after = run.env.lake.read_record(run.env.task_name, "scored_completions", "shop")
    assert before is not None
    assert after is not None
    assert after.data_version == before.data_version


def test_a_changed_threshold_rebuilds_only_the_dataset(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    run.update()
    before = len(provider.requests)
    run.change("min_rows: 1", "min_rows: 1\n  filters:\n    min_judge: 0.6")
    assert run.update() == ["filtered_dataset"]
    rejected_rows = run.env.lake.read(run.env.task_name, "filtered_dataset", REJECTED_ROWS, REJECTED)[0]
    [rejected] = rejected_rows.to_dicts()
    assert (rejected["drop_reason"], rejected["drop_detail"]) == ("low_judge", "judge score 0.5")
    assert len(provider.requests) == before


ODD_BODY = '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}'


@pytest.mark.parametrize(
    ("fault", "says"),
    [(Fault(500), "HTTP 500"), (Fault(200, ODD_BODY), "content is a number"), (Fault(200, "[]"), "contains no answer")],
)
def test_a_failed_request_is_asked_for_next_time(
    tmp_path: Path, provider: FakeProvider, fault: Fault, says: str
) -> None:
    run = Run(tmp_path, provider, **judging(provider, min_success=0.5))
    provider.fail = lambda seen, _: fault if is_judge_request(seen) and "asks twice" in get_request_text(seen) else None
    run.update()
    row = run.scored()["login asks twice"]
    assert (row["judge_score"], row["judge_scores"]) == (None, None)
    assert says in row["judge_error"]
    assert run.now().get_status("scored_completions", "shop").why == ("1 row has no answer yet",)
    provider.fail = None
    before = len(provider.requests)
    assert run.update() == ["scored_completions[shop]", "filtered_dataset"]
    assert len(provider.requests) == before + 1
    assert run.scored()["login asks twice"]["judge_score"] == 0.875


def test_a_budget_stop_keeps_the_scores_and_the_rest_waits_for_a_higher_cap(
    tmp_path: Path, provider: FakeProvider
) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    run.update()
    slice_file = run.env.folder.path / "slices" / "shop.yaml"
    slice_file.write_text(slice_file.read_text() + "- refund the lamp\n- login on a lamp\n- delivery of a lamp\n")
    run.caps["scored_completions"] = BudgetSpec(tokens=0)
    judged_before = len(run.judging())
    run.update()
    scores = {text: row["judge_score"] for text, row in run.scored().items()}
    assert scores == {
        "I want a refund": 0.875,
        "a delivery arrived broken": 0.5,
        "login asks twice": 0.875,
        "refund the lamp": None,
        "login on a lamp": None,
        "delivery of a lamp": None,
    }, "half of the rows is far below judge.min_success, and no failure"
    assert len(run.judging()) == judged_before
    record = run.env.lake.read_record(run.env.task_name, "scored_completions", "shop")
    assert record is not None
    assert record.missing_rows == 3
    assert record.extra["missing"]["budget"]["tokens"] == 0
    waiting = explain_wait(record, BudgetSpec(tokens=0), time.time())
    assert waiting == "3 rows wait for a higher budget, in task.yaml or for this command"
    assert explain_wait(record, BudgetSpec(tokens=10), time.time()) is None

    run.caps.clear()
    assert run.update() == ["scored_completions[shop]", "filtered_dataset"]
    assert len(run.judging()) == judged_before + 3
    assert run.scored()["refund the lamp"]["judge_score"] == 0.875


def test_a_pause_of_the_judge_is_no_failure_and_keeps_the_scores(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    provider.fail = lambda seen, _: (
        Fault(429, retry_after="9000") if is_judge_request(seen) and "asks twice" in get_request_text(seen) else None
    )
    with pytest.raises(TeacherPausedError, match="openai/judge asks to wait until"):
        run.update()
    assert run.env.lake.read_record(run.env.task_name, "scored_completions", "shop") is None
    asked = len(run.judging())
    assert asked <= 3
    provider.fail = None
    monkeypatch.setattr(engine, "_limits_by_teacher", {})  # the pause is over
    run.update()
    assert len(run.judging()) == 3 + 1, "each once, and the refused one again"
    assert run.scored()["login asks twice"]["judge_score"] == 0.875


def test_too_few_scores_fail_the_stage(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, **judging(provider))
    provider.fail = lambda seen, _: (
        Fault(500) if is_judge_request(seen) and "asks twice" in get_request_text(seen) else None
    )
    with pytest.raises(TeacherError, match=r"Only 67% of 3 rows have an answer from openai/judge; judge\.min"):
        run.update()
    assert run.env.lake.read_record(run.env.task_name, "scored_completions", "shop") is None


BAD = {
    "no JSON": "It is fine.",
    "a criterion is missing": json.dumps(build_judge_answer(correct=5)),
    "out of range": json.dumps(build_judge_answer(correct=6, only_one=1)),
    "not a whole number": json.dumps({"correct": {"reason": "", "score": 4.5}, "only_one": {"reason": "", "score": 1}}),
    "no reason": json.dumps({"correct": {"score": 4}, "only_one": {"score": 4}}),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_answer_that_does_not_fit_the_form_is_asked_for_once_more(
    tmp_path: Path, provider: FakeProvider, bad: str
) -> None:
    run = Run(tmp_path, provider, **judging(provider, temperature=0.5))
    # The first sample of one row is bad, both of another one.
    provider.answer = lambda seen: (
        BAD[bad]
        if is_judge_request(seen)
        and ("broken" in get_request_text(seen) or ("refund\n>>>" in get_request_text(seen) and not seen.body["seed"]))
        else answer(seen)
    )
    run.update()
    assert len(run.judging()) == 5
    rows = run.scored()
    assert rows["I want a refund"]["judge_score"] == 0.875
    assert rows["a delivery arrived broken"]["judge_error"] == "2 answers of the judge do not fit the declared form"
    assert run.update() == [], "both answers are stored: asking again would return the same"


def test_scores_between_other_words_are_read(tmp_path: Path, provider: FakeProvider) -> None:
    run = Run(tmp_path, provider, **judging(provider, response_format="prompt"))
    provider.answer = lambda seen: (
        f"Let me see.\n```json\n{answer(seen)}\n```" if is_judge_request(seen) else answer(seen)
    )
    run.update()
    assert run.scored()["I want a refund"]["judge_score"] == 0.875
    assert "response_format" not in run.judging()[0].body


def samples(seen: ReceivedRequest) -> str:
    """The first of two draws answers login, the second the label in the text, which the judge prefers."""
    if not is_judge_request(seen):
        return answers(seen) if seen.body["seed"] else "login"
    text = get_request_text(seen)
    named = next(label for label in LABELS if label in text.partition("<<<")[2].partition(">>>")[0])
    options = re.findall(r"Answer (\d):\n<<<\n(\w+)\n>>>", text)
    return json.dumps({"reason": "it says so", "best": next(int(n) for n, option in options if option == named)})


def test_the_best_of_differing_samples_becomes_the_candidate(tmp_path: Path, provider: FakeProvider) -> None:
    provider.answer = samples
    settings = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "temperature": 0.7, "max_retries": 0}
    run = Run(tmp_path, provider, teacher=settings, **judging(provider, mode="best_of"))
    run.update()
    rows = run.scored()
    assert {text: row["answer"] for text, row in rows.items()} == {
        "I want a refund": '"refund"', "a delivery arrived broken": '"delivery"', "login asks twice": '"login"'
    }  # fmt: skip
    assert len(run.judging()) == 2, "no request where the samples agree"
    row = rows["a delivery arrived broken"]
    assert (row["agreement"], row["confidence"], row["judge_score"]) == (0.5, 0.5, None)
    assert json.loads(row["judge_reasons"]) == {"best": "it says so"}
    assert rows["login asks twice"]["judge"] is None
    assert "Answer 2:" in get_request_text(run.judging()[0])
    assert run.update() == []


def test_an_answer_without_labels_can_be_chosen(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}}
    judge_spec = JUDGE_SPEC | {"mode": "best_of", "api_base": "http://127.0.0.1:9"}
    changes: dict[str, Any] = {"kind": "extraction", "labels": None, "answer_schema": schema, "judge": judge_spec}
    causal = {"tiny": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}}
    teacher_ = {"api": "chat", "soft_labels": "votes"}
    task = write_small_task(tmp_path, **changes, teacher=teacher_, students=causal).task
    samples_ = [("p", n, "ok", text, f"r{n}", f"t{n}") for n, text in enumerate(['{"total":7}', '{"total":8}'])]
    columns = ["prompt_id", "sample_index", "status", "answer", "reasoning", "teacher"]
    completions = pl.DataFrame(samples_, schema=columns, orient="row")
    row: dict[str, Any] = dict.fromkeys(SCORED) | {"prompt_id": "p", "answer": '{"total":7}', "agreement": 0.5}
    row |= {"teacher": "t0", "teacher_agreement": 0.5}
    row |= {"soft_labels": [{"label": '{"total": 7}', "prob": 0.6}, {"label": '{"total": 8}', "prob": 0.4}]}
    picked = apply_choices(
        get_kind(task), pl.DataFrame([row], schema=SCORED), completions, {"p": '{"total":8}'}
    ).to_dicts()[0]
    assert (picked["answer"], picked["confidence"], picked["reasoning"]) == ('{"total":8}', 0.4, "r1")
    assert (picked["teacher"], picked["teacher_agreement"]) == ("t1", 0.5)


def test_count_judge_requests(tmp_path: Path) -> None:
    def needed(name: str, mode: str | None, **teacher_: Any) -> tuple[int, int]:
        judge_spec = JUDGE_SPEC | {"mode": mode} if mode else None
        return count_judge_requests(write_small_task(tmp_path / name, judge=judge_spec, teacher=teacher_).task, 10)

    assert needed("none", None) == (0, 0)
    assert needed("score", "score") == (10, 20)
    assert needed("best", "best_of") == (0, 20)
    assert needed("one", "best_of", few_shot={"draws": 1}) == (0, 0)


def samples_of(rows: Sequence[tuple[str, int, str, str | None]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=["prompt_id", "sample_index", "status", "answer"], orient="row")
    return table.with_columns(pl.lit(None, pl.String).alias("reasoning"), pl.lit("t").alias("teacher"))


def test_equal_answers_of_the_kind_are_one_option(tmp_path: Path) -> None:
    """A number within the tolerance, and a text that differs in case and articles: no request compares those."""
    math = build_task("math", answer={"tolerance": 0.01}, judge=JUDGE_SPEC | {"mode": "best_of"})
    rows = [("same", n, "ok", text) for n, text in enumerate(["18", "18.001", "18"])]
    rows += [("two", n, "ok", text) for n, text in enumerate(["18", "19", "18.001", "19"])]
    found = find_differing_answers(get_kind(math), samples_of(rows))
    assert {id_: set(options) for id_, options in found.items()} == {"two": {"18", "19"}}
    qa = [("p", n, "ok", json.dumps(text)) for n, text in enumerate(["The Nile", "nile", "the Rhine"])]
    assert set(find_differing_answers(get_kind(build_task("qa")), samples_of(qa))["p"]) == {'"The Nile"', '"the Rhine"'}

    row: dict[str, Any] = dict.fromkeys(SCORED) | {"prompt_id": "two", "answer": "18.001", "agreement": 0.5}
    frame = pl.DataFrame([row | {"teacher": "t"}], schema=SCORED)
    kind = get_kind(math)
    same = apply_choices(kind, frame, samples_of(rows), {"two": "18"}).to_dicts()[0]
    assert same["answer"] == "18.001", "the choice equals the candidate"
    other = apply_choices(kind, frame, samples_of(rows), {"two": "19"}).to_dicts()[0]
    assert (other["answer"], other["agreement"]) == ("19", 0.5)
    back = apply_choices(kind, frame.with_columns(pl.lit("19").alias("answer")), samples_of(rows), {"two": "18"})
    assert (back["answer"][0], back["agreement"][0]) == ("18", 0.5), "both spellings count"


def test_the_order_of_options_does_not_depend_on_the_samples(tmp_path: Path) -> None:
    rows: list[tuple[str, int, str, str | None]]
    rows = [(f"p{n}", sample, "ok", f'"{label}"') for n in range(40) for sample, label in enumerate(("a", "b", "b"))]
    rows += [("same", 0, "ok", '"a"'), ("same", 1, "ok", '"a"'), ("failed", 0, "failed", None)]
    found = find_differing_answers(get_kind(write_small_task(tmp_path).task), samples_of(rows))
    assert len(found) == 40
    first = [answers_[0] for answers_ in found.values()]
    assert 10 < first.count('"a"') < 30
    assert all(sorted(answers_) == ['"a"', '"b"'] for answers_ in found.values())


def test_the_schema_fits_strict_mode(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, judge=JUDGE_SPEC | {"api_base": "http://127.0.0.1:9"})
    task = folder.task
    assert task.judge is not None
    schema = make_strict_schema(build_score_model(task.judge, None).model_json_schema())
    [one] = schema["$defs"].values()
    assert one["properties"]["score"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert one["additionalProperties"] is schema["additionalProperties"] is False
    assert make_strict_schema(build_score_model(task.judge, 3).model_json_schema())["properties"]["best"]["enum"] == [
        1,
        2,
        3,
    ]


def test_conversations_and_objects_are_shown_as_text(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, judge=JUDGE_SPEC | {"api_base": "http://127.0.0.1:9"})
    judge = Judge(folder.task, select_templates({}, JUDGE_TEMPLATES), "identity")
    turns = [{"role": role, "content": f"says {role}"} for role in ("user", "assistant", "user")]
    row = {"messages": turns, "answer": '{"total":7}', "reasoning": "3 and 4"}
    request = judge.build_request(row)
    assert request.messages is not None
    text = request.messages[0]["content"]
    assert "User: says user\nAssistant: says assistant\nUser: says user" in text
    assert '<<<\n{"total": 7}\n>>>' in text
    assert "<<<\n3 and 4\n>>>" in text
    assert judge.build_request(row).key != judge.build_request(row, None, 1).key


@pytest.mark.parametrize("part", ["judge", "imagine"])
def test_judge_and_imaginer_have_their_own_price_limits_and_terms(tmp_path: Path, part: str) -> None:
    price = {"input_usd": 1.0, "output_usd": 2.0}
    asked: dict[str, Any] = {"model": "openai/gpt-4o-mini", "api_key_env": "HOME", "price": price}
    asked |= {"requests_per_minute": 7, "tokens_per_minute": 900}

    def spec(name: str, **more: Any) -> Any:
        parts: dict[str, Any] = {"judge": {"rubric": RUBRIC} | asked | more, "imagine": {"teacher": asked | more}}
        task = write_small_task(tmp_path / name, **{part: parts[part]}).task
        return get_judge_teacher(task) if part == "judge" else get_imagine_teacher(task)

    plain = spec("plain")
    assert (plain.price.output_usd, plain.requests_per_minute, plain.tokens_per_minute) == (2.0, 7, 900)
    with pytest.raises(TermsError, match="Nothing was asked"):
        resolve_endpoint(plain)
    assert resolve_endpoint(spec("acknowledged", terms={"acknowledged": True})).model == "openai/gpt-4o-mini"


@pytest.mark.parametrize(
    ("before", "score"),
    [
        ("<think>Perhaps {draft}</think>\n", 0.75),
        ("Perhaps {draft}</think>", 0.75),
        ("[THINK]{draft}[/THINK]", 0.75),
        ("<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>", 0.75),
        ("Here it is, with a comma too many:\n", 0.75),
        ("<think>{draft} so ", None),
    ],
)
def test_a_judges_thinking_is_no_score(before: str, score: float | None) -> None:
    rubric = [{"name": "correct", "description": "the answer is right"}]
    judge = Judge(build_task("qa", judge={"model": "openai/judge", "rubric": rubric}), {}, "j")
    draft = json.dumps({"correct": {"reason": "A draft.", "score": 1}})
    text = before.replace("{draft}", draft) + '{"correct": {"reason": "It is right.", "score": 4,},}'
    found = judge.read_score(text, None)
    assert (found.mean_score if found else None) == score
