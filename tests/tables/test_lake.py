"""The lake: a record is stored with its artifact, and a crash leaves the old artifact or the new one."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import get_temporary_path
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
from distill_dagster.tables.schemas import PROMPT_CONTEXT, TEACHER_PRIOR, SchemaError, build_frame


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", tmp_path / "reports")


def context(*ids: str) -> pl.DataFrame:
    return build_frame([{"id": i, "text": i, "label": "a", "removed": None} for i in ids], PROMPT_CONTEXT, ("id",))


def record(frame: pl.DataFrame, partition: str | None = None, asset: str = "prompt_context") -> ArtifactRecord:
    extra = {"reasons": {"duplicate": 1}, "cost": None, "text": 'Ü\n"quoted"'}
    return ArtifactRecord(
        asset, partition, compute_data_version(frame), "1", {"golden_set": "v"}, frame.height, 2, extra=extra
    )


@pytest.mark.parametrize("partition", [None, "shop"])
def test_table_and_record_come_back(lake: Lake, partition: str | None) -> None:
    frame = context("a", "b")
    written = record(frame, partition)
    lake.write("task", frame, written)
    read, found = lake.read("task", "prompt_context", partition, PROMPT_CONTEXT)
    assert read.equals(frame)
    assert found == written
    assert lake.read_record("task", "prompt_context", partition) == written
    assert compute_data_version(read) == found.data_version


def test_a_missing_artifact_is_named_with_the_command_that_makes_it(lake: Lake) -> None:
    assert lake.read_record("task", "seed_prompts", "shop") is None
    with pytest.raises(DistillError, match=r"task/seed_prompts\[shop\] has not been materialized.*distill run task"):
        lake.read("task", "seed_prompts", "shop", PROMPT_CONTEXT)


def test_another_schema_is_refused(lake: Lake) -> None:
    lake.write("task", context("a"), record(context("a")))
    with pytest.raises(SchemaError, match=r"prompt_context\.parquet"):
        lake.read("task", "prompt_context", None, TEACHER_PRIOR)


def test_reports_have_a_folder_of_their_own(lake: Lake) -> None:
    assert lake.get_folder("task", "eval_report", "tiny") == lake.reports / "task" / "tiny"
    assert lake.get_folder("task", "student_adapter", "tiny") == lake.root / "task" / "student_adapter" / "tiny"


def test_a_scanned_table_stays_the_same_version(lake: Lake, tmp_path: Path) -> None:
    assert lake.scan_good("task", "prompt_context", "shop", PROMPT_CONTEXT, tmp_path) is None
    first = record(context("a"), "shop")
    lake.write("task", context("a"), first)
    found = lake.scan_good("task", "prompt_context", "shop", PROMPT_CONTEXT, tmp_path)
    assert found is not None
    lake.write("task", context("b", "c"), record(context("b", "c"), "shop"))
    assert found[0].collect().equals(context("a"))
    assert found[1] == first


def fill(text: str, version: str = "v1"):  # type: ignore[no-untyped-def]
    def do(folder: Path) -> str:
        (folder / "weights").write_text(text)
        return version

    return do


def made(version: str) -> ArtifactRecord:
    return ArtifactRecord("student_adapter", "tiny", version, "1", {})


def test_a_folder_is_swapped_in_with_its_record(lake: Lake) -> None:
    folder = lake.get_folder("task", "student_adapter", "tiny")
    for text in ("old", "new"):
        assert lake.write_folder("task", "student_adapter", "tiny", made, fill(text, text)).data_version == text
        found = lake.read_record("task", "student_adapter", "tiny")
        assert found is not None
        assert (found.data_version, (folder / "weights").read_text()) == (text, text)
        assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_crash_while_a_folder_is_filled_leaves_the_old_one(lake: Lake) -> None:
    folder = lake.get_folder("task", "student_adapter", "tiny")
    lake.write_folder("task", "student_adapter", "tiny", made, fill("old"))

    def crash(new: Path) -> str:
        (new / "weights").write_text("half")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        lake.write_folder("task", "student_adapter", "tiny", made, crash)
    assert (folder / "weights").read_text() == "old"
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_swap_that_fails_puts_the_old_folder_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lake.get_folder("task", "student_adapter", "tiny")
    lake.write_folder("task", "student_adapter", "tiny", made, fill("old"))
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".writing-" in self.name:
            raise OSError("cannot rename")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="cannot rename"):
        lake.write_folder("task", "student_adapter", "tiny", made, fill("new"))
    assert (folder / "weights").read_text() == "old"


def test_leftovers_of_a_killed_process_are_removed_or_ignored(lake: Lake) -> None:
    folder = lake.get_folder("task", "student_adapter", "tiny")
    left = get_temporary_path(folder)
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    assert lake.read_record("task", "student_adapter", "tiny") is None
    lake.write_folder("task", "student_adapter", "tiny", made, fill("new"))
    assert sorted(p.name for p in folder.iterdir()) == ["artifact.json", "weights"]
    assert json.loads((folder / "artifact.json").read_text())["data_version"] == "v1"


def test_a_folder_that_a_killed_process_moved_aside_is_found_again(lake: Lake) -> None:
    folder = lake.get_folder("task", "student_adapter", "tiny")
    lake.write_folder("task", "student_adapter", "tiny", made, fill("old", "old"))
    folder.rename(folder.with_name(".tiny.old-0a1b2c3d"))
    found = lake.read_record("task", "student_adapter", "tiny")
    assert found is not None
    assert (found.data_version, (folder / "weights").read_text()) == ("old", "old")
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_names_of_artifacts() -> None:
    assert (format_artifact_name("a"), format_artifact_name("a", "b")) == ("a", "a[b]")
