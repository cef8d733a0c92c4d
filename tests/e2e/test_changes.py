"""What runs again when: the table of the design, row by row, with the teacher's requests counted by the teacher."""

from __future__ import annotations

import shutil

import polars as pl
import yaml

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tables.schemas import DATASET
from tests.e2e.project import GROUP, HELD_OUT_REQUESTS, SEED_REQUESTS, STUDENT_ASSETS, TASK, Project
from tests.support.provider import FakeProvider

AFTER_DATASET = {"student_adapter": ["one"], "predictions": ["one"], "eval_report": ["one"]}


def kept_of(project: Project) -> dict[str, int]:
    """Rows of the dataset by slice, without what people answered."""
    dataset, _ = project.lake.read(TASK, "filtered_dataset", None, DATASET)
    return dict(dataset.filter(pl.col("slice").is_in(project.slices())).group_by("slice").len().iter_rows())


def test_a_new_seed_runs_its_slice_alone_and_asks_for_the_new_prompt_alone(
    project: Project, provider: FakeProvider
) -> None:
    before = project.record("filtered_dataset").data_version
    project.change_slice("shop", lambda value: value["seeds"].append("where is the refund for my order"))
    status = project.distill("status", TASK, "--json").json
    why = {one["name"]: one["why"] for one in status["artifacts"] if one["state"] != "fresh"}
    assert why == {"seed_prompts[shop]": ["slice_files[shop] changed"]}
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {name: ["shop"] for name in GROUP} | {"filtered_dataset": [None]} | AFTER_DATASET
    assert provider.texts == ["where is the refund for my order"] * 2, "two draws of one prompt"
    assert ended.json["teacher_calls"] == 2
    assert ended.json["teacher_calls_cached"] == 12
    assert project.record("filtered_dataset").data_version != before
    assert project.run().partitions == {}


def test_white_space_comments_and_key_order_run_nothing(project: Project, provider: FakeProvider) -> None:
    path = project.folder / "slices" / "web.yaml"
    value = yaml.safe_load(path.read_text())
    seeds = "".join(f"\n\n  - {text!r}   # a comment" for text in value["seeds"])
    path.write_text(f"# moved\nseeds:{seeds}\ndescription:   {value['description']!r}\n\n")
    task = project.folder / "task.yaml"
    task.write_text("# a comment\n\n" + yaml.safe_dump(yaml.safe_load(task.read_text()), sort_keys=True))
    ended = project.run("--student", "one", "--student", "two")
    assert ended.code == 0, ended.err
    assert ended.partitions == {}
    assert provider.requests == []


def test_limits_and_addresses_of_the_teacher_run_nothing(project: Project, provider: FakeProvider) -> None:
    project.change_task(teacher={"concurrency": 2, "timeout_s": 5, "max_retries": 2, "min_success": 0.5})
    assert project.run().partitions == {}
    assert provider.requests == []


def test_a_threshold_cuts_the_dataset_anew_and_asks_nobody(project: Project, provider: FakeProvider) -> None:
    project.change_task(curation={"filters": {"max_words": 4}})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {"filtered_dataset": [None]} | AFTER_DATASET
    assert provider.requests == []
    assert 0 < sum(kept_of(project).values()) < 12


def test_a_threshold_that_drops_nothing_stops_at_the_dataset(project: Project, provider: FakeProvider) -> None:
    before = project.record("filtered_dataset").data_version
    project.change_task(curation={"filters": {"min_words": 2}})
    assert project.run().partitions == {"filtered_dataset": [None]}
    assert project.record("filtered_dataset").data_version == before
    assert provider.requests == []


def test_a_golden_row_asks_for_itself_and_trains_nothing(project: Project, provider: FakeProvider) -> None:
    project.append("golden.jsonl", {"id": "g-new", "text": "held out: my login code", "label": "login", "slice": "web"})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {
        "prompt_context": [None],
        "golden_completions": [None],
        "teacher_gate": [None],
        "filtered_dataset": [None],
        "predictions": ["one"],
        "eval_report": ["one"],
    }
    assert provider.texts == ["held out: my login code"] * 2


def test_a_golden_row_equal_to_a_seed_takes_the_seed_out_of_training(project: Project, provider: FakeProvider) -> None:
    project.append("golden.jsonl", {"id": "g-leak", "text": "Login  asks me TWICE", "label": "login"})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions["student_adapter"] == ["one"]
    assert kept_of(project) == {"shop": 5, "web": 6}
    assert project.record("filtered_dataset").extra["reasons"]["contaminated"] == 1
    assert set(provider.texts) == {"Login asks me TWICE"}, "on one line, for the template"


