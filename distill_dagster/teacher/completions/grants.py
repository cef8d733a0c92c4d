"""Wait until an attempt may be sent: for its budget, for other processes, and for its send time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from distill_dagster.core import progress
from distill_dagster.teacher.completions.batches import BatchPendingError, describe_open_batch
from distill_dagster.teacher.completions.ledger import Decision, Reservation, Settlement, build_reservation_id
from distill_dagster.teacher.completions.pacing import LATE_S
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.store_writer import StoreWriter
from distill_dagster.teacher.providers import rate_limits
from distill_dagster.teacher.providers.attempts import BudgetError, TeacherPausedError
from distill_dagster.teacher.providers.rate_limits import REPORT_INTERVAL_S, ProviderLimits

SLEEP_STEP_S = 1.0
"""A request that waits looks this often whether the asking has stopped meanwhile."""
BUSY_POLL_S = 0.25
"""A request looks about this often whether the other processes send fewer requests by now."""
_WAITING_FOR = {
    "elsewhere": "waiting for another process, which is sending the same requests",
    "full": "waiting for requests under way, whose worst case fills the budget",
    "busy": "waiting for requests of other processes, since the deployment limits the concurrency",
    "later": "waiting for a send time; all processes share the requests and tokens per minute",
}


async def wait_for_grant(
    store: CompletionStore,
    writer: StoreWriter,
    limits: ProviderLimits,
    reservation: Reservation,
    check_stopped: Callable[[], None],
) -> Reservation | None:
    """Wait until an attempt may be sent now. Its caller holds a slot of `limits`.

    Args:
        check_stopped: raises the reason if nothing more may be sent.

    Returns:
        The reservation that the ledger has, or None if another process stored the answer meanwhile.

    Raises:
        BudgetError: a cap is reached.
        BatchPendingError: an open batch contains the request.
        TeacherPausedError: the teacher asked this process or another one for a pause that no request waits for.
    """
    started = reported_at = monotonic()
    while True:
        check_stopped()
        decision = await writer.reserve(reservation)
        match decision.kind:
            case "granted":
                if await _wait_for_send_time(writer, limits, reservation, decision.send_at):
                    return reservation
                reservation = replace(reservation, id=build_reservation_id())
                continue
            case "stored":
                return None
            case "over":
                raise BudgetError(
                    f"{decision.reason}. Raise the cap in task.yaml or of the command, and run again. Stored "
                    f"answers are kept."
                )
            case "batch" if message := describe_open_batch(store, reservation.key, reservation.teacher):
                raise BatchPendingError(message)
            case "closed":
                await _wait_until_open(limits, reservation.teacher, decision)
                continue
        if (waiting_for := _WAITING_FOR.get(decision.kind)) and monotonic() - reported_at > REPORT_INTERVAL_S:
            reported_at = monotonic()
            progress.report_progress(f"{waiting_for} ({reported_at - started:.0f} s)", 0, 0)
        if decision.kind == "busy":
            await asyncio.sleep(BUSY_POLL_S * random.uniform(0.5, 1.5))  # at different times, so that one is soon
        elif decision.kind == "later":
            await _sleep(decision.wait_s * random.uniform(1, 1.2), check_stopped)
        else:
            await writer.wait_for_settlement()


async def _wait_for_send_time(
    writer: StoreWriter, limits: ProviderLimits, reservation: Reservation, send_at: float | None
) -> bool:
    """Wait until an attempt with a reservation may be sent. If it may not, its reservation is released."""
    is_in_time = False
    try:
        is_in_time = await limits.wait_for_send_time(send_at, LATE_S)
    finally:
        if not is_in_time:
            await asyncio.shield(writer.settle(Settlement(reservation.id, "released")))
    return is_in_time


async def _wait_until_open(limits: ProviderLimits, teacher: str, decision: Decision) -> None:
    """Wait as long as the teacher asked another process to wait."""
    if decision.wait_s > rate_limits.MAX_WAIT_S:
        pause = TeacherPausedError(teacher, decision.wait_s, decision.reason)
        limits.pause(pause)
        raise pause
    limits.close(decision.wait_s)
    await limits.wait_until_open()


async def _sleep(seconds: float, check_stopped: Callable[[], None]) -> None:
    until = monotonic() + seconds
    while (left := until - monotonic()) > 0:
        await asyncio.sleep(min(left, SLEEP_STEP_S))
        check_stopped()
