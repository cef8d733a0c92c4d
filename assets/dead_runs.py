"""The sensor that ends runs of killed processes, so that runs from the UI do not wait for them."""

import dagster as dg

from distill_dagster.orchestration.dead_runs import fail_dead_runs, fail_lost_starts


def build_dead_runs_sensor() -> dg.SensorDefinition:
    """Build the sensor. `distill` itself looks whenever it opens the instance, and while it waits for a pool."""

    @dg.sensor(
        name="dead_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Marks runs as failed whose process was killed, and releases their pool slots.",
    )
    def _dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        marked = fail_dead_runs(context.instance) + fail_lost_starts(context.instance)
        names = ", ".join(run_id[:8] for run_id in marked)
        return dg.SkipReason(f"Marked as failed: {names}." if marked else "The process of every open run is alive.")

    return _dead_runs
