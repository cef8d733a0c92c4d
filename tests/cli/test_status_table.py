"""The table of `distill status`: many partitions that are alike share a line on a terminal, and never in a pipe."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from distill_dagster.cli import console, overview
from distill_dagster.pipeline.freshness import ArtifactStatus
from distill_dagster.tables.lake import ArtifactRecord

SLICES = [f"s{n:02}" for n in range(25)]


def show(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, statuses: list[ArtifactStatus]) -> list[str]:
    shown = Console(file=StringIO(), force_terminal=is_terminal, width=100, color_system=None)
    for module in (console, overview):
        monkeypatch.setattr(module, "out", shown)
    overview._print_statuses(statuses)
    assert isinstance(shown.file, StringIO)
    return [line for line in shown.file.getvalue().splitlines() if "seed_prompts" in line]


def build_statuses() -> list[ArtifactStatus]:
    fresh = [
        ArtifactStatus("seed_prompts", key, "fresh", (), ArtifactRecord("seed_prompts", key, "v", "1", {}, rows=4))
        for key in SLICES
    ]
    changed = [ArtifactStatus("seed_prompts", f"t{key}", "stale", (f"slice_files[t{key}] changed",)) for key in SLICES]
    return [*fresh, *changed, ArtifactStatus("seed_prompts", "odd", "stale", ("code version 1 became 2",))]


def test_partitions_that_are_alike_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, changed, odd = show(monkeypatch, True, build_statuses())
    assert "seed_prompts[25 partitions]" in fresh
    assert "100" in fresh, "their rows together"
    assert "slice_files[…] changed" in changed
    assert "seed_prompts[odd]" in odd


def test_in_a_pipe_each_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(monkeypatch, False, build_statuses())
    assert len(lines) == 51
    assert any("seed_prompts[ts07]" in line and "slice_files[ts07] changed" in line for line in lines)
