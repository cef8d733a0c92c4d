"""The stages that predict and report, with a student that needs no model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from distill_dagster.config import Task
from distill_dagster.core.errors import ModelError
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import REJECTED_ROWS
from distill_dagster.pipeline.stages import eval_report, nearest_rows, predictions, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.dataset import make_filtered_dataset
from distill_dagster.student.types import TRAINING_LOG_FILE, Prediction
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREDICTIONS, REJECTED
from distill_dagster.tasks import TaskFolder
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, TASK, build_stage_context, jsonl, pass_gate, reload_folder, write_small_task

STUDENT = "tiny"
TRAINING_S = 72.0
PROMPTS = 6 + 6 + 6
"""Golden, dev, and the seeds of both slices."""


@dataclass
class FirstLabel:
    """A predictor that answers everything with the first label."""

    parameters: int = 10
    bytes: int = 20

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        return [Prediction(LABELS[0], {label: float(label == LABELS[0]) for label in LABELS}, LABELS[0])] * len(texts)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageContext]:
    """A task in which every slice is named like a label, made up to its dataset and adapters."""
    with (
        FakeProvider(LABELS) as provider,
        _make_all(tmp_path, monkeypatch, teacher={"api_base": provider.url}) as context,
    ):
        yield context


@contextmanager
def _make_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None = None, **changes: Any
) -> Iterator[StageContext]:
    """A task made up to its dataset and adapters. `recorded` is the content of recorded/big.jsonl."""
    monkeypatch.setattr(predictions, "load_predictor", lambda *_: FirstLabel())
    monkeypatch.setattr(predictions, "build_centroid_predictor", lambda *_: FirstLabel())
    monkeypatch.setattr(predictions, "build_linear_probe_predictor", lambda *_: FirstLabel())
    curation = {"min_rows": 2, "validation_share": 0}
    folder = write_small_task(tmp_path, curation=curation, **changes)
    for path, label in zip(sorted((folder.path / "slices").iterdir()), LABELS, strict=False):
        path.rename(path.with_name(f"{label}.yaml"))
    if recorded is not None:
        (folder.path / "recorded").mkdir()
        (folder.path / "recorded" / "big.jsonl").write_text(recorded)
    context = build_stage_context(reload_folder(folder), tmp_path / "home")
    for make in (prompts.make_prompt_context, teacher.make_teacher_prior, teacher.make_golden_completions):
        make(context, None)
    pass_gate(context)
    for key in context.folder.list_slice_keys():
        for make in (prompts.make_seed_prompts, teacher.make_teacher_completions, scores.make_scored_completions):
            make(context, key)
    make_filtered_dataset(context, None)
    for asset in ("seed_only_adapter", "student_adapter", "slice_label_adapter"):
        make_adapter(context, asset)
    yield context
    context.store.close()


def make_adapter(env: StageContext, asset: str) -> None:
    """Write the folder and record of an adapter without training one."""
    inputs = StageInputs(env, asset, STUDENT)
    for name, version in TaskState(env.folder, env.lake).find_inputs(inputs.stage, STUDENT).items():
        assert version is not None
        inputs.versions[name] = version

    def fill(folder: Path) -> str:
        log: dict[str, Any] = {"losses": [[1, 0.5, 2.0], [2, 1.0, 1.0]], "validation": [], "steps": 2, "epochs": 1}
        (folder / TRAINING_LOG_FILE).write_text(json.dumps(log))
        return asset

    env.lake.write_folder(
        env.task_name, asset, STUDENT, lambda version: inputs.build_record(version, 1, model_s=TRAINING_S), fill
    )


def read_why(env: StageContext, asset: str) -> tuple[str, ...]:
    return TaskState(env.folder, env.lake).get_status(asset, STUDENT).why


def test_a_report_is_fresh_until_something_that_it_shows_changes(env: StageContext) -> None:
    predictions.make_predictions(env, STUDENT)
    result = eval_report.make_eval_report(env, STUDENT)
    assert [read_why(env, asset) for asset in ("predictions", "eval_report")] == [(), ()]
    figures = json.loads((env.lake.get_folder(env.task_name, "eval_report", STUDENT) / "metrics.json").read_text())
    assert figures["dataset_version"] == result.record.inputs["filtered_dataset"]
    assert "golden items one by one" in figures["latency_method"]
    assert "The teacher's latency is the sum over its 2 draws, over HTTP" in figures["latency_method"]
    assert list(figures["dataset"]["kept"]) == ["train"]
    assert [check.passed for check in result.checks] == [True]

    # Other rejected rows next to the same dataset: the report counts and shows them.
    rejected, record = env.lake.read(env.task_name, "filtered_dataset", REJECTED_ROWS, REJECTED)
    row = dict.fromkeys(REJECTED) | {"prompt_id": "p", "slice": "s", "drop_reason": "contaminated", "messages": []}
    more = pl.concat([rejected, pl.DataFrame([row], schema=REJECTED)])
    env.lake.write(env.task_name, more, replace(record, data_version=compute_data_version(more)))
    assert read_why(env, "predictions") == ()
    assert read_why(env, "eval_report") == ("filtered_dataset[rejected_rows] changed",)
    eval_report.make_eval_report(env, STUDENT)
    assert read_why(env, "eval_report") == ()


def test_the_report_counts_rows_by_teacher_and_measures_the_teachers_confidence(env: StageContext) -> None:
    predictions.make_predictions(env, STUDENT)
    eval_report.make_eval_report(env, STUDENT)
    figures = _read_figures(env)
    counts = {line["teacher"]: line["train"] for line in figures["dataset_teachers"]}
    assert sum(counts.values()) == figures["dataset"]["kept"]["train"]
    assert counts.keys() == {"people", "openai/fake"}
    assert figures["calibration"]["dev"].keys() == {"teacher"}, "the students are always certain"
    assert figures["calibration"]["golden"]["teacher"]["rows"] == 6
    assert figures["temperatures"] == {}


def test_a_report_shows_what_was_taught_near_its_errors_and_is_made_without_a_sentence_model(
    env: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions.make_predictions(env, STUDENT)
    eval_report.make_eval_report(env, STUDENT)
    errors = _read_figures(env)["errors"]
    golden = {row.id: row for row in env.folder.golden}
    assert errors
    dataset, _ = env.lake.read(env.task_name, "filtered_dataset", None, DATASET)
    taught = set(dataset["prompt_id"])
    for error in errors:
        assert error["answer"] == LABELS[0] != error["reference"] == json.loads(golden[error["item_id"]].answer_json)
        similarities = [near["similarity"] for near in error["nearest"]]
        assert similarities == sorted(similarities, reverse=True)
        assert {near["prompt_id"] for near in error["nearest"]} <= taught

    def refuse(*_: object) -> None:
        raise ModelError("model 'all-minilm-l6-v2' is not there")

    monkeypatch.setattr(nearest_rows, "embed_remembered_sentences", refuse)
    result = eval_report.make_eval_report(env, STUDENT)
    assert _read_figures(env)["errors"] == []
    assert "is not there" in Path(str(result.shown["report"])).read_text()


def test_an_adapter_that_the_graph_no_longer_has_is_no_input(env: StageContext) -> None:
    """A slice is added whose name is no label: then there is no slice_label student, whatever the lake still has."""
    predictions.make_predictions(env, STUDENT)

    def list_systems() -> set[str]:
        table, _ = env.lake.read(env.task_name, "predictions", STUDENT, PREDICTIONS)
        return set(table["system"])

    assert "slice_label" in list_systems()
    (env.folder.path / "slices" / "other.yaml").write_text("description: other\nseeds: [where is it]\n")
    changed = replace(env, folder=reload_folder(env.folder))
    assert "slice_label_adapter[tiny] is gone" in read_why(changed, "predictions")
    predictions.make_predictions(changed, STUDENT)
    assert "slice_label" not in list_systems()
    assert read_why(changed, "predictions") == ()


@pytest.mark.parametrize(
    ("teacher", "student", "is_shared"),
    [
        ("embedded/smollm2-135m-instruct", "smollm2-135m-instruct", True),
        ("embedded/smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("embedded/smollm2-135m-instruct", "models/smollm2-135m-instruct/", True),
        ("openai/Qwen3-0.6B", "Qwen/Qwen3-0.6B", True),
        ("embedded/smollm2-135m-instruct", "all-minilm-l6-v2", False),
        ("embedded/smollm2-135m-instruct", "microsoft/Phi-4-mini-instruct", False),
        ("openai/gpt-4o-mini", "smollm2-135m-instruct", False),
        ("replay/smollm2-135m-instruct", "smollm2-135m-instruct", False),
    ],
)
def test_a_shared_base_is_noted_only_where_it_is_one(teacher: str, student: str, is_shared: bool) -> None:
    """A replay is named by its user: the name says nothing about weights."""
    models = {"one": {"model": student, "architecture": "encoder"}, "other": {"model": "x", "architecture": "encoder"}}
    change = {"teacher": {"model": teacher}, "students": models}
    task = Task.model_validate(TASK | change)
    notice = eval_report.describe_shared_base(task, "one", [teacher])
    assert (notice is not None) == is_shared
    if notice is not None:
        assert f"The teacher {teacher} and the student one are the same model" in notice
    assert eval_report.describe_shared_base(task, "other", [teacher]) is None


def test_the_notice_is_about_the_teacher_that_answered_most_rows() -> None:
    teachers = {"big": {"model": "openai/gpt-4o"}, "own": {"model": "embedded/smollm2-135m-instruct"}}
    students = {"one": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}}
    settings = {name: value for name, value in TASK.items() if name != "teacher"}
    task = Task.model_validate(settings | {"teachers": teachers, "students": students})
    assert eval_report.describe_shared_base(task, "one", ["people", "big", "own"]) is None
    assert eval_report.describe_shared_base(task, "one", ["people"]) is None
    notice = eval_report.describe_shared_base(task, "one", ["people", "own", "big"])
    assert notice is not None
    assert "The teacher embedded/smollm2-135m-instruct and" in notice


def _read_figures(env: StageContext) -> dict[str, Any]:
    path = env.lake.get_folder(env.task_name, "eval_report", STUDENT) / "metrics.json"
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_a_paid_teacher_costs_what_the_ledger_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    price = {"input_usd": 2.0, "output_usd": 10.0}
    with (
        FakeProvider(LABELS) as provider,
        _make_all(tmp_path, monkeypatch, teacher={"api_base": provider.url, "price": price}) as env,
    ):
        predictions.make_predictions(env, STUDENT)
        shown = eval_report.make_eval_report(env, STUDENT).shown
        figures = _read_figures(env)
        billed = env.store.read_ledger()["usd"].sum()
        golden, _ = env.lake.read(env.task_name, "golden_completions", None, COMPLETIONS)
    assert billed > 0
    per_1k = 1000 * golden["cost_usd"].sum() / golden["prompt_id"].n_unique()
    assert figures["systems"]["teacher"]["cost_usd_per_1k"] == pytest.approx(per_1k)
    cost = figures["distillation"]
    assert cost["answers"] == PROMPTS
    assert cost["answers_usd"] == pytest.approx(billed)
    assert {line["purpose"] for line in cost["bill"]} == {"golden", "slices", "training"}
    assert sum(line["usd"] for line in cost["bill"] if line["is_billed"]) == pytest.approx(billed)
    assert sum(line["usd"] for line in cost["bill"]) == pytest.approx(cost["usd"])
    assert cost["training_s"] == TRAINING_S
    assert cost["training_usd"] == pytest.approx(TRAINING_S / 3600 * 0.1)
    saved = per_1k - figures["systems"]["distilled"]["cost_usd_per_1k"]
    assert cost["break_even_requests"] == math.ceil(1000 * cost["usd"] / saved)
    assert (shown["distillation_usd"], shown["break_even"]) == (cost["usd"], cost["break_even_requests"])


@pytest.mark.parametrize("has_tokens", [False, True])
def test_a_recorded_teacher_costs_its_declared_price_and_is_billed_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tokens: bool
) -> None:
    """Its tokens are the recorded ones, or else counted over the request that this task would send."""
    recorded = _record_everything(tmp_path, TOKENS if has_tokens else {})
    with _make_all(tmp_path, monkeypatch, recorded, teacher=RECORDED) as env:
        predictions.make_predictions(env, STUDENT)
        eval_report.make_eval_report(env, STUDENT)
        figures = _read_figures(env)
        assert env.store.read_ledger().height == 0
        record = env.lake.read_record(env.task_name, "predictions", STUDENT)
        dearer = replace(env, folder=_change_price(env.folder, 20.0))
        assert read_why(dearer, "predictions") == ()
        assert read_why(dearer, "eval_report") == ("evaluation_settings changed",)
        eval_report.make_eval_report(dearer, STUDENT)
        after = _read_figures(dearer)
    assert record is not None
    use = record.extra["teacher_use"]["replay/big"]
    if has_tokens:
        assert (use["prompt_tokens"], use["completion_tokens"], use["counted_with"]) == (500, 40, None)
        assert "500 tokens and an answer 40, as recorded" in figures["cost_method"]
        assert "The teacher was not timed: its answers are recorded." in figures["latency_method"]
        assert "over HTTP" not in figures["latency_method"]
    else:
        assert use["counted_with"] == "cl100k_base"
        assert use["completion_tokens"] == 1, "refund is one token"
        described = sum(len(f"{name} is about {name}".split()) for name in LABELS)
        assert use["prompt_tokens"] > described + 2 * len(LABELS), "the labels and one example of each are in a request"
    per_prompt = (use["prompt_tokens"] * 2 + use["completion_tokens"] * 10) / 1e6
    assert figures["systems"]["teacher"]["cost_usd_per_1k"] == pytest.approx(1000 * per_prompt)
    assert figures["systems"]["teacher"]["tokens_per_request"] == use["prompt_tokens"] + use["completion_tokens"]
    assert figures["distillation"]["answers"] == PROMPTS
    assert figures["distillation"]["answers_usd"] == pytest.approx(PROMPTS * per_prompt)
    assert figures["distillation"]["break_even_requests"] > 0
    added = 1000 * use["prompt_tokens"] * 18 / 1e6
    assert after["systems"]["teacher"]["cost_usd_per_1k"] == pytest.approx(1000 * per_prompt + added)


def test_a_recorded_teacher_that_states_probabilities_has_the_tokens_of_such_a_request_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = json.dumps({"label": LABELS[0], "probabilities": {LABELS[0]: 0.9, LABELS[1]: 0.1}})
    tokens = {}
    for soft_labels in ("votes", "verbalized"):
        recorded = _record_everything(tmp_path / soft_labels, {}, completion)
        teacher = RECORDED | {"soft_labels": soft_labels}
        with _make_all(tmp_path / soft_labels, monkeypatch, recorded, teacher=teacher) as env:
            predictions.make_predictions(env, STUDENT)
            record = env.lake.read_record(env.task_name, "predictions", STUDENT)
        assert record is not None
        tokens[soft_labels] = record.extra["teacher_use"]["replay/big"]["prompt_tokens"]
    assert tokens["verbalized"] > tokens["votes"] > 0, "how to state probabilities is part of the request"


def test_in_a_cascade_what_another_teacher_answered_costs_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed was answered by the embedded teacher, in 36 seconds, while it answered three others too."""
    small = {"model": "embedded/smollm2-135m-instruct"}
    teachers = {"teacher": None, "teachers": {"big": RECORDED, "small": small}, "cascade": {}}
    with _make_all(tmp_path, monkeypatch, _record_everything(tmp_path, TOKENS), **teachers) as env:
        predictions.make_predictions(env, STUDENT)
        key = env.folder.list_slice_keys()[0]
        completions, record = env.lake.read(env.task_name, "teacher_completions", key, COMPLETIONS)
        is_first = pl.int_range(pl.len()) == 0
        name = pl.when(is_first).then(pl.lit("small")).otherwise("teacher").alias("teacher")
        seconds = pl.when(is_first).then(36.0).alias("latency_s")
        under_way = pl.when(is_first).then(4).otherwise(pl.col("in_flight")).alias("in_flight")
        env.lake.write(env.task_name, completions.with_columns(name, seconds, under_way), record)
        eval_report.make_eval_report(env, STUDENT)
        figures = _read_figures(env)
    per_prompt = (500 * 2 + 40 * 10) / 1e6
    assert figures["distillation"]["answers"] == PROMPTS
    assert figures["distillation"]["answers_usd"] == pytest.approx((PROMPTS - 1) * per_prompt + 36 / 4 / 3600 * 0.1)
    assert figures["systems"]["teacher"]["cost_usd_per_1k"] == pytest.approx(1000 * per_prompt), "golden is recorded"


TOKENS = {"prompt_tokens": 500, "completion_tokens": 40}
RECORDED: dict[str, Any] = {
    "model": "replay/big",
    "api": "chat",
    "soft_labels": "votes",
    "price": {"input_usd": 2.0, "output_usd": 10.0},
}


def _record_everything(tmp_path: Path, tokens: dict[str, int], completion: str = LABELS[0]) -> str:
    """A recorded answer to every prompt of the small task."""
    folder = write_small_task(tmp_path / "texts")
    seeds = [seed.text for key in folder.list_slice_keys() for seed in folder.read_slice(key).seeds]
    texts = [row.text for row in [*folder.golden, *folder.dev]] + seeds
    return jsonl([{"prompt": text, "completion": completion} | tokens for text in texts])


def _change_price(folder: TaskFolder, input_usd: float) -> TaskFolder:
    path = folder.path / "task.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["teacher"]["price"]["input_usd"] = input_usd
    path.write_text(yaml.safe_dump(settings))
    return reload_folder(folder)
