"""Several teachers: whose answer becomes the candidate, and about which prompts a teacher is unsure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import InputError, TeacherError
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stages import prompts, scores
from distill_dagster.pipeline.stages import teacher as stages
from distill_dagster.pipeline.stages.context import StageContext, StageResult
from distill_dagster.tables.schemas import COMPLETIONS, SCORED
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.estimate import GOLDEN_AND_DEV, estimate_requests
from distill_dagster.teacher.imagine.plan import get_imagine_teacher
from distill_dagster.teacher.providers.client import Endpoint
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS, build_stage_context, jsonl, pass_gate, reload_folder, write_small_task

TEXTS = ["a refund please", "where is my parcel", "the login page", "hello there"]


@pytest.fixture
def providers() -> Iterator[dict[str, FakeProvider]]:
    with FakeProvider(LABELS) as cheap, FakeProvider(LABELS) as strong:
        yield {"cheap": cheap, "strong": strong}


def settings(provider: FakeProvider, **more: Any) -> dict[str, Any]:
    plain = {"model": "openai/fake", "api": "chat", "soft_labels": "votes", "few_shot": {"draws": 1, "per_label": 1}}
    return plain | {"api_base": provider.url, "max_retries": 0, "terms": {"acknowledged": True}} | more


def make_env(
    tmp_path: Path, providers: dict[str, FakeProvider], cascade: dict[str, Any] | None, **cheap: Any
) -> StageContext:
    teachers = {
        "cheap": settings(providers["cheap"], revision="small", **cheap),
        "strong": settings(providers["strong"], revision="large"),
    }
    changes: dict[str, Any] = {"teachers": teachers} | ({"cascade": cascade} if cascade is not None else {})
    folder = write_small_task(tmp_path, **changes)
    import yaml

    task = yaml.safe_load((folder.path / "task.yaml").read_text())
    del task["teacher"]
    (folder.path / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    (folder.path / "slices" / "shop.yaml").write_text(yaml.safe_dump({"description": "d", "seeds": TEXTS}))
    return build_stage_context(TaskFolder(folder.path), tmp_path / "home")


def ask_teachers(env: StageContext) -> StageResult:
    prompts.make_prompt_context(env, None)
    prompts.make_seed_prompts(env, "shop")
    pass_gate(env)
    return stages.make_teacher_completions(env, "shop")


def read_candidates(env: StageContext) -> dict[str, dict[str, Any]]:
    stages.make_teacher_prior(env, None)
    scores.make_scored_completions(env, "shop")
    frame, _ = env.lake.read(env.task_name, "scored_completions", "shop", SCORED)
    return {row["messages"][0]["content"]: row for row in frame.iter_rows(named=True)}


def answer_by_text(answers: dict[str, str]) -> Any:
    return lambda seen: next((label for text, label in answers.items() if text in seen.text), "refund")


def test_each_teacher_answers_and_agreement_is_a_column(tmp_path: Path, providers: dict[str, FakeProvider]) -> None:
    providers["cheap"].answer = answer_by_text({"parcel": "delivery", "login": "login", "hello": "login"})
    providers["strong"].answer = answer_by_text({"parcel": "delivery", "login": "login", "hello": "delivery"})
    env = make_env(tmp_path, providers, None)
    result = ask_teachers(env)
    frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
    assert dict(frame["teacher"].value_counts().iter_rows()) == {"cheap": 4, "strong": 4}
    assert result.record.extra["teacher_calls"] == 8
    rows = read_candidates(env)
    assert {text: row["answer"] for text, row in rows.items()} == {
        "a refund please": '"refund"',
        "where is my parcel": '"delivery"',
        "the login page": '"login"',
        "hello there": '"delivery"',  # a tie: the last teacher of the task wins
    }
    assert {text: row["teacher_agreement"] for text, row in rows.items()} == dict.fromkeys(TEXTS[:3], 1.0) | {
        "hello there": 0.5
    }
    assert rows["hello there"]["teacher"] == "strong"
    assert rows["hello there"]["confidence"] == 0.5
    assert len(rows["hello there"]["completion_ids"]) == 2
    env.store.close()


def test_a_cascade_asks_the_strong_teacher_where_the_samples_of_the_cheap_one_disagree(
    tmp_path: Path, providers: dict[str, FakeProvider]
) -> None:
    asked: dict[str, int] = {}

    def wavering(seen: ReceivedRequest) -> str:
        asked[seen.text] = asked.get(seen.text, 0) + 1
        if "hello" in seen.text:
            return LABELS[asked[seen.text] % 3]
        return (
            str(answer_by_text({"parcel": "delivery", "login": "login"})(seen))
            if "refund" not in seen.text
            else "nonsense"
        )

    providers["cheap"].answer = wavering
    providers["strong"].answer = lambda seen: "delivery" if "hello" in seen.text else "refund"
    env = make_env(tmp_path, providers, {}, samples=3, temperature=0.7, reasks=0)
    result = ask_teachers(env)
    assert sorted(providers["strong"].texts) == ["a refund please", "hello there"]
    assert result.record.extra["teacher_calls"] == 12 + 2
    rows = read_candidates(env)
    assert {text: row["teacher"] for text, row in rows.items()} == {
        "a refund please": "strong",
        "where is my parcel": "cheap",
        "the login page": "cheap",
        "hello there": "strong",
    }
    assert rows["hello there"]["answer"] == '"delivery"'
    assert rows["a refund please"]["teacher_agreement"] == 0.5, "the cheap teacher has no answer and agrees with none"
    again = stages.make_teacher_completions(env, "shop")
    assert again.record.extra["teacher_calls"] == 0
    assert again.record.data_version == result.record.data_version
    env.store.close()


def test_a_cascade_by_confidence(tmp_path: Path, providers: dict[str, FakeProvider]) -> None:
    cheap = {"api": "text", "soft_labels": "logprobs", "max_tokens": 1}
    env = make_env(tmp_path, providers, {"min_confidence": 0.6}, **cheap)
    ask_teachers(env)
    # The cheap teacher gives 0.7 to a label whose name is in the text; "parcel" and "hello" name none.
    assert sorted(providers["strong"].texts) == ["hello there", "where is my parcel"]
    env.store.close()


def test_rows_on_which_teachers_disagree_can_be_dropped(tmp_path: Path, providers: dict[str, FakeProvider]) -> None:
    from distill_dagster.curation.dataset.curate import curate_dataset

    providers["cheap"].answer = answer_by_text({"parcel": "delivery", "login": "login", "hello": "login"})
    providers["strong"].answer = answer_by_text({"parcel": "delivery", "login": "login", "hello": "delivery"})
    env = make_env(tmp_path, providers, None)
    ask_teachers(env)
    read_candidates(env)
    frame, _ = env.lake.read(env.task_name, "scored_completions", "shop", SCORED)
    spec = env.folder.task.curation
    strict = spec.model_copy(update={"filters": spec.filters | {"min_teacher_agreement": 0.6}})
    cut = curate_dataset(frame, set(), LABELS, strict)
    assert cut.rejected.select("drop_reason", "drop_detail").rows() == [
        ("teachers_disagree", "agreement of teachers 0.5")
    ]
    assert curate_dataset(frame, set(), LABELS, spec).rejected.height == 0
    env.store.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {"one": "openai/a"}, "teacher": "openai/b"}, "not both"),
        ({"teachers": {"one": "openai/a"}, "cascade": {}, "teacher": None}, "two or more `teachers`"),
        ({"teachers": {"One!": "openai/a"}, "teacher": None}, "must match"),
        ({"teacher": None}, "required"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    import yaml

    folder = write_small_task(tmp_path)
    task = yaml.safe_load((folder.path / "task.yaml").read_text()) | changes
    task = {name: value for name, value in task.items() if value is not None}
    (folder.path / "task.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(InputError, match=message) as caught:
        _ = TaskFolder(folder.path).task
    assert len(caught.value.problems) == 1


def test_rows_are_ordered_by_prompt_teacher_and_sample(tmp_path: Path, providers: dict[str, FakeProvider]) -> None:
    env = make_env(tmp_path, providers, None, samples=2, temperature=0.5)
    ask_teachers(env)
    frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
    keys = frame.select("prompt_id", "teacher", "sample_index")
    assert keys.equals(keys.sort(pl.all()))
    env.store.close()


class TestRecordingBeforeATeacher:
    """A cascade of a recording and a teacher that is asked what the recording does not know."""

    @staticmethod
    def make_env(tmp_path: Path, provider: FakeProvider, recorded: dict[str, str], **cascade: Any) -> StageContext:
        import yaml

        teachers = {
            "logs": {"model": "replay/logs", "terms": {"acknowledged": True}},
            "live": settings(provider),
        }
        folder = write_small_task(tmp_path, teachers=teachers, teacher=None, cascade=cascade)
        (folder.path / "slices" / "shop.yaml").write_text(yaml.safe_dump({"description": "d", "seeds": TEXTS}))
        (folder.path / "recorded").mkdir()
        rows = [{"prompt": text, "completion": label} for text, label in recorded.items()]
        (folder.path / "recorded" / "logs.jsonl").write_text(jsonl(rows))
        return build_stage_context(TaskFolder(folder.path, tmp_path / "accepted"), tmp_path / "home")

    def test_what_the_recording_does_not_know_is_the_next_teachers_work(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        provider = providers["strong"]
        env = self.make_env(tmp_path, provider, {TEXTS[0]: "refund", TEXTS[1].upper(): "delivery"})
        result = ask_teachers(env)
        assert sorted(provider.texts) == sorted(TEXTS[2:])
        frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
        assert dict(frame["teacher"].value_counts().iter_rows()) == {"logs": 2, "live": 2}
        assert frame["error"].null_count() == 4, "a prompt that was never recorded is no failure"
        assert result.record.missing_rows == 0
        assert result.record.extra["teacher_calls"] == 2
        rows = read_candidates(env)
        assert {text: row["teacher"] for text, row in rows.items()} == dict(
            zip(TEXTS, ["logs", "logs", "live", "live"], strict=True)
        )
        assert all(row["teacher_agreement"] == 1 for row in rows.values())
        env.store.close()

    @pytest.mark.parametrize(("known", "expected"), [(TEXTS, "logs"), ([], "live")])
    def test_a_teacher_without_prompts_is_not_started(
        self, tmp_path: Path, providers: dict[str, FakeProvider], known: list[str], expected: str
    ) -> None:
        started: list[str] = []
        env = self.make_env(tmp_path, providers["strong"], dict.fromkeys([*known, "elsewhere"], "login"))
        open_endpoint = env.endpoint

        def note_start(spec: TeacherSpec) -> AbstractContextManager[Endpoint]:
            started.append(spec.model)
            return open_endpoint(spec)

        ask_teachers(replace(env, endpoint=note_start))
        assert started == [{"logs": "replay/logs", "live": "openai/fake"}[expected]]
        frame, _ = env.lake.read(env.task_name, "teacher_completions", "shop", COMPLETIONS)
        assert set(frame["teacher"]) == {expected}
        env.store.close()

    def test_a_recording_that_grows_takes_its_prompts_over(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        env = self.make_env(tmp_path, providers["strong"], {TEXTS[0]: "refund"})
        ask_teachers(env)
        before = compute_source_version(env.folder, "teacher_settings")
        with (env.folder.path / "recorded" / "logs.jsonl").open("a") as recorded:
            recorded.write(jsonl([{"prompt": TEXTS[1], "completion": "delivery"}]))
        later = replace(env, folder=reload_folder(env.folder))
        assert compute_source_version(later.folder, "teacher_settings") != before
        assert ask_teachers(later).record.extra["teacher_calls"] == 0
        rows = read_candidates(later)
        assert [rows[text]["teacher"] for text in TEXTS] == ["logs", "logs", "live", "live"]
        env.store.close()

    def test_what_the_next_teacher_did_not_answer_is_missing(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        provider = providers["strong"]
        provider.fail = lambda seen, _: Fault(500) if "hello" in seen.text else None
        env = self.make_env(tmp_path, provider, dict.fromkeys(TEXTS[:2], "refund"))
        with pytest.raises(TeacherError, match="Only 50% of 2 prompts have an answer from openai/fake"):
            ask_teachers(env)
        provider.fail = None
        assert ask_teachers(env).record.missing_rows == 0
        env.store.close()

    def test_the_estimate_counts_what_the_recording_does_not_know(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        env = self.make_env(tmp_path, providers["strong"], dict.fromkeys(TEXTS[:3], "login"))

        def estimate() -> dict[tuple[str, str], tuple[int, int]]:
            found = estimate_requests(reload_folder(env.folder), env.store, ["shop"], lambda _: None, golden=True)
            return {(one.slice, one.teacher): (one.prompts, one.calls) for one in found}

        assert estimate() == {("shop", "logs"): (3, 0), ("shop", "live"): (1, 1), (GOLDEN_AND_DEV, "live"): (12, 12)}
        assert ask_teachers(env).record.extra["teacher_calls"] == 1
        assert estimate()["shop", "live"] == (1, 0)
        env.store.close()

    def test_with_a_least_confidence_the_estimate_is_an_upper_bound(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        env = self.make_env(tmp_path, providers["strong"], dict.fromkeys(TEXTS[:3], "login"), min_confidence=0.5)
        found = estimate_requests(env.folder, env.store, ["shop"], lambda _: None)
        assert {one.teacher: one.calls for one in found} == {"logs": 0, "live": 4}
        env.store.close()

    def test_prompts_are_imagined_by_the_first_teacher_that_is_no_recording(
        self, tmp_path: Path, providers: dict[str, FakeProvider]
    ) -> None:
        env = self.make_env(tmp_path, providers["strong"], {})
        assert get_imagine_teacher(env.folder.task).model == "openai/fake"
        env.store.close()
