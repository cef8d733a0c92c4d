"""A Ray cluster on this machine: a head without CPUs, and workers that can be killed as a machine would be lost.

Token authentication is on. Nothing is found through `/tmp/ray`, so that several clusters can run beside each other.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil

START_S, STOP_S = 600, 30
STORE_BYTES = 100_000_000
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
FOLDER_VARIABLE = "DISTILL_TEST_RAY_FOLDER"
# Without a server for Ray Client: nothing uses it, it takes a fixed port, and the head ends if it starts slowly.
_RAY = [
    sys.executable,
    "-c",
    "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: 'unused'; scripts.main()",
]


@dataclass
class RayNode:
    """One node of the cluster: `ray start --block`, and all that runs below it."""

    process: subprocess.Popen[bytes]
    cpus: int = 0

    def list_processes(self) -> list[psutil.Process]:
        """The node's own processes and the jobs and tasks that run on it."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End all of it at once, without a chance to say goodbye."""
        processes = self.list_processes()
        for one in processes:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=STOP_S)
        self.process.wait(STOP_S)

    def stop(self) -> None:
        """Ask the node to end, and kill what has not ended then."""
        processes = self.list_processes()
        if self.process.poll() is None:
            self.process.terminate()
        _, left = psutil.wait_procs(processes, timeout=STOP_S)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=STOP_S)
        self.process.wait(STOP_S)


@dataclass
class RayCluster:
    """A running cluster. `environment` is what a process needs to use it."""

    folder: Path
    port: int
    jobs_port: int
    environment: dict[str, str]
    node_environment: dict[str, str]
    head: RayNode = field(init=False)
    workers: list[RayNode] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What `ray.init` takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def jobs_url(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.jobs_port}"

    def start_node(self, *options: str) -> RayNode:
        """Start one node. It is part of the cluster a few seconds later."""
        agent, metrics = _find_free_ports(2)
        command = [*_RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        command += [f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", *options]
        with (self.folder / "nodes.log").open("ab") as log:
            return RayNode(
                subprocess.Popen(
                    command,
                    env=os.environ | self.environment | self.node_environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def start_worker(self, cpus: int = 1) -> RayNode:
        """Start a worker. It is part of the cluster some seconds later."""
        node = self.start_node(f"--address={self.address}", f"--num-cpus={cpus}")
        node.cpus = cpus
        self.workers.append(node)
        return node

    def kill_worker_of(self, process: int) -> None:
        """Kill the worker that a process runs on.

        Raises:
            StopIteration: It runs on none.
        """
        lost = next(node for node in self.workers if process in {one.pid for one in node.list_processes()})
        self.workers.remove(lost)
        lost.kill()

    def wait_for_workers(self, count: int) -> None:
        """Wait until the head answers and so many workers are alive.

        Raises:
            AssertionError: It does not within ten minutes. It shows what the nodes wrote.
        """
        from ray._raylet import GcsClient

        deadline = time.monotonic() + START_S
        while True:
            if _is_open(self.port) and _is_open(self.jobs_port):
                with suppress(Exception):  # the head is still starting
                    nodes = GcsClient(self.address).get_all_node_info(timeout=5).values()
                    if sum(node.state == 0 for node in nodes) == 1 + count:
                        return
            log = (self.folder / "nodes.log").read_text(errors="replace")[-4000:]
            assert self.head.process.poll() is None, log
            assert time.monotonic() < deadline, log
            for worker in list(self.workers):
                if worker.process.poll() is not None:  # on a busy machine: Ray gives a node 30 s to start
                    worker.stop()
                    self.workers.remove(worker)
                    self.start_worker(cpus=worker.cpus)
            time.sleep(0.2)


def set_token() -> None:
    """Make a token for the clusters of this process. Call it before Ray is imported, which reads these variables."""
    if all(name in os.environ for name in AUTHENTICATION):
        return
    token = Path(tempfile.mkdtemp(prefix="ray-token-")) / "token"
    atexit.register(shutil.rmtree, token.parent, ignore_errors=True)
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= dict(zip(AUTHENTICATION, ("token", str(token)), strict=True))


@contextmanager
def run_cluster(workers: int = 2, cpus: int = 1, node_environment: Mapping[str, str] = {}) -> Iterator[RayCluster]:
    """Run a cluster with so many workers, and stop it by the ids of its processes.

    Args:
        node_environment: Environment variables of the nodes, and of the jobs and tasks on them.
    """
    # A short path: Ray's sockets are below it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    set_token()
    port, jobs_port = _find_free_ports(2)
    environment = {name: os.environ[name] for name in AUTHENTICATION} | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    own = {
        FOLDER_VARIABLE: str(folder),
        # `dagster` must be on the path of jobs.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Otherwise Ray kills jobs while others of this machine take its memory.
        "RAY_memory_monitor_refresh_ms": "0",
        # Otherwise workers wait for whatever else runs here: Ray starts them with niceness 15.
        "RAY_worker_niceness": "0",
    }
    cluster = RayCluster(folder, port, jobs_port, environment, {**own, **node_environment})
    with mock.patch.dict(os.environ, environment):
        cluster.head = cluster.start_node(
            "--head", f"--port={port}", "--num-cpus=0", f"--dashboard-port={jobs_port}", f"--temp-dir={folder}"
        )
        try:
            cluster.wait_for_workers(0)
            for number in range(workers):  # one after the other: together they are slower
                cluster.start_worker(cpus=cpus)
                cluster.wait_for_workers(number + 1)
            yield cluster
        finally:
            for node in (*cluster.workers, cluster.head):
                node.stop()
            _kill_leftovers(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _kill_leftovers(folder: Path) -> None:
    """Kill what outlived its node: agents, or jobs of a node that was killed."""
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.environ().get(FOLDER_VARIABLE) == str(folder):
                one.kill()


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
