"""Run the web UI: a code server, Dagster's daemon and the webserver, one UI per instance."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
import yaml
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._core.workspace.load_target import ModuleTarget
from dagster_shared.ipc import get_ipc_shutdown_pipe, send_ipc_shutdown_message
from dagster_shared.serdes import serialize_value

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.orchestration.in_process import CODE_LOCATION
from distill_dagster.orchestration.launcher import get_workspace_path
from distill_dagster.orchestration.partitions import find_trained_students, sync_task
from distill_dagster.orchestration.ui_reload import HOST, reload_code_location
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.open_task import find_tasks

CHECK_S = 0.5
QUIET_S = 2.0
"""A new task folder is loaded when its task.yaml has not changed for so long: somebody may still be copying it."""
STOP_S = 60
"""Seconds that the webserver and the daemon may take to stop, before they are killed."""
_SERVICES = {
    "webserver": ["distill_dagster.orchestration.webserver", "--dagster-log-level", "warning", "--host", HOST],
    "daemon": ["dagster._daemon", "run", "--log-level", "error"],
}


@contextmanager
def lock_ui(home: Home, port: int) -> Iterator[int]:
    """Hold the lock of the UI and yield its file descriptor: two daemons on one instance would start runs twice.

    The descriptor is for the processes of the UI. Any of them that is left behind keeps the lock.

    Raises:
        DistillError: A UI of this home folder is running; or the port is in use, or not allowed.
    """
    path = home.locks / "ui"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DistillError(_describe_running_ui(path)) from None
        check_port(port)
        os.truncate(lock, 0)
        os.pwrite(lock, json.dumps({"process": os.getpid(), "port": port}).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _describe_running_ui(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        where, process = f" on http://{HOST}:{found['port']}", f" (process {found['process']})"
    except (ValueError, KeyError, OSError):  # the other UI has just taken the lock
        where = process = ""
    return (
        f"The UI of this project is already running{where}{process}. Open it there, or stop it with Ctrl-C first. "
        "Another UI of the same project would start its runs twice."
    )


def check_port(port: int) -> None:
    """Check that a server can listen on the port.

    Raises:
        DistillError: Another program listens on it, or this user may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the webserver does
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise DistillError(f"Port {port} is reserved for root. Choose one above 1023: --port 3000.") from None
        except OSError as error:
            raise DistillError(
                f"Port {port} on {HOST} cannot be used ({error.strerror}). Choose another: --port {_find_free_port()}."
            ) from None


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def sync_tasks(home: Home, instance: dg.DagsterInstance) -> list[InputError]:
    """Bring the partitions of all tasks up to date. Returns the errors of malformed tasks."""
    lake, errors = open_lake(home), list[InputError]()
    for folder in find_tasks(home.tasks, home.accepted):
        try:
            sync_task(folder, instance, find_trained_students(folder, lake))
        except InputError as error:
            errors.append(error)
    return errors


def serve_ui(
    home: Home, instance: dg.DagsterInstance, port: int, lock: int, notify_ready: Callable[[str], None]
) -> None:
    """Run the UI until Ctrl-C, or until this process is told to end. It loads task folders that are added or removed.

    Args:
        lock: The file descriptor of the UI's lock.
        notify_ready: Called with the address once the webserver answers.

    Raises:
        DistillError: The webserver or the daemon ended by itself. The other one is stopped too.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    # Ctrl-C in a terminal ends the code server too, and it should not be started again while the others stop.
    os.environ.setdefault("DAGSTER_CODE_SERVER_AUTO_RESTART_INTERVAL", "15")
    os.environ["DAGSTER_IS_DEV_CLI"] = "1"  # as `dagster dev` does: errors of the code location are shown short
    target = ModuleTarget(CODE_LOCATION, None, str(PROJECT_FOLDER), CODE_LOCATION)
    with ExitStack() as stack:
        code_server = stack.enter_context(ProxyServerManager(instance, target, "warning"))
        workspace = get_workspace_path(home)  # commands with `--launch` read it too
        stack.callback(workspace.unlink, missing_ok=True)
        workspace.write_text(yaml.safe_dump({"load_from": list(code_server.get_code_server_specs())}))
        shared = ["--instance-ref", serialize_value(instance.get_ref()), "--workspace", str(workspace)]
        with (
            _run_service("webserver", ["--port", str(port), *shared], lock) as webserver,
            _run_service("daemon", shared, lock) as daemon,
        ):
            address = f"http://{HOST}:{port}"
            loaded, is_ready = {folder.name for folder in find_tasks(home.tasks, home.accepted)}, False
            while not stop.wait(CHECK_S):
                for name, process in (("webserver", webserver), ("daemon", daemon)):
                    if process.poll() is not None:
                        raise DistillError(
                            f"The {name} of the UI ended by itself (exit code {process.returncode}). The lines above "
                            "say why."
                        )
                if not is_ready:
                    is_ready = _answers(f"{address}/server_info")
                    if is_ready:
                        notify_ready(address)
                elif (present := _list_task_names(home, loaded)) != loaded:
                    loaded = present
                    sync_tasks(home, instance)
                    reload_code_location(address)  # if it fails, the sensor `task_folders` says what to do


@contextmanager
def _run_service(name: str, options: list[str], lock: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run one process of the UI, out of reach of the terminal's Ctrl-C, and stop it at the end."""
    reader, writer = get_ipc_shutdown_pipe()
    command = [sys.executable, "-m", *_SERVICES[name], *options, "--shutdown-pipe", str(reader)]
    process = subprocess.Popen(command, cwd=PROJECT_FOLDER, pass_fds=[reader, lock], start_new_session=True)
    os.close(reader)
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):  # it has ended already
            send_ipc_shutdown_message(writer)
        try:
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _list_task_names(home: Home, loaded: set[str]) -> set[str]:
    """The tasks to load: all folders, without new ones that are still changing."""
    now = time.time()
    return {
        folder.name
        for folder in find_tasks(home.tasks, home.accepted)
        if folder.name in loaded or now - folder.path.joinpath("task.yaml").stat().st_mtime > QUIET_S
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
