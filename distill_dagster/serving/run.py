"""Put a server together from a release, and run it until it is asked to stop."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import InboxSpec, ServingSpec, Task
from distill_dagster.core.errors import DistillError
from distill_dagster.core.redaction import remember_secret
from distill_dagster.kinds import get_kind
from distill_dagster.release.registry import Release
from distill_dagster.release.routing.table import ROUTING_FILE, ExportRouting, RoutingTable
from distill_dagster.release.runtimes.build import build_runtime, list_servable
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.serving.access import LOOPBACK
from distill_dagster.serving.answering import NO_TEACHER, Answerer
from distill_dagster.serving.app import StudentServer
from distill_dagster.serving.batching import StudentBatcher
from distill_dagster.serving.http_protocol import choose_http_protocol
from distill_dagster.serving.metrics import ServerMetrics
from distill_dagster.serving.model import ServedModel
from distill_dagster.serving.request_log import RequestLog
from distill_dagster.serving.teacher import Teacher, TeacherGate
from distill_dagster.student.types import StudentPrompt

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 30
"""Seconds that requests under way have to end after the server is asked to stop."""
KEEP_ALIVE_S = 30
"""Seconds after which an idle connection is closed."""
BACKLOG = 2048


@dataclass(frozen=True)
class ServingPlan:
    """What is served, before anything is loaded."""

    release: Release
    export: str
    setup: StudentSetup
    routing: ExportRouting
    shadow_share: float

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher can be asked: for requests below the threshold, or as a shadow."""
        return self.routing.threshold != 0 or self.shadow_share > 0

    def describe_routing(self) -> str:
        """Who answers which requests, in a sentence or two."""
        if self.routing.threshold == 0:
            return "The student answers everything."
        if self.routing.calibration is not None:
            return self.routing.calibration.describe()
        if self.routing.threshold is None:
            return "The teacher answers everything: no threshold was calibrated for this export."
        return f"The student answers from confidence {self.routing.threshold:g}, as task.yaml says; below, the teacher."


def plan_serving(release: Release, models: Path, export: str | None, has_fallback: bool) -> ServingPlan:
    """Choose the export of a release, and read its routing.

    A student that gives no confidence is routed as if it were never sure.

    Raises:
        DistillError: the release has no such export, or its files cannot be read.
    """
    servable = list_servable(release.path)
    if not servable:
        raise DistillError(f"{release.path} has no export that can be served. Release the student again.")
    if export is not None and export not in servable:
        raise DistillError(
            f"{release.path} has no export {export!r} that can be served. Use one of {', '.join(servable)}."
        )
    setup, name = StudentSetup.read(release.path, models), export or servable[0]
    if not has_fallback or not (release.path / ROUTING_FILE).exists():
        return ServingPlan(release, name, setup, NO_TEACHER, 0.0)
    table = RoutingTable.read(release.path)
    return ServingPlan(release, name, setup, table.get_routing(name), table.shadow_share)


def read_api_key(spec: ServingSpec, host: str) -> str | None:
    """The key that clients must send, from the environment. None if there is none.

    Raises:
        DistillError: the server would be reachable from other machines without a key.
    """
    key = os.environ.get(spec.api_key_env, "").strip()
    if key:
        remember_secret(key)
        return key
    if host not in LOOPBACK:
        raise DistillError(
            f"{host} can be reached from other machines, and {spec.api_key_env} is not set. Set it to the key that "
            f"clients must send, or listen on 127.0.0.1."
        )
    return None


def build_server(
    plan: ServingPlan,
    task: Task,
    log_folder: Path,
    teacher: Teacher | None,
    api_key: str | None = None,
    spec: ServingSpec | None = None,
    inbox: InboxSpec | None = None,
) -> StudentServer:
    """Load the student and put the server together. The caller runs its app, which closes log and teacher.

    Args:
        log_folder: where requests are logged, `requests/<task>`.
        teacher: None if the teacher is never asked.
        spec, inbox: by default those of the task.

    Raises:
        DistillError: the student cannot be loaded, or a package is missing.
    """
    spec, inbox = spec or task.serving, inbox or task.inbox
    metrics = ServerMetrics()
    runtime = build_runtime(plan.release.path, plan.setup, plan.export)
    runtime.open()
    if plan.setup.chooses_label:
        runtime.answer([StudentPrompt.from_text("warm up")])  # the first answer takes longer
    batcher = StudentBatcher(runtime, spec.max_waiting, metrics)
    gate = TeacherGate(teacher, spec.teacher_timeout_s) if teacher is not None else None
    kind, chooses_label = get_kind(task), plan.setup.chooses_label
    answerer = Answerer(batcher, kind, chooses_label, metrics, plan.routing, gate, plan.shadow_share)
    released_at = int(datetime.fromisoformat(plan.release.manifest["created_at"]).timestamp())
    model = ServedModel(
        plan.release.task, plan.release.student, plan.release.number, plan.export, kind, chooses_label, released_at
    )
    return StudentServer(model, answerer, spec, metrics, RequestLog(log_folder, spec, inbox, metrics), api_key)


def open_listener(host: str, port: int) -> socket.socket:
    """A socket on this address, before anything is loaded.

    Args:
        port: 0 for a free one.

    Raises:
        DistillError: the address cannot be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise DistillError(f"{host}:{port} cannot be used: {error.strerror}. Choose another --port.") from None
    return listener


def build_uvicorn(server: StudentServer, listener: socket.socket, announce: Callable[[str], None]) -> uvicorn.Server:
    """The server as uvicorn runs it: `run(sockets=[listener])` serves until SIGINT or SIGTERM.

    Args:
        announce: gets the address once the server takes requests.
    """
    import uvicorn

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    class _Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce(address)

    config = uvicorn.Config(
        server.build_app(),
        http=choose_http_protocol(),
        ws="none",
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    return _Server(config)


def run_server(server: StudentServer, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Requests under way are answered first; a second signal ends it at once."""
    # uvicorn raises a signal again once it has stopped: that must not end the process before this function returns.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    with listener:
        try:
            build_uvicorn(server, listener, announce).run(sockets=[listener])
        finally:
            server.answerer.batcher.runtime.close()
            for number, handler in before.items():
                signal.signal(number, handler)
