"""The replay teacher, through the stage that asks every other one."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from distill_dagster.config import ReplaySpec, Task, TeacherSpec
from distill_dagster.core.errors import InputError, TeacherError
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.curation.candidates.priors import build_uniform_prior
from distill_dagster.intake.recordings import Recording, parse_recordings, read_recordings
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stages import prompts
from distill_dagster.pipeline.stages import teacher as stage
from distill_dagster.pipeline.stages.context import StageContext, StageResult
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.schemas import COMPLETIONS
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.estimate import estimate_requests
from distill_dagster.teacher.providers.replay import NOT_RECORDED
from tests.support.task import build_stage_context, jsonl, pass_gate, reload_folder, write_small_task

SHOP = {"I want a refund": "refund", "a delivery arrived broken": "delivery", "login asks twice": "login"}
TEACHER: dict[str, Any] = {
    "model": "replay/logs",
    "api": "chat",
    "soft_labels": "votes",
    "min_success": 0.0,
    "few_shot": {"per_label": 1, "draws": 2},
}


def plain(text: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "completion": completion, **more}


VERSION_BEFORE_SOFT_LABELS = "429eb2fb464446b955cf6a33b6d051d8a7af1137e07f619eb11a1b6b73c4a7f4"


class Home:
    """A task whose teacher is a recording, and its stages from prompts to completions."""

    def __init__(self, tmp_path: Path, **teacher: Any) -> None:
        folder = write_small_task(tmp_path, teacher=TEACHER | teacher)
        self.folder = TaskFolder(folder.path, tmp_path / "accepted" / folder.name)
        self.env = build_stage_context(self.folder, tmp_path / "home")

    def record(self, rows: list[dict[str, Any]], name: str = "recorded/logs.jsonl") -> None:
        path = self.folder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(jsonl(rows))

    def completions(self, slice_: str = "shop") -> tuple[pl.DataFrame, StageResult]:
        env: StageContext = replace(self.env, folder=TaskFolder(self.folder.path, self.folder.accepted))
        prompts.make_prompt_context(env, None)
        prompts.make_seed_prompts(env, slice_)
        pass_gate(env)
        made = stage.make_teacher_completions(env, slice_)
        frame, _ = env.lake.read(env.task_name, "teacher_completions", slice_, COMPLETIONS)
        return frame, made

    def answers(self, slice_: str = "shop") -> dict[str, list[str | None]]:
        """The answers by prompt text."""
        frame, _ = self.completions(slice_)
        prompts = build_seed_prompts(slice_, reload_folder(self.folder).read_slice(slice_))
        texts = {row["prompt_id"]: row["messages"][0]["content"] for row in prompts.iter_rows(named=True)}
        out: dict[str, list[str | None]] = {}
        for row in frame.sort("prompt_id", "sample_index").iter_rows(named=True):
            out.setdefault(texts[row["prompt_id"]], []).append(json.loads(row["answer"]) if row["answer"] else None)
        return out


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.env.store.close()


def test_recorded_completions_are_the_answers_and_nothing_is_sent(home: Home) -> None:
    home.record([plain(text.upper(), f" {label}.", cost_usd=0.25, model="m-1") for text, label in SHOP.items()])
    frame, made = home.completions()
    assert home.answers() == {text: [label] for text, label in SHOP.items()}
    assert set(frame["mode"]) == {"replay"}
    assert set(frame["teacher"]) == {"replay/logs"}
    assert set(frame["model_reported"]) == {"m-1"}
    assert frame["cost_usd"].sum() == 0.75
    assert frame["latency_s"].null_count() == 3
    assert made.record.extra["teacher_calls"] == 0
    assert made.record.missing_rows == 0
    assert home.completions()[1].record.data_version == made.record.data_version
    assert home.env.store.count() == 3
    [found] = estimate_requests(reload_folder(home.folder), home.env.store, ["web"], lambda _: None)
    assert (found.prompts, found.calls) == (3, 0)


def test_several_completions_of_one_prompt_are_its_samples(home: Home) -> None:
    labels = ["refund", "login", "refund"]
    home.record([plain("I want a refund", label) for label in labels] + [plain("login asks twice", "login")])
    assert home.answers() == {
        "I want a refund": labels,
        "login asks twice": ["login"],
        "a delivery arrived broken": [None],
    }


def test_a_prompt_without_a_recording_is_a_failed_row_and_min_success_applies(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.record([plain("I want a refund", "refund")])
    frame, made = home.completions()
    failed = frame.filter(pl.col("status") == "failed")
    assert failed.height == made.record.missing_rows == 2
    assert set(failed["error"]) == {NOT_RECORDED}
    assert set(failed["mode"]) == {"replay"}
    task = yaml.safe_load((home.folder.path / "task.yaml").read_text())
    task["teacher"]["min_success"] = 0.5
    (home.folder.path / "task.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(TeacherError, match=NOT_RECORDED):
        home.completions()
    home.env.store.close()


def test_an_edited_recording_changes_its_own_rows_alone(home: Home) -> None:
    rows = [plain(text, label) for text, label in SHOP.items()]
    home.record(rows)
    before, made = home.completions()
    version = compute_source_version(reload_folder(home.folder), "teacher_settings")
    home.record([{"completion": r["completion"], "prompt": f" {r['prompt']} "} for r in reversed(rows)])
    assert compute_source_version(reload_folder(home.folder), "teacher_settings") == version
    home.record([*rows[:2], plain("login asks twice", "refund")])
    assert compute_source_version(reload_folder(home.folder), "teacher_settings") != version
    after, changed = home.completions()
    assert changed.record.data_version != made.record.data_version
    same = before.join(after, on=["prompt_id", "request_key", "answer"])
    assert same.height == 2
    assert home.answers()["login asks twice"] == ["refund"]


def test_completions_are_found_by_the_id_of_a_seed_or_a_row(tmp_path: Path) -> None:
    home = Home(tmp_path, replay={"files": ["recorded"], "match": "id"})
    seeds = [{"id": str(n), "text": text} for n, text in enumerate(SHOP)]
    value = {"description": "The shop.", "seeds": seeds}
    (home.folder.path / "slices" / "shop.yaml").write_text(yaml.safe_dump(value))
    golden = reload_folder(home.folder).golden
    home.record([{"id": n, "completion": label} for n, label in enumerate(SHOP.values())], "recorded/a.jsonl")
    home.record([{"id": row.id, "completion": row.label} for row in golden], "recorded/b.jsonl")
    assert home.answers() == {text: [label] for text, label in SHOP.items()}
    stage.make_golden_completions(replace(home.env, folder=reload_folder(home.folder)), None)
    frame, record = home.env.lake.read(home.env.task_name, "golden_completions", None, COMPLETIONS)
    assert frame.filter(pl.col("status") == "ok").height == len(golden)
    assert record.missing_rows == len(reload_folder(home.folder).dev)
    home.env.store.close()


def test_a_prompt_that_was_masked_when_it_was_imported_is_found(home: Home) -> None:
    home.record([plain("write to <EMAIL> for my refund", "refund")])
    value = {"description": "The shop.", "seeds": ["write to a.b@example.org for my refund"]}
    (home.folder.path / "slices" / "shop.yaml").write_text(yaml.safe_dump(value))
    assert list(home.answers().values()) == [["refund"]]


def test_a_conversation_is_found_by_all_its_user_turns(tmp_path: Path) -> None:
    home = Home(tmp_path, replay={"match": "conversation"})
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    value = {"description": "The shop.", "seeds": ["hello\na refund", "a refund"]}
    (home.folder.path / "slices" / "shop.yaml").write_text(yaml.safe_dump(value))
    home.record([{"messages": [*turns, {"role": "user", "content": "a refund"}], "completion": "login"}])
    assert home.answers() == {"hello\na refund": ["login"], "a refund": [None]}
    home.env.store.close()


ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
REPLY = {"role": "assistant", "content": "a", "reasoning_content": "because"}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "m",
    "choices": [{"index": 0, "message": REPLY, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}
PARTS = [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "a"}]
ANTHROPIC = {
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": PARTS,
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
RESPONSES = {
    "object": "response",
    "model": "m",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}]},
    ],
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
SHAPES = {
    "request and response": {"request": {"model": "x", "messages": ASKED}, "response": CHAT},
    "a stored completion": CHAT | {"messages": {"object": "list", "data": ASKED}},
    "a stored completion with its input": CHAT | {"input": ASKED},
    "lines of a batch": {
        "custom_id": "7",
        "body": {"messages": ASKED},
        "response": {"status_code": 200, "body": CHAT},
        "error": None,
    },
    "anthropic": {"request": {"messages": ASKED}, "response": ANTHROPIC},
    "responses": {"request": {"input": "q"}, "response": RESPONSES},
    "text completion": {"request": {"prompt": "q"}, "response": {"model": "m", "choices": [{"text": "a"}]}},
    "prompt and completion": {"prompt": "q", "completion": "a", "reasoning": "because", "model": "m"},
    "messages and completion": {"messages": ASKED, "completion": "a", "model": "m"},
    "a trace": {"messages": [*ASKED, REPLY], "model": "m"},
    "a bare trace": [*ASKED, REPLY],
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, REPLY], "model": "m"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_formats_that_need_no_settings(shape: str) -> None:
    [found] = parse_recordings(SHAPES[shape], ReplaySpec())
    assert (found.prompt, found.completion) == ("q", "a")
    if "text" not in shape and shape != "messages and completion":
        assert found.reasoning == "because"
    if shape != "a bare trace":
        assert found.model == "m"
    if shape in ("request and response", "anthropic", "responses", "lines of a batch"):
        assert (found.prompt_tokens, found.completion_tokens) == (7, 3)
    assert parse_recordings(found.to_json(), ReplaySpec()) == [replace(found)]


CALL = [{"name": "look", "arguments": '{"at":1}'}]
CALLS = {
    "chat": CHAT
    | {"messages": ASKED, "choices": [{"message": {"content": None, "tool_calls": [{"function": CALL[0]}]}}]},
    "anthropic": {
        "request": {"messages": ASKED},
        "response": ANTHROPIC | {"content": [{"type": "tool_use", "name": "look", "input": {"at": 1}}]},
    },
    "responses": {
        "request": {"input": "q"},
        "response": {"output": [{"type": "function_call", "name": "look", "arguments": '{"at":1}'}]},
    },
    "a trace": [*ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]}],
}


@pytest.mark.parametrize("shape", CALLS)
def test_tool_calls_are_recorded_too(shape: str) -> None:
    [found] = parse_recordings(CALLS[shape], ReplaySpec())
    assert (found.completion, found.tool_calls) == ("", CALL)
    assert parse_recordings(found.to_json(), ReplaySpec()) == [found]


def test_several_choices_and_calls_that_failed() -> None:
    two = CHAT | {"messages": ASKED, "choices": [{"message": {"content": c}} for c in "ab"]}
    assert [r.completion for r in parse_recordings(two, ReplaySpec())] == ["a", "b"]
    assert parse_recordings({"request": {"messages": ASKED}, "response": {"error": {"code": 500}}}, ReplaySpec()) == []


def test_settings_map_any_other_format() -> None:
    record = {"in": {"lines": ["x", "Ticket: my refund"]}, "out": {"text": "refund", "why": "money"}, "by": "m"}
    spec = ReplaySpec.model_validate(
        {
            "prompt": "in.lines.-1",
            "completion": "/out/text",
            "reasoning": "out.why",
            "model": "by",
            "prompt_pattern": "Ticket: (.*)",
        }
    )
    assert parse_recordings(record, spec) == [Recording("refund", "my refund", reasoning="money", model="m")]


def test_each_problem_names_its_line(home: Home) -> None:
    home.record([plain("a", "refund"), {"prompt": "b"}, {"completion": "c"}])
    path = home.folder.path / "recorded" / "logs.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(InputError) as caught:
        home.completions()
    assert [(p.line, p.field) for p in caught.value.problems] == [(2, "completion"), (3, "prompt"), (4, None)]
    home.record([plain("a", "refund"), {"prompt": "b"}, {"completion": "c"}])
    problems = [p for p in check_task_folder(reload_folder(home.folder)) if p.severity == "error"]
    assert [(p.file, p.line, p.field) for p in problems] == [(path, 2, "completion"), (path, 3, "prompt")]
    path.unlink()
    [problem] = [p for p in check_task_folder(reload_folder(home.folder)) if p.severity == "error"]
    assert "are missing" in problem.message
    assert "distill import shop_mail FILE --as recorded --name logs" in problem.remedy


LABELLED: list[dict[str, Any]] = [
    {
        "text": "I want a refund",
        "reasoning": "Money back.",
        "label": "refund",
        "probs": {"refund": 0.9, "login": 0.1},
    },
    {"text": "a delivery arrived broken", "label": "Delivery", "soft_labels": [["login", 50], ["delivery", 50]]},
    {"text": "login asks twice", "probabilities": {"login": "80%", "delivery": "20%"}},
]


@pytest.mark.parametrize("reasoning", [False, True])
def test_recorded_labels_with_probabilities_need_no_settings(tmp_path: Path, reasoning: bool) -> None:
    home = Home(tmp_path)
    task = yaml.safe_load((home.folder.path / "task.yaml").read_text())
    (home.folder.path / "task.yaml").write_text(yaml.safe_dump(task | {"reasoning": reasoning}))
    examples = home.folder.path / "examples.jsonl"
    examples.write_text(jsonl([json.loads(row) | {"reasoning": "r"} for row in examples.read_text().splitlines()]))
    home.record(LABELLED)
    assert home.answers() == {text: [label] for text, label in SHOP.items()}
    frame, made = home.completions()
    by_answer = {row["answer"]: row for row in frame.to_dicts()}
    soft = {
        json.loads(answer): {entry["label"]: entry["prob"] for entry in row["soft_labels"]}
        for answer, row in by_answer.items()
    }
    assert soft["refund"] == {"refund": 0.9, "login": 0.1}
    assert soft["delivery"] == {"delivery": 0.500001, "login": 0.499999}, "on a tie the label is the likeliest"
    assert soft["login"] == {"login": 0.8, "delivery": 0.2}, "without a label, the likeliest is the answer"
    assert by_answer['"refund"']["reasoning"] == "Money back."

    table = build_seed_prompts("shop", reload_folder(home.folder).read_slice("shop"))
    task_now = reload_folder(home.folder).task
    candidates = choose_candidates(task_now, table, frame, build_uniform_prior(task_now.label_names, 1))
    refund = candidates.filter(pl.col("answer") == '"refund"').to_dicts()[0]
    assert (refund["agreement"], refund["reasoning"]) == (1.0, "Money back.")
    shares = {entry["label"]: pytest.approx(entry["prob"], abs=1e-5) for entry in refund["soft_labels"]}
    assert {"delivery": 0.0} | soft["refund"] == {"delivery": 0.0} | shares
    assert refund["confidence"] == pytest.approx(0.9, abs=1e-5)

    home.record([*LABELLED[:2], LABELLED[2] | {"probabilities": {"login": "90%", "delivery": "10%"}}])
    assert home.completions()[1].record.data_version != made.record.data_version, "other probabilities, other rows"
    home.env.store.close()


def test_probabilities_that_cannot_be_read_name_their_line(home: Home) -> None:
    bad: list[dict[str, Any]] = [
        {"text": "a", "label": "refund", "probs": [0.9, 0.1]},
        {"text": "b", "label": "refund", "soft_labels": {"refund": "high"}},
        {"text": "c", "label": 3, "probs": {"refund": 1.0}},
    ]
    home.record([LABELLED[0], *bad])
    with pytest.raises(InputError) as caught:
        home.completions()
    problems = [(problem.line, problem.field) for problem in caught.value.problems]
    assert problems == [(2, "probs"), (3, "soft_labels"), (4, "label")]
    assert "no object of labels and numbers" in caught.value.problems[0].message
    assert '{"refund": 0.9, "login": 0.1}' in caught.value.problems[0].remedy
    assert "'high' for 'refund'" in caught.value.problems[1].message


def test_a_log_may_mean_something_else_by_the_names_of_probabilities() -> None:
    for probs in ([0.9, 0.1], "[0.9]", {"refund": "high"}):
        [found] = parse_recordings(plain("q", "a", probs=probs), ReplaySpec())
        assert (found.completion, found.soft_labels) == ("a", None)
    two = CHAT | {"messages": ASKED, "choices": [{"message": {"content": c}} for c in "ab"], "probs": {"a": 1}}
    assert [r.soft_labels for r in parse_recordings(two, ReplaySpec())] == [None, None], "whose they are is not said"
    elsewhere = {"q": "text", "a": {"said": "refund", "odds": {"refund": 0.7}}}
    spec = ReplaySpec(prompt="q", completion="a.said", soft_labels="a.odds")
    assert parse_recordings(elsewhere, spec) == [Recording("refund", "text", soft_labels={"refund": 0.7})]
    with pytest.raises(ValueError, match="no object of labels"):
        parse_recordings(elsewhere | {"a": {"said": "refund", "odds": 0.7}}, spec)


def test_labels_with_probabilities_in_a_table(tmp_path: Path) -> None:
    cells = [json.dumps({"refund": 0.9, "login": 0.1}), ""]
    table = pl.DataFrame({"text": ["a", "b"], "label": ["refund", "login"], "probs": cells})
    table.write_csv(tmp_path / "log.csv")
    structs = [{"refund": 0.9, "login": 0.1}, {"refund": None, "login": 1.0}]
    table.with_columns(probs=pl.Series(structs)).write_parquet(tmp_path / "log.parquet")
    found = [recording.soft_labels for recording in read_recordings(tmp_path / "log.csv", ReplaySpec())]
    assert found == [{"refund": 0.9, "login": 0.1}, None]
    found = [recording.soft_labels for recording in read_recordings(tmp_path / "log.parquet", ReplaySpec())]
    assert found == [{"refund": 0.9, "login": 0.1}, {"login": 1.0}]


def test_a_recording_without_probabilities_keeps_the_hash_that_it_had() -> None:
    assert Recording("refund", model="m").version == VERSION_BEFORE_SOFT_LABELS


@pytest.mark.parametrize(
    ("created", "day"),
    [
        (1_700_000_000, "2023-11-14"),
        (1_700_000_000_000, "2023-11-14"),
        (1_700_000_000_000_000, "2023-11-14"),
        (1_700_000_000_000_000_000, "2023-11-14"),
        (1_700_000_000.25, "2023-11-14"),
        (5, None),
        (-1, None),
        (10**40, None),
    ],
)
def test_a_time_is_read_in_all_units_or_left_out(home: Home, created: float, day: str | None) -> None:
    body = {"created": created, "choices": [{"message": {"content": "refund"}, "finish_reason": "stop"}]}
    home.record([{"request": {"messages": [{"role": "user", "content": "I want a refund"}]}, "response": body}])
    rows = home.completions()[0].filter(pl.col("answer").is_not_null()).to_dicts()
    assert [row["requested_at"][:10] == day for row in rows] == [day is not None]


@pytest.mark.parametrize(
    ("finish", "status", "answer"),
    [
        (None, "ok", "refund"),
        ("end_turn", "ok", "refund"),
        ("model_length", "ok", "refund"),
        ("SAFETY", "filtered", None),
        ("network_error", "truncated", None),
        ("a word of tomorrow", "truncated", None),
    ],
)
def test_a_recorded_answer_that_was_broken_off_is_no_answer(
    home: Home, finish: str | None, status: str, answer: str | None
) -> None:
    home.record([plain("I want a refund", "refund", finish_reason=finish)])
    row = home.completions()[0].filter(pl.col("raw_text") == "refund").to_dicts()[0]
    assert (row["status"], row["answer"] and json.loads(row["answer"])) == (status, answer)
    assert home.completions()[1].record.missing_rows == 2, "only what is not recorded is missing"


def test_token_counts_that_no_table_holds_are_left_out(home: Home) -> None:
    home.record([plain("I want a refund", "refund", prompt_tokens=2**70, completion_tokens=-5)])
    row = home.completions()[0].filter(pl.col("status") == "ok").to_dicts()[0]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)


def test_a_link_is_not_followed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "logs.jsonl").write_text(jsonl([plain("a", "refund")]))
    (home.folder.path / "recorded").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic links"):
        home.completions()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "openai/x", "replay": {}}, "replay is for"),
        ({"model": "replay/../x"}, "must match"),
        ({"model": "replay/x", "soft_labels": "logprobs"}, "no log-probabilities"),
        ({"model": "replay/x", "replay": {"files": ["../../x.jsonl"]}}, "not a path in the task folder"),
        ({"model": "replay/x", "replay": {"files": ["/etc/passwd"]}}, "not a path in the task folder"),
        ({"model": "replay/x", "replay": {"prompt_pattern": "a(?=b)"}}, "not a regular expression"),
    ],
)
def test_wrong_settings_are_refused(home: Home, teacher: dict[str, Any], message: str) -> None:
    value = yaml.safe_load((home.folder.path / "task.yaml").read_text())
    with pytest.raises(ValueError, match=message):
        Task.model_validate(value | {"teacher": teacher})


@pytest.mark.parametrize("page", ["replay", "batch"])
def test_every_teacher_on_the_pages_is_valid(page: str) -> None:
    text = (PROJECT_FOLDER / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.M)]
    teachers = [yaml.safe_load(block)["teacher"] for block in blocks if "teacher:\n" in block]
    assert len(teachers) >= 2
    for teacher in teachers:
        TeacherSpec.model_validate(teacher)
