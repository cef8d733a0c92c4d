"""Kill workers of a Ray cluster in every stage of a task, and compare with a run in one process that nobody disturbed.

A part of scale.py. A worker dies in one of four ways: before an artifact is in place, after it is in place but before
Dagster knows, together with its machine, and while the teacher answers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill_dagster.orchestration.tags import read_process_tag
from tests.e2e.project import TASK, Project, create_project
from tests.support.deployed import deploy_on_ray, launch
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.ray_cluster import RayCluster, run_cluster
from tests.support.task import LABELS

HOOK = Path(__file__).resolve().parent.parent / "tests" / "support" / "kill_hook"
WAYS = ("before", "after", "node")
ASKING = (7, 31)
"""The requests that never get an answer: a golden or dev item, and a seed."""
QUICK = {"teacher_completions": "node", "filtered_dataset": "before", "student_adapter": "after"}
RETRIES = 8
"""A run of one slice or student loses a worker in each of its stages."""


def measure(quick: bool, scratch: Path) -> dict[str, float]:
    """Make a task undisturbed and with kills.

    Returns:
        `kills`; `kills_ended_right` (1 or 0: the command succeeded); `kills_same_hash` (1 or 0: every artifact has the
        data version of the undisturbed run); `kills_paid_twice`: requests beyond one for each stored answer and those
        whose process was killed before it had the answer.
    """
    reference, made = _make_undisturbed(scratch / "undisturbed")
    orders = QUICK if quick else {asset: WAYS[n % len(WAYS)] for n, asset in enumerate(made)}
    kills = scratch / "kills"
    kills.mkdir()
    for asset, how in orders.items():
        (kills / asset).write_text(how)
    environment = {"DISTILL_TEST_KILLS": str(kills), "PYTHONPATH": str(HOOK), "OMP_NUM_THREADS": "1"}
    with FakeProvider(LABELS) as provider, run_cluster(workers=2, node_environment=environment) as cluster:
        project = create_project(scratch / "killed", provider.url, teacher={"concurrency": 1})
        asking = _AskingKiller(project, set(ASKING[:1] if quick else ASKING))
        provider.fail = asking.kill
        with _replace_lost_nodes(cluster, kills), deploy_on_ray(project, cluster, lost_worker_retries=RETRIES):
            result = launch(project, "refresh", TASK, "--json")
        asked, stored = len(provider.requests), project.stored_answers()
    log = (kills / "done.txt").read_text() if (kills / "done.txt").exists() else ""
    if result.code:
        print(result.err)
    left = [name for name in orders if (kills / name).exists()]
    assert not left, f"nothing was killed in {', '.join(left)}"
    versions = {_name(asset, key): _read_version(project, asset, key) for asset, key in _list_artifacts(made)}
    others = {_name(asset, key): _read_version(reference, asset, key) for asset, key in _list_artifacts(made)}
    for name in versions:
        if versions[name] != others[name]:
            print(f"{name}: {versions[name]} instead of {others[name]}")
    return {
        "kills": len(log.splitlines()) + asking.killed,
        "kills_ended_right": int(result.code == 0),
        "kills_same_hash": int(versions == others),
        "kills_paid_twice": asked - stored - asking.killed,
        "kills_wall_s": round(result.json["wall_s"], 1) if result.code == 0 else 0,
    }


def _make_undisturbed(root: Path) -> tuple[Project, dict[str, list[str | None]]]:
    """Make a task in this process. Returns its partitions by asset."""
    with FakeProvider(LABELS) as provider:
        reference = create_project(root, provider.url)
        ended = reference.run()
        assert ended.code == 0, ended.err
        return reference, ended.partitions


class _AskingKiller:
    """Kills the process that asks, once it has sent certain requests."""

    def __init__(self, project: Project, due: set[int]) -> None:
        self.project, self.due = project, due
        self.received = self.killed = 0

    def kill(self, request: ReceivedRequest, earlier: int) -> Fault | None:
        """Kill the run that has the teacher's pool, if it is time. The task asks one request after the other."""
        self.received += 1
        if self.received not in self.due:
            return None
        with self.project.instance() as instance:
            slot = instance.event_log_storage.get_concurrency_info("teacher").claimed_slots[0]
            run = instance.get_run_by_id(slot.run_id)
            assert run is not None
            process = read_process_tag(run.run_id, run.tags)
            assert process is not None
            os.kill(int(process.split(":")[1]), signal.SIGKILL)
        self.killed += 1
        return Fault(status=500)


@contextmanager
def _replace_lost_nodes(cluster: RayCluster, kills: Path) -> Iterator[None]:
    """Kill the node of a process that waits for it, and start another one, as an autoscaler would."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            with suppress(FileNotFoundError):
                if process := (kills / "node").read_text():
                    (kills / "node").unlink()
                    cluster.kill_worker_of(int(process))
                    cluster.start_worker()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _list_artifacts(partitions: dict[str, list[str | None]]) -> list[tuple[str, str | None]]:
    return [(asset, key) for asset, keys in partitions.items() for key in keys]


def _name(asset: str, key: str | None) -> str:
    return f"{asset}[{key}]"


def _read_version(project: Project, asset: str, key: str | None) -> str | None:
    record = project.lake.read_record(TASK, asset, key)
    return None if record is None else record.data_version
