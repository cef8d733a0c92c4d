"""The pauses of a task, as `distill status` and the runner read them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from distill_dagster.core.database_urls import STORE_VARIABLE
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import ArtifactStatus
from distill_dagster.pipeline.teacher_pauses import TeacherPauses, find_task_pauses
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from tests.support.task import reload_folder, write_small_task


def test_a_store_that_is_missing_old_or_out_of_reach_has_no_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder = Home(root=tmp_path / "home", tasks=tmp_path / "tasks"), write_small_task(tmp_path)
    assert find_task_pauses(home, folder) == []
    assert not home.store.exists(), "looking writes nothing"
    CompletionStore.open_in_folder(home.store).close()
    assert find_task_pauses(home, folder) == []
    monkeypatch.setenv(STORE_VARIABLE, "postgresql://user:planted@127.0.0.1:9/none")
    assert find_task_pauses(home, folder) == []


def test_a_pause_holds_for_its_teacher_only(tmp_path: Path) -> None:
    home = Home(root=tmp_path / "home", tasks=tmp_path / "tasks")
    judge = {"model": "openai/judge", "rubric": [{"name": "tone", "description": "It is polite."}]}
    folder = write_small_task(tmp_path, judge=judge)
    asks = ArtifactStatus("teacher_completions", "shop", "missing", (), None)
    judges = ArtifactStatus("scored_completions", "shop", "missing", (), None)
    trains = ArtifactStatus("student_adapter", "tiny", "missing", (), None)
    with TeacherPauses(folder, home) as begun_before:
        with closing(CompletionStore.open_in_folder(home.store)) as store:
            PauseStore(store).note(folder.task.teacher, TeacherPausedError("openai/fake", 3600, "a daily limit"))
        assert "a daily limit" in str(begun_before.explain_wait(asks, only_new=True))
        assert begun_before.explain_wait(judges, only_new=True) is None
        assert begun_before.explain_wait(trains, only_new=True) is None
    with TeacherPauses(folder, home) as begun_after:
        assert begun_after.explain_wait(asks, only_new=True) is None, "a person who starts a run wants a try"
        assert "a daily limit" in str(begun_after.explain_wait(asks, only_new=False))
    [pause] = find_task_pauses(home, folder)
    assert "openai/fake asked to wait until" in pause
    path = folder.path / "task.yaml"
    path.write_text(path.read_text().replace("model: openai/fake", "model: openai/other"))
    assert find_task_pauses(home, reload_folder(folder)) == [], "another teacher"
