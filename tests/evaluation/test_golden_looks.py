"""The log of golden looks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distill_dagster.evaluation.golden_looks import append_golden_look, read_golden_looks


def test_entries_are_only_ever_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "looks.jsonl"
    assert read_golden_looks(path) == []
    append_golden_look(path, {"at": "1", "text": "zwei\nZeilen é"})
    before = path.read_bytes()
    append_golden_look(path, {"at": "2"})
    assert path.read_bytes().startswith(before)
    assert read_golden_looks(path) == [{"at": "1", "text": "zwei\nZeilen é"}, {"at": "2"}]


def test_entry_is_on_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    append_golden_look(tmp_path / "looks.jsonl", {"at": "1"})
    assert (tmp_path / "looks.jsonl").stat().st_size in synced


def test_a_line_cut_by_a_crash_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    append_golden_look(path, {"at": "1"})
    with path.open("ab") as handle:
        handle.write(b'{"at": "cut')
    append_golden_look(path, {"at": "2"})
    assert read_golden_looks(path) == [{"at": "1"}, {"at": "2"}]


def test_a_line_separator_inside_a_text_does_not_split_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    append_golden_look(path, {"note": "a\u2028b\x85c"})
    assert read_golden_looks(path) == [{"note": "a\u2028b\x85c"}]


def test_appending_at_once_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append_golden_look(path, {"i": i}), range(40)))
    assert sorted(entry["i"] for entry in read_golden_looks(path)) == list(range(40))
