"""Start runs as jobs of a Ray cluster with dagster-ray, and see which of them were lost with their worker.

Dagster loads this module by its name in the instance's dagster.yaml (`ray_settings`). Nothing else imports it, since it
needs the packages of the extra `ray`.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_ray import RayRunLauncher

from distill_dagster.core.errors import DistillError
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, RAY_JOB_TAG

_NO_SUCH_JOB = "status code 404"


class RayJobLauncher(RayRunLauncher):
    """dagster-ray's launcher, which leaves runs alone that it did not start.

    dagster-ray asks the cluster for a job of every open run, and calls a run dead that has none. A run of `distill run`
    has none, and neither has the inner run of a range of slices.
    """

    def _launch_ray_job(self, submission_id: str, entrypoint: str, run: dg.DagsterRun) -> None:
        self._instance.add_run_tags(run.run_id, {RAY_JOB_TAG: submission_id})
        try:
            super()._launch_ray_job(submission_id, entrypoint, run)
        except ConnectionError as error:
            raise DistillError(
                f"The Ray cluster at {self.address!r} does not answer: {error}. Start it, or correct `ray.address` in "
                "deployment.yaml, and start the run again."
            ) from None

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Say whether the job of a run, or of the run around it, is still there.

        While the cluster does not answer, a run counts as running: its job may well be.
        """
        launched = self._find_launched_run(run)
        if launched is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)  # a process of `distill`: the sensor `dead_runs` looks
        try:
            status = self.client.get_job_status(launched.tags[RAY_JOB_TAG])
        except (ConnectionError, RuntimeError) as error:
            if _NO_SUCH_JOB not in str(error):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            message = "The Ray cluster does not know the job of this run: its head was started again."
        else:
            if not status.is_terminal():
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            message = f"The Ray job of this run has ended ({status}) before the run did. {self._explain(launched)}"
        # Nothing of the run is left, so that its slots need not be kept until Dagster releases them.
        self._instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        return CheckRunHealthResult(WorkerStatus.FAILED, message.strip())

    def _find_launched_run(self, run: dg.DagsterRun) -> dg.DagsterRun | None:
        """The run itself, or the one around it, if this launcher started it."""
        outer = self._instance.get_run_by_id(run.tags.get(CAMPAIGN_TAG, "")) if CAMPAIGN_TAG in run.tags else None
        # A run that is started again has the tags of the first one.
        return next((one for one in (run, outer) if one and one.run_id in one.tags.get(RAY_JOB_TAG, "")), None)

    def _explain(self, run: dg.DagsterRun) -> str:
        """What Ray says about the end of a job."""
        try:
            return self.client.get_job_info(run.tags[RAY_JOB_TAG]).message or ""
        except (ConnectionError, RuntimeError):
            return ""
