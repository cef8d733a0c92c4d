"""The sensors of the whole code location: alerts about failed runs, and task folders that are not loaded yet."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import URLError

import dagster as dg

from distill_dagster.core.redaction import redact
from distill_dagster.operations.alerts import WEBHOOK_VARIABLE, Alert, post_alert, write_alert
from distill_dagster.orchestration import get_failure_message
from distill_dagster.orchestration.retried_runs import find_attempts, is_retried
from distill_dagster.orchestration.tags import CAMPAIGN_TAG
from distill_dagster.pipeline.open_task import find_tasks


def build_alert(context: dg.RunFailureSensorContext) -> Alert | None:
    """Build the alert about a failed run. Return None if another run reports the failure.

    It is the outer run of an inner one, and the last of the runs that Dagster starts one after the other because
    workers are lost.
    """
    run = context.dagster_run
    if is_retried(context.instance, run.run_id) or len(find_attempts(context.instance, run.run_id)) > 1:
        return None
    campaign = run.tags.get(CAMPAIGN_TAG)
    if campaign is not None and campaign != run.run_id and context.instance.has_run(campaign):
        return None
    steps = {
        str(event.step_key): redact(get_failure_message(event.step_failure_data.error))
        for event in context.get_step_failure_events()
    }
    if not steps and context.failure_event.message:
        steps = {"run": redact(context.failure_event.message)}
    record = context.instance.get_run_record_by_id(run.run_id)
    ended = record.end_time if record and record.end_time else time.time()
    when = datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds")
    return Alert(run.run_id, run.job_name, when, run.tags.get("dagster/partition"), steps)


def build_alerts_sensor(folder: Path) -> dg.SensorDefinition:
    """Build the sensor that writes an alert about each failed run, and sends it to the webhook if one is set."""

    @dg.run_failure_sensor(
        name="alerts",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Writes an alert to alerts/ for every Dagster run that failed, and "
        f"sends it to {WEBHOOK_VARIABLE} if that is set.",
    )
    def _alerts(context: dg.RunFailureSensorContext) -> None:
        alert = build_alert(context)
        if alert is None:
            return
        path = write_alert(folder, alert)
        context.log.info(f"Wrote {path.name}")
        if url := os.environ.get(WEBHOOK_VARIABLE, "").strip():
            try:
                post_alert(url, alert)
            except Exception as error:  # messages of http.client quote the URL, which may contain a secret
                is_safe = isinstance(error, URLError | TimeoutError | ConnectionError)
                what = str(error) if is_safe else type(error).__name__
                raise RuntimeError(f"{WEBHOOK_VARIABLE}: {what}. The alert is in {path.name}.") from None

    return _alerts


def build_task_folders_sensor(tasks: Path, loaded: set[str]) -> dg.SensorDefinition:
    """Build the sensor that reports task folders added or removed since the code location was loaded."""

    @dg.sensor(
        name="task_folders",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description="Reports task folders that are not loaded. To load a new one: Deployment > Code locations > "
        "Reload.",
    )
    def _task_folders(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        present = {folder.name for folder in find_tasks(tasks, tasks)}
        new, removed = sorted(present - loaded), sorted(loaded - present)
        if not new and not removed:
            return dg.SkipReason("All task folders are loaded.")
        changes = [f"new: {', '.join(new)}"] * bool(new) + [f"removed: {', '.join(removed)}"] * bool(removed)
        return dg.SkipReason(
            f"Task folders changed ({'; '.join(changes)}). Reload the code location: "
            "Deployment > Code locations > Reload."
        )

    return _task_folders
