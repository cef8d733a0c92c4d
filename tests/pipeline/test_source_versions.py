"""The data version of a source changes with the meaning of its file, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from distill_dagster.pipeline.source_versions import (
    compute_source_version,
    find_label_of_slice,
    has_slices_as_labels,
    list_features,
)
from distill_dagster.pipeline.stage_table import list_sources
from distill_dagster.tasks import TaskFolder
from tests.support.task import build_labelled_rows, reload_folder, write_small_task


def versions(folder: TaskFolder) -> dict[str, str]:
    """The version of every source, written `source` or `source[partition]`."""
    fresh = reload_folder(folder)
    keys: dict[str | None, Sequence[str | None]] = {
        None: [None],
        "slice": fresh.list_slice_keys(),
        "student": list(fresh.task.students),
    }
    return {
        name if key is None else f"{name}[{key}]": compute_source_version(fresh, name, key)
        for name, source in list_sources().items()
        for key in keys[source.partition]
    }


def changed(folder: TaskFolder, before: dict[str, str]) -> set[str]:
    now = versions(folder)
    return {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}


def change_task(folder: TaskFolder, *path: str | int, to: object) -> None:
    value = yaml.safe_load((folder.path / "task.yaml").read_text())
    at = value
    for step in path[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    at[path[-1]] = to
    (folder.path / "task.yaml").write_text(yaml.safe_dump(value))


def test_white_space_comments_sources_and_order_do_not_count(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    for path in [folder.path / "task.yaml", *(folder.path / "slices").iterdir()]:
        value = yaml.safe_load(path.read_text())
        turned = dict(reversed(value.items()))
        path.write_text(f"# a comment\n\n{yaml.safe_dump(turned, sort_keys=False, indent=6)}\n# another\n")
    for path in folder.path.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"source": "a book"} for row in rows]
        turned_rows = [json.dumps(dict(reversed(row.items())), indent=None, separators=(" ,", " : ")) for row in rows]
        path.write_text("\n\n".join(reversed(turned_rows)) + "\n\n")
    assert changed(folder, before) == set()


def test_the_order_of_seeds_and_their_sources_do_not_count(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    path = folder.path / "slices" / "shop.yaml"
    value = yaml.safe_load(path.read_text())
    value["seeds"] = [s if isinstance(s, dict) else {"text": s, "source": "a book"} for s in reversed(value["seeds"])]
    path.write_text(yaml.safe_dump(value))
    assert changed(folder, before) == set()


@pytest.mark.parametrize(
    ("key", "value"), [("description", "Another."), ("target", 12), ("seeds", ["I want a refund"])]
)
def test_a_changed_slice_changes_no_other_source(key: str, value: object, tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    path = folder.path / "slices" / "shop.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    assert changed(folder, before) == {"slice_files[shop]"}


def test_a_new_slice_changes_the_manifest(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    (folder.path / "slices" / "app.yaml").write_text("description: d\nseeds: [x]\n")
    assert changed(folder, before) == {"slice_manifest", "slice_files[app]"}


@pytest.mark.parametrize(
    ("file", "source"),
    [("golden", "golden_set"), ("dev", "golden_set"), ("examples", "human_examples"), ("human", "human_examples")],
)
def test_a_row_changes_the_source_of_its_file(file: str, source: str, tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    with (folder.path / f"{file}.jsonl").open("a") as handle:
        handle.write(json.dumps(build_labelled_rows("n", "new:", 1)[0]) + "\n")
    assert changed(folder, before) == {source}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("labels", 0, "description"), "is about money", {"teacher_settings", "student_settings[tiny]"}),
        (("instructions",), "Choose.", {"teacher_settings", "student_settings[tiny]"}),
        (("teacher", "temperature"), 0.7, {"teacher_settings"}),
        (("teacher", "few_shot", "seed"), 9, {"teacher_settings"}),
        (("teacher", "revision"), "2026-01", {"teacher_settings"}),
        (("teacher", "concurrency"), 32, set()),
        (("teacher", "api_base"), "http://127.0.0.1:9/v1", {"evaluation_settings"}),  # the terms of another provider
        (("teacher", "api_key_env"), "MY_KEY", set()),
        (("teacher", "min_success"), 0.1, set()),
        (("teacher", "timeout_s"), 1, set()),
        (("curation", "filters", "min_words"), 2, {"curation_settings"}),
        (("curation", "validation_share"), 0.3, {"curation_settings"}),
        (("evaluation", "seed"), 4, {"evaluation_settings"}),
        (("students", "tiny", "epochs"), 9, {"student_settings[tiny]"}),
        (("students", "other"), {"model": "m", "architecture": "encoder"}, {"student_settings[other]"}),
        (("description",), "Words for people.", set()),
        (("owners",), ["somebody"], set()),
    ],
)
def test_a_setting_changes_exactly_the_sources_that_read_it(
    path: tuple[str | int, ...], value: object, expected: set[str], tmp_path: Path
) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    change_task(folder, *path, to=value)
    assert changed(folder, before) == expected


def test_a_template_changes_the_teacher_settings(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = versions(folder)
    (folder.path / "templates").mkdir()
    (folder.path / "templates" / "classification_user.j2").write_text("{{ text }}!")
    assert changed(folder, before) == {"teacher_settings"}


def test_an_unknown_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="teacher_settings"):
        compute_source_version(write_small_task(tmp_path), "settings")


def test_slices_that_are_named_like_labels(tmp_path: Path) -> None:
    labels = [{"name": name, "description": "d"} for name in ("Card arrival", "web-shop", "rest")]
    folder = write_small_task(tmp_path, labels=labels)
    assert not has_slices_as_labels(folder)
    for old, new in (("shop", "card_arrival"), ("web", "webshop")):
        (folder.path / "slices" / f"{old}.yaml").rename(folder.path / "slices" / f"{new}.yaml")
    assert has_slices_as_labels(folder)
    assert [find_label_of_slice(folder, key) for key in folder.list_slice_keys()] == ["Card arrival", "web-shop"]


def test_imagining_and_judging_have_sources_of_their_own(tmp_path: Path) -> None:
    rubric = [{"name": "correct", "description": "it fits"}]
    folder = write_small_task(
        tmp_path, imagine={"axes": {"style": ["short"]}}, judge={"model": "openai/j", "rubric": rubric}
    )
    plain = write_small_task(tmp_path / "plain")
    before, mine = versions(folder), ("imagine_settings", "judge_settings")
    assert changed(plain, before) == {"evaluation_settings"}, "the report quotes the terms of the judge"
    assert list_features(plain) == set()
    assert list_features(reload_folder(folder)) == {"imagine", "judge"}

    def now() -> list[str]:
        return [compute_source_version(reload_folder(folder), name) for name in mine]

    def differs(*path: str | int, to: object) -> list[bool]:
        old = now()
        change_task(folder, *path, to=to)
        return [a != b for a, b in zip(old, now(), strict=True)]

    assert differs("imagine", "per_request", to=7) == [True, False]
    assert differs("imagine", "teacher", to={"model": "openai/i"}) == [True, False]
    assert differs("imagine", "teacher", to={"model": "openai/i", "api_base": "http://127.0.0.1:9"}) == [False, False]
    assert differs("judge", "rubric", 0, "description", to="it fits well") == [False, True]
    assert differs("judge", "mode", to="best_of") == [False, True]
    assert differs("judge", "concurrency", to=1) == [False, False]
    assert changed(folder, before) == {"evaluation_settings"}, "the imaginer has terms of its own"
    (folder.path / "templates").mkdir()
    old = now()
    (folder.path / "templates" / "imagine_evolve.j2").write_text("{{ parent }}!")
    assert [a != b for a, b in zip(old, now(), strict=True)] == [True, False]
    old = now()
    (folder.path / "templates" / "judge_score.j2").write_text("{{ answer }}?")
    assert [a != b for a, b in zip(old, now(), strict=True)] == [False, True]
    assert changed(folder, before) == {"evaluation_settings"}, "nothing is asked again for its answer"


@pytest.mark.parametrize("name", ["min_judge", "target_label"])
def test_a_threshold_counts_once_it_is_not_its_default(tmp_path: Path, name: str) -> None:
    rubric = [{"name": "correct", "description": "it fits"}]
    folder = write_small_task(tmp_path, judge={"model": "openai/j", "rubric": rubric})
    before = versions(folder)
    default, other = {"min_judge": (0, 0.5), "target_label": ("keep_answer", "drop_disagreement")}[name]
    change_task(folder, "curation", "filters", name, to=default)
    assert changed(folder, before) == set()
    change_task(folder, "curation", "filters", name, to=other)
    assert changed(folder, before) == {"curation_settings"}


@pytest.mark.parametrize(("filters", "has_effect"), [({"pii": "mask"}, True), ({}, False)])
def test_phone_regions_count_for_a_task_that_looks_for_personal_data(
    tmp_path: Path, filters: dict[str, object], has_effect: bool
) -> None:
    folder = write_small_task(tmp_path, curation={"filters": filters})
    names = ("score_settings", "curation_settings")
    before = [compute_source_version(reload_folder(folder), name) for name in names]
    change_task(folder, "inbox", "phone_regions", to=["JP"])
    after = [compute_source_version(reload_folder(folder), name) for name in names]
    assert [one != other for one, other in zip(before, after, strict=True)] == [has_effect, has_effect]
