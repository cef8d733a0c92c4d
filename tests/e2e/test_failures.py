"""When something goes wrong: bad input, a teacher that fails, a killed process, a check that holds training back."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import yaml

from distill_dagster.tables.validation import EXPECTATIONS
from tests.e2e.conftest import Complete
from tests.e2e.project import GROUP, HELD_OUT_REQUESTS, SEED_REQUESTS, STUDENT_ASSETS, TASK, Project, hash_files
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import jsonl
from tests.support.waiting import HANG_S, wait_until

MARKED = "the MARKER refund that fails"


def refuse_marked(seen: ReceivedRequest, _: int) -> Fault | None:
    return Fault(400, '{"error": {"message": "not this one", "type": "test"}}') if "MARKER" in seen.text else None


def prepend(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text + (folder / file).read_text())


def write(file: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)


def change(file: str, old: str, new: str) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return changed


def link(folder: Path) -> None:
    (folder / "dev.jsonl").rename(folder.parent / "elsewhere.jsonl")
    (folder / "dev.jsonl").symlink_to(folder.parent / "elsewhere.jsonl")


ROW = {"id": "bad", "text": "a text", "label": "refund"}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "malformed YAML": (prepend("task.yaml", "labels: [\n"), r"task\.yaml:\d+: .*YAML"),
    "misspelt setting": (change("task.yaml", "concurrency:", "concurency:"), r"task\.yaml:\d+ \[teacher.concurency\]"),
    "value out of range": (change("task.yaml", "draws: 2", "draws: 0"), r"task\.yaml:\d+ \[teacher.few_shot.draws\]"),
    "key twice": (prepend("task.yaml", "kind: classification\n"), r"task\.yaml:\d+: duplicate key 'kind'"),
    "slice without seeds": (write("slices/web.yaml", "description: x\nseeds: []\n"), r"web\.yaml:2 \[seeds\]"),
    "slice of plain text": (write("slices/web.yaml", "just text\n"), r"web\.yaml:1: "),
    "slice name": (
        write("slices/Not A Slice.yaml", "description: x\nseeds: [a]\n"),
        r"Not A Slice\.yaml: the slice name",
    ),
    "unknown target": (
        change("slices/web.yaml", "- a login by mail, please", "- {text: a, target_label: nosuch}"),
        r"web\.yaml:\d+ \[seeds\.\d\.target_label\]: 'nosuch' is not a label",
    ),
    "malformed JSON": (prepend("golden.jsonl", '{"id": \n'), r"golden\.jsonl:1: malformed JSON"),
    "unknown label": (
        prepend("golden.jsonl", jsonl([ROW | {"label": "nosuch"}])),
        r"golden\.jsonl:1 \[label\]: 'nosuch'",
    ),
    "empty text": (prepend("dev.jsonl", jsonl([ROW | {"text": " "}])), r"dev\.jsonl:1 \[text\]"),
    "no label": (prepend("dev.jsonl", jsonl([{"id": "bad", "text": "a"}])), r"dev\.jsonl:1 \[label\]"),
    "id twice": (prepend("dev.jsonl", jsonl([ROW, ROW | {"text": "b"}])), r"dev\.jsonl:2 \[id\]: the id 'bad'"),
    "not UTF-8": (write("examples.jsonl", b'{"id": "\xff"}\n'), r"examples\.jsonl:1: invalid UTF-8"),
    "missing file": (lambda folder: (folder / "golden.jsonl").unlink(), r"golden\.jsonl: the file is missing"),
    "empty file": (write("golden.jsonl", ""), r"golden\.jsonl: the file is empty"),
    "symbolic link": (link, r"dev\.jsonl: symbolic links are not followed"),
    "too few examples": (
        write("examples.jsonl", jsonl([ROW, ROW | {"id": "x", "text": "late", "label": "delivery"}])),
        r"examples\.jsonl \[label\]: label 'login' has 0 few-shot examples",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_message_and_touches_nothing(project: Project, provider: FakeProvider, kind: str) -> None:
    spoil, message = BAD[kind]
    before = hash_files(project.home)
    spoil(project.folder)
    ended = project.run()
    assert ended.code == 2
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert str(project.folder) in lines[0]
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in ended.err + ended.out
    assert hash_files(project.home) == before
    assert provider.requests == []


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("../shop_mail",), (TASK, "--slice", "nosuch"), (TASK, "--student", "nosuch")],
)
def test_a_name_that_does_not_exist_is_said_with_those_that_do(project: Project, arguments: tuple[str, ...]) -> None:
    before = hash_files(project.home)
    ended = project.distill("run", *arguments)
    assert ended.code == 2
    assert "Known" in ended.err
    assert hash_files(project.home) == before


def test_with_too_few_slices_nothing_is_trained_and_only_their_missing_rows_are_asked_again(
    fresh: Project, provider: FakeProvider
) -> None:
    fresh.change_slice("shop", lambda value: value["seeds"].append(MARKED))
    provider.fail = refuse_marked
    ended = fresh.run()
    assert ended.code == 1
    assert set(ended.json["failed"]) == {"teacher_completions[shop]", "filtered_dataset"}
    assert "enough_slices" in ended.json["failed"]["filtered_dataset"]
    message = ended.json["failed"]["teacher_completions[shop]"]
    assert "86% of 7 prompts" in message
    assert "not this one" in message
    assert message in " ".join(ended.err.split())
    assert ended.partitions["scored_completions"] == ["web"], "one slice does not hold up another"
    assert ended.json["blocked"] == {
        "scored_completions[shop]": "teacher_completions[shop] failed",
        "seed_only_adapter[one]": "filtered_dataset did not pass enough_slices",
        "student_adapter[one]": "filtered_dataset did not pass enough_slices",
        "predictions[one]": "student_adapter[one] is blocked",
        "eval_report[one]": "predictions[one] is blocked",
    }
    assert "blocked student_adapter" in ended.err
    asked = len(provider.requests)
    assert asked == HELD_OUT_REQUESTS + SEED_REQUESTS + 2

    still = fresh.run()
    assert still.code == 1, "nothing was mended"
    assert set(provider.texts[asked:]) == {MARKED}
    asked = len(provider.requests)

    provider.fail = None
    mended = fresh.run()
    assert mended.code == 0, mended.err
    assert provider.texts[asked:] == [MARKED] * 2
    assert mended.partitions["teacher_completions"] == ["shop"]
    assert mended.partitions["eval_report"] == ["one"]


def test_a_failing_slice_gives_its_last_good_rows(project: Project, provider: FakeProvider) -> None:
    before = project.record("scored_completions", "shop")
    project.change_slice("shop", lambda value: value["seeds"].append(MARKED))
    project.change_slice("web", lambda value: value["seeds"].append("a new refund button"))
    provider.fail = refuse_marked
    ended = project.run("--student", "one")
    assert ended.code == 1
    assert set(ended.json["failed"]) == {"teacher_completions[shop]"}
    assert ended.json["blocked"] == {"scored_completions[shop]": "teacher_completions[shop] failed"}
    assert ended.partitions["filtered_dataset"] == [None]
    assert ended.partitions["eval_report"] == ["one"]
    inputs = project.record("filtered_dataset").inputs
    assert inputs["scored_completions[shop]"] == before.data_version
    with project.instance() as instance:
        key = dg.AssetKey([TASK, "filtered_dataset"])
        event = instance.fetch_materializations(key, limit=1).records[0].asset_materialization
        assert event is not None
        table = event.metadata["slices"].value
        assert {r.data["slice"]: r.data["gives"] for r in table.records} == {  # type: ignore[union-attr]
            "shop": "its last good rows",
            "web": "its rows",
        }


def test_a_slice_whose_rows_did_not_pass_gives_the_rows_before(
    project: Project, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.record("scored_completions", "shop")
    one_row = ("ExpectTableRowCountToEqual", {"value": 6})
    monkeypatch.setitem(EXPECTATIONS, "scored_completions", [one_row])
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    project.change_task(curation={"min_slices": 2})
    ended = project.run("--student", "one")
    assert ended.code == 1
    assert set(ended.json["failed"]) == {"scored_completions[shop]"}
    assert project.record("scored_completions", "shop").rows == 7
    assert project.record("filtered_dataset").inputs["scored_completions[shop]"] == before.data_version
    assert project.run("--student", "one").json["runs"] == [], "what did not pass is not made again and again"
    monkeypatch.setitem(EXPECTATIONS, "scored_completions", [])
    project.change_slice("shop", lambda value: value["seeds"].append("two more refunds"))
    mended = project.run("--student", "one")
    assert mended.code == 0, mended.err
    now = project.record("scored_completions", "shop").data_version
    assert project.record("filtered_dataset").inputs["scored_completions[shop]"] == now
    assert project.lake.read_good_record(TASK, "scored_completions", "shop") == project.record(
        "scored_completions", "shop"
    )


def test_a_slice_that_was_never_made_is_left_out_where_enough_others_are_there(
    fresh: Project, provider: FakeProvider
) -> None:
    fresh.change_task(curation={"min_slices": 1})
    ended = fresh.run("--slice", "web")
    assert ended.code == 0, ended.err
    assert set(fresh.record("filtered_dataset").inputs) & {"scored_completions[shop]", "scored_completions[web]"} == {
        "scored_completions[web]"
    }
    rest = fresh.run()
    assert rest.partitions["filtered_dataset"] == [None], "the other slice came"


def test_a_refresh_goes_around_a_malformed_slice_and_says_so(project: Project, provider: FakeProvider) -> None:
    project.change_task(refresh={"min_new_rows": 100})  # training is no matter here
    (project.folder / "slices" / "web.yaml").write_text("description: d\nseeds: 7\n")
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    for command in ("refresh", "backfill"):
        ended = project.distill(command, TASK, "--json")
        assert ended.code == 1
        assert list(ended.json["failed"]) == ["seed_prompts[web]"]
        assert "web.yaml:2 [seeds]" in " ".join(ended.err.split())
    assert provider.texts == ["one more refund"] * 2
    assert "scored_completions[web]" in project.record("filtered_dataset").inputs
    assert project.distill("run", TASK).code == 2, "a person is told before anything runs"


def test_missing_rows_below_the_limit_go_on_and_are_asked_again(project: Project, provider: FakeProvider) -> None:
    project.change_task(teacher={"min_success": 0.5}, curation={"min_rows": 1000})
    project.change_slice("shop", lambda value: value["seeds"].append(MARKED))
    provider.fail = refuse_marked
    project.run()
    assert project.record("teacher_completions", "shop").missing_rows == 1
    status = {one["name"]: one for one in project.distill("status", TASK, "--json").json["artifacts"]}
    assert status["teacher_completions[shop]"]["why"] == ["1 row has no answer yet"]
    provider.fail = None
    asked = len(provider.requests)
    ended = project.run()
    assert provider.texts[asked:] == [MARKED] * 2
    assert ended.partitions == {
        "teacher_completions": ["shop"],
        "scored_completions": ["shop"],
        "filtered_dataset": [None],
    }
    assert project.record("teacher_completions", "shop").missing_rows == 0


def test_a_key_that_is_refused_stops_at_once(fresh: Project, provider: FakeProvider) -> None:
    provider.fail = lambda seen, before: Fault(401, '{"error": {"message": "wrong key", "type": "auth"}}')
    fresh.change_task(teacher={"concurrency": 1, "max_retries": 4})
    ended = fresh.run()
    assert ended.code == 1
    assert "golden_completions" in ended.json["failed"]
    assert "teacher_completions[shop]" in ended.json["blocked"], "golden comes first"
    assert len(provider.requests) == 1


def test_a_missing_key_is_named(fresh: Project, provider: FakeProvider) -> None:
    fresh.change_task(teacher={"api_key_env": "DISTILL_TEST_NO_SUCH_KEY"})
    ended = fresh.run()
    assert ended.code == 1
    assert "DISTILL_TEST_NO_SUCH_KEY" in ended.json["failed"]["golden_completions"]
    assert not STUDENT_ASSETS & set(ended.partitions), "the reason comes before any training"
    assert provider.requests == []


def test_a_missing_key_of_the_judge_is_named_before_the_teacher_is_paid(fresh: Project, provider: FakeProvider) -> None:
    judge = {"model": "openai/judge", "api_base": provider.url, "api_key_env": "DISTILL_TEST_NO_SUCH_KEY"}
    fresh.change_task(judge=judge | {"rubric": [{"name": "tone", "description": "It is polite."}]})
    ended = fresh.run()
    assert ended.code == 2
    assert "[judge.api_key_env]" in ended.err
    assert "DISTILL_TEST_NO_SUCH_KEY" in ended.err
    assert provider.requests == []
    assert fresh.distill("refresh", TASK).code == 2


def test_a_blocking_check_holds_training_back(fresh: Project, provider: FakeProvider) -> None:
    fresh.change_task(curation={"min_rows": 1000})
    ended = fresh.run()
    assert ended.code == 1
    assert list(ended.json["failed"]) == ["filtered_dataset"]
    assert "enough_rows" in ended.json["failed"]["filtered_dataset"]
    assert ended.json["blocked"]["student_adapter[one]"] == "filtered_dataset did not pass enough_rows"
    assert "blocked" in ended.err
    assert ended.partitions["filtered_dataset"] == [None]
    assert ended.json["blocked"]["seed_only_adapter[one]"] == "filtered_dataset did not pass enough_rows"
    assert not STUDENT_ASSETS & set(ended.partitions), "without a dataset there is nothing to compare"
    assert "did not pass enough_rows" in " ".join(fresh.distill("status").out.split())

    again = fresh.run()
    assert again.code == 1
    assert again.json["failed"] == ended.json["failed"]
    assert again.json["blocked"] == ended.json["blocked"]
    assert again.json["runs"] == []

    asked = len(provider.requests)
    fresh.change_task(curation={"min_rows": 4})
    mended = fresh.run()
    assert mended.code == 0, mended.err
    assert set(mended.partitions) == {"filtered_dataset", *STUDENT_ASSETS}
    assert len(provider.requests) == asked


def test_a_dataset_that_no_longer_passes_is_said_although_nothing_else_is_stale(project: Project) -> None:
    report = hash_files(project.home / "reports")
    project.change_task(curation={"min_rows": 1000})
    for _ in range(2):
        ended = project.distill("run", TASK)
        assert ended.code == 1
        assert "enough_rows" in " ".join(ended.err.split())
        assert "nothing to do" not in ended.out
        assert f"Next: `distill run {TASK}` continues" in ended.out
    assert hash_files(project.home / "reports") == report


def test_a_killed_run_is_taken_up_where_it_stopped(complete: Complete, fresh: Project, provider: FakeProvider) -> None:
    """Invariant 3: what was received before `kill -9` is not asked again, and the tables come out the same."""
    held = HELD_OUT_REQUESTS + 3
    concurrency = yaml.safe_load((fresh.folder / "task.yaml").read_text())["teacher"]["concurrency"]
    release = threading.Event()

    def hold(*_: object) -> None:
        if len(provider.requests) > held:
            release.wait(HANG_S)

    provider.fail = hold
    process = fresh.start("run", TASK)

    def is_full() -> bool:
        """As many requests as may be under way at once have reached the server, and none is answered."""
        assert process.poll() is None, process.communicate()
        return len(provider.requests) == held + concurrency

    try:
        wait_until(is_full, "requests in flight")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        release.set()
    with fresh.instance() as instance:
        left = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        assert len(left) == 1, "the run did not see its end coming"
        assert instance.event_log_storage.get_concurrency_info("teacher").active_run_ids == {left[0].run_id}
    provider.fail = None
    stored, asked = fresh.stored_answers(), len(provider.requests)
    assert HELD_OUT_REQUESTS <= stored < asked

    ended = fresh.run()
    assert ended.code == 0, ended.err
    assert ended.json["teacher_calls"] == len(provider.requests) - asked == HELD_OUT_REQUESTS + SEED_REQUESTS - stored
    times = Counter(json.dumps(seen.body) for seen in provider.requests)
    assert max(times.values()) == 2, "only what was in flight is asked twice"
    assert sum(n == 2 for n in times.values()) == asked - stored
    with fresh.instance() as instance:
        buried = instance.get_run_by_id(left[0].run_id)
        assert buried is not None
        assert buried.status == dg.DagsterRunStatus.FAILURE
    for asset in (*sorted(GROUP), "filtered_dataset"):
        for partition in ("shop", "web") if asset in GROUP else (None,):
            same = complete.project.record(asset, partition).data_version
            assert fresh.record(asset, partition).data_version == same, asset
