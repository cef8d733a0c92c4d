"""The schedule's job on a real instance, its event, and the alerts on what failed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from filelock import FileLock

from assets.alerts import build_alert, build_task_folders_sensor
from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.operations.alerts import WEBHOOK_VARIABLE
from tests.e2e.project import TASK, Project
from tests.support.provider import FakeProvider, Fault
from tests.support.task import write_small_task
from tests.support.waiting import HANG_S, wait_until

REFRESHES = dg.AssetKey([TASK, "refreshes"])
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def home_of(project: Project) -> Home:
    return Home(root=project.home, tasks=project.root / "tasks")


def refresh(project: Project, instance: dg.DagsterInstance, force: bool = False) -> dg.ExecuteInProcessResult:
    job = build_definitions(home_of(project)).resolve_job_def(f"{TASK}_refresh")
    config = {"ops": {f"{TASK}_refresh_all": {"config": {"force": force}}}} | QUIET
    return job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)


def test_a_tick_asks_for_one_run_and_the_run_does_what_distill_refresh_does(
    project: Project, provider: FakeProvider
) -> None:
    project.change_task(students={"two": None})
    project.change_slice("shop", lambda value: value["seeds"].append("where is the refund for my order"))
    repository = build_definitions(home_of(project)).get_repository_def()
    with project.instance() as instance:
        schedule = repository.get_schedule_def(f"{TASK}_refresh_schedule")
        assert schedule.cron_schedule == "0 3 * * *"
        with dg.build_schedule_context(instance=instance, repository_def=repository) as context:
            requests = schedule.evaluate_tick(context).run_requests or []
        assert len(requests) == 1
        before = {run.run_id for run in instance.get_runs()}
        result = refresh(project, instance)
        assert result.success
        inner = [run for run in instance.get_runs() if run.run_id not in before | {result.run_id}]
        assert inner
        assert {run.tags["distill/campaign"] for run in inner} == {result.run_id}
        event = instance.get_latest_materialization_event(REFRESHES)
        assert event is not None
        assert event.run_id == result.run_id
        metadata = event.asset_materialization.metadata if event.asset_materialization else {}
        assert metadata["teacher_calls"].value == 2
        tokens = metadata["prompt_tokens"].value
        assert isinstance(tokens, int)
        assert tokens > 0
        assert "student_adapter[one]" in str(metadata["made"].value)
        asked = len(provider.requests)
        assert refresh(project, instance).success
    assert len(provider.requests) == asked == 2
    assert project.distill("refresh", TASK, "--json").json["runs"] == []


def test_a_tick_is_skipped_while_the_refresh_before_is_under_way(project: Project) -> None:
    repository = build_definitions(home_of(project)).get_repository_def()
    with project.instance() as instance:
        schedule = repository.get_schedule_def(f"{TASK}_refresh_schedule")
        job = repository.get_job(f"{TASK}_refresh")
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        with dg.build_schedule_context(instance=instance, repository_def=repository) as context:
            tick = schedule.evaluate_tick(context)
        assert not tick.run_requests
        assert run.run_id in str(tick.skip_message)
        instance.report_run_canceled(run)
        with dg.build_schedule_context(instance=instance, repository_def=repository) as context:
            assert schedule.evaluate_tick(context).run_requests


def test_a_second_refresh_of_a_task_waits_for_the_first(project: Project) -> None:
    lock = home_of(project).locks / f"{TASK}.refresh"
    lock.parent.mkdir(parents=True, exist_ok=True)
    assert project.distill("refresh", TASK).code == 0
    held = FileLock(lock)
    held.acquire()
    log = project.root / "second.txt"
    second = project.start("refresh", TASK, "--json", log=log)
    said = f"waiting: another refresh of this task is running in process {os.getpid()}"
    wait_until(lambda: said in log.read_text(), "the notice of the second refresh")
    assert second.poll() is None
    held.release()
    assert second.wait(HANG_S) == 0, log.read_text()


def test_a_refresh_that_fails_says_what_failed(project: Project, provider: FakeProvider, webhook: Webhook) -> None:
    provider.fail = lambda seen, before: Fault(400)
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    with project.instance() as instance:
        result = refresh(project, instance)
        assert not result.success
        failed = [run for run in instance.get_runs() if run.status == dg.DagsterRunStatus.FAILURE]
        assert len(failed) == 2, "the refresh, and the run of the slice within it"
        alerts = [alert for run in failed if (alert := build_alert(failure(instance, run.run_id))) is not None]
        assert [alert.run_id for alert in alerts] == [result.run_id], "one failure is told once"
    assert "teacher_completions[shop]" in alerts[0].text
    assert "blocked: scored_completions[shop]" in alerts[0].text


class Webhook:
    """A server that keeps what is posted to it, and answers with an error as often as `fail` says."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.fail = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.fail -= 1
                if outer.fail < 0:
                    outer.got.append(json.loads(body))
                self.send_response(200 if outer.fail < 0 else 503)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=sekrit"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    hook = Webhook()
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def failure(instance: dg.DagsterInstance, run_id: str) -> dg.RunFailureSensorContext:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    event = records[0].event_log_entry.dagster_event
    assert event is not None
    context = dg.build_run_status_sensor_context("alerts", event, instance, run)
    return context.for_run_failure()


def tick(project: Project, instance: dg.DagsterInstance, run_id: str) -> Any:
    sensor = build_definitions(home_of(project)).get_repository_def().get_sensor_def("alerts")
    return sensor(failure(instance, run_id))


def test_an_alert_is_a_file_and_a_call_of_the_webhook(
    project: Project, provider: FakeProvider, webhook: Webhook
) -> None:
    provider.fail = lambda seen, before: Fault(400, '{"error": {"message": "not today", "type": "test"}}')
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    ended = project.distill("backfill", TASK, "--json")
    webhook.fail = 1
    with project.instance() as instance:
        failed = instance.get_runs(dg.RunsFilter(ended.json["runs"], statuses=[dg.DagsterRunStatus.FAILURE]))
        assert len(failed) == 1
        tick(project, instance, failed[0].run_id)
        webhook.fail = 99
        with pytest.raises(RuntimeError, match=WEBHOOK_VARIABLE) as raised:
            tick(project, instance, failed[0].run_id)
    assert "sekrit" not in str(raised.value)
    alerts = list((project.home / "alerts").glob("*.md"))
    assert len(webhook.got) == 1, "sent again after the first answer of 503"
    text = alerts[0].read_text()
    assert webhook.got[0]["text"] + "\n" in [path.read_text() for path in alerts]
    assert "partition shop" in text
    assert "86% of 7 prompts" in text
    assert "not today" in text


def test_a_task_folder_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    write_small_task(tmp_path, "one")
    sensor = build_task_folders_sensor(tmp_path / "tasks", {"one", "old"})
    write_small_task(tmp_path, "two")
    found = sensor(dg.build_sensor_context())
    assert isinstance(found, dg.SkipReason)
    assert "new: two; removed: old" in str(found.skip_message)
    assert "Reload" in str(found.skip_message)