def test_a_students_setting_runs_that_student_alone(project: Project, provider: FakeProvider) -> None:
    project.change_task(students={"two": {"epochs": 2}})
    ended = project.run("--student", "one", "--student", "two")
    assert ended.code == 0, ended.err
    assert ended.partitions == {name: ["two"] for name in STUDENT_ASSETS}
    assert provider.requests == []


def test_an_evaluation_setting_writes_the_report_alone(project: Project, provider: FakeProvider) -> None:
    project.change_task(evaluation={"confidence": 0.9})
    assert project.run().partitions == {"eval_report": ["one"]}
    assert provider.requests == []


def test_a_removed_slice_leaves_the_dataset_and_comes_back_for_nothing(
    project: Project, provider: FakeProvider
) -> None:
    version = project.record("filtered_dataset").data_version
    web = project.folder / "slices" / "web.yaml"
    away = shutil.move(web, project.root / "web.yaml")
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {"filtered_dataset": [None]} | AFTER_DATASET
    assert kept_of(project) == {"shop": 6}
    with project.instance() as instance:
        assert instance.get_dynamic_partitions(f"{TASK}_slices") == ["shop"]
    shutil.move(away, web)
    assert project.run("--slice", "web").partitions["filtered_dataset"] == [None]
    assert project.record("filtered_dataset").data_version == version
    assert provider.requests == []


def test_a_renamed_slice_keeps_its_paid_answers(project: Project, provider: FakeProvider) -> None:
    slices = project.folder / "slices"
    (slices / "web.yaml").rename(slices / "internet.yaml")
    ended = project.run("--student", "one")
    assert ended.code == 0, ended.err
    assert {name: ended.partitions[name] for name in GROUP} == {key: ["internet"] for key in GROUP}
    assert provider.requests == []
    assert project.record("teacher_completions", "internet").rows == SEED_REQUESTS // 2


def test_a_new_slice_asks_for_its_prompts(project: Project, provider: FakeProvider) -> None:
    seeds = ["a refund by phone", "the delivery man called"]
    text = yaml.safe_dump({"description": "By phone.", "seeds": seeds})
    (project.folder / "slices" / "phone.yaml").write_text(text)
    project.change_task(curation={"min_rows": 1000})  # what follows is shown elsewhere: hold training back
    ended = project.run()
    assert ended.partitions == {name: ["phone"] for name in GROUP} | {"filtered_dataset": [None]}
    assert sorted(provider.texts) == sorted(seeds * 2)
    assert kept_of(project) == {"phone": 2, "shop": 6, "web": 6}


def test_a_teacher_setting_that_changes_no_request_asks_nobody_and_trains_nothing(
    project: Project, provider: FakeProvider
) -> None:
    """The items of a calibration that is off: every row is looked at again, and none is asked."""
    project.change_task(teacher={"calibration_items": 4})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions["teacher_completions"] == ["shop", "web"]
    assert ended.json["teacher_calls_cached"] == SEED_REQUESTS + HELD_OUT_REQUESTS
    assert provider.requests == []
    asked = {"teacher_prior", "golden_completions", "teacher_completions"}
    assert set(ended.partitions) == asked | {"seed_prompts", "teacher_gate"}


def test_a_template_asks_for_every_row_again(project: Project, provider: FakeProvider) -> None:
    templates = project.folder / "templates"
    templates.mkdir()
    built_in = PROJECT_FOLDER / "distill_dagster" / "prompts" / "templates" / "classification_text.j2"
    (templates / "classification_text.j2").write_text("Sort.\n" + built_in.read_text())
    project.change_task(curation={"min_rows": 1000})  # what follows is shown elsewhere: hold training back
    ended = project.run()
    assert ended.partitions["golden_completions"] == [None]
    assert ended.partitions["scored_completions"] == ["shop", "web"]
    assert ended.json["teacher_calls_cached"] == 0
    assert len(provider.requests) == SEED_REQUESTS + HELD_OUT_REQUESTS
    assert all(seen.body["prompt"].startswith("Sort.\n") for seen in provider.requests)


def test_rescaled_soft_labels_read_the_answers_to_dev_and_ask_for_nothing(
    project: Project, provider: FakeProvider
) -> None:
    before = project.record("filtered_dataset")
    assert "golden_completions" not in before.inputs
    project.change_task(curation={"rescale_soft_labels": "temperature"})
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions["filtered_dataset"] == [None]
    assert provider.requests == []
    after = project.record("filtered_dataset")
    assert after.inputs.keys() - before.inputs.keys() == {"golden_completions", "teacher_prior"}
    (fit,) = after.extra["temperatures"].values()
    assert (fit["rows"], fit["temperature"]) == (6, 1.0), "too few dev rows for a temperature"
    assert after.data_version == before.data_version
    assert project.run().partitions == {}
