"""What one run made, and why it did not make the rest: read from the events of the run, wherever it ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from distill_dagster.core.errors import DistillError

EVENT_TYPES = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.ENGINE_EVENT,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
}
"""The types of events that an outcome is read from."""


@dataclass
class RunOutcome:
    """How a run ended."""

    run_ids: list[str]
    success: bool
    made: set[dg.AssetKey] = field(default_factory=set)
    pending: dict[dg.AssetKey, str] = field(default_factory=dict)
    """Assets that it skipped because their batch has not ended, with the reason."""
    failures: dict[str, Any] = field(default_factory=dict)
    """The error of each failed step by step key; None if the step left none."""
    took_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that succeeded, by step key."""
    run_error: Any = None
    """The error of the run itself: it can fail although no step did, for example when it could not be started."""
    message: str = ""
    """What Dagster says about a run that failed without an error, or was cancelled."""

    def explain_failure(self, step: str) -> str:
        """Say why a step did not make its asset."""
        error = self.failures.get(step) or self.run_error
        if error is None and self.message:
            return self.message
        return get_failure_message(error)


def read_outcome(run_id: str, events: Iterable[dg.DagsterEvent], success: bool) -> RunOutcome:
    """Read the outcome of a run from its events, in order."""
    outcome = RunOutcome([run_id], success)
    engine_error = None
    for event in events:
        if event.is_step_materialization and event.asset_key is not None:
            outcome.made.add(event.asset_key)
        elif event.is_asset_observation:
            observation = event.asset_observation_data.asset_observation
            outcome.pending[observation.asset_key] = observation.description or ""
        elif event.is_step_failure and event.step_key is not None:
            outcome.failures[event.step_key] = event.step_failure_data.error
        elif event.is_step_success and event.step_key is not None:
            outcome.took_s[event.step_key] = event.step_success_data.duration_ms / 1000
        elif event.is_engine_event:
            engine_error = event.engine_event_data.error or engine_error
        elif event.is_run_failure:
            failure = event.event_specific_data  # None if somebody else than the run marked it as failed
            outcome.run_error = getattr(failure, "error", None) or engine_error
            outcome.message = event.message or ""
        elif event.event_type == dg.DagsterEventType.RUN_CANCELED:
            outcome.message = "its run was cancelled"
    return outcome


def get_failure_message(error: Any) -> str:
    """Return the message of a step failure, without Dagster's wrapping.

    It is that of the outermost error of ours, which says how to go on, else that of the innermost cause.
    """
    if error is None:
        return "the step failed; see its log in the UI"
    own = _list_error_names(DistillError)
    while error.cause is not None and error.cls_name not in own:
        error = error.cause
    return str(error.message).split(": ", 1)[-1].strip()


def _list_error_names(parent: type[Exception]) -> set[str]:
    """The names of a class of errors and of all classes below it."""
    return {parent.__name__}.union(*map(_list_error_names, parent.__subclasses__()))
