"""Whether the process of a run has ended, and how a person is told which process it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

from distill_dagster.core.processes import (
    HOST,
    INITIAL_NAMESPACE,
    describe_process,
    get_process_name,
    is_process_gone,
    name_host,
)
from tests.support.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)"]


def name_of(pid: int) -> str:
    return f"{HOST}:{pid}:{psutil.Process(pid).create_time():.0f}"


def test_a_process_is_gone_once_it_has_ended_or_its_number_belongs_to_another() -> None:
    assert not is_process_gone(get_process_name())
    began = psutil.Process().create_time()
    assert is_process_gone(f"{HOST}:{os.getpid()}:{began - 100:.0f}"), "the number was given to another process since"
    other = subprocess.Popen(SLEEP)
    name = name_of(other.pid)
    assert not is_process_gone(name)
    other.kill()
    wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE, "the end of the process")
    assert is_process_gone(name), "ended, and nobody waited for it"
    other.wait()
    assert is_process_gone(name)


def test_a_process_of_another_host_is_never_called_gone() -> None:
    assert not is_process_gone("elsewhere:1:0")
    assert describe_process("elsewhere:17:0") == "process 17 on elsewhere"


def test_containers_with_the_name_of_their_machine_are_hosts_of_their_own() -> None:
    """With the network of their machine they have its name, but a process id means another process in each."""
    machine = name_host("node", INITIAL_NAMESPACE)
    assert machine == name_host("node", "") == "node"
    names = [machine, *(name_host("node", f"pid:[{inode}]") for inode in (4026532001, 4026532002))]
    assert len(set(names)) == 3
    for name in set(names) - {HOST}:
        assert not is_process_gone(f"{name}:{os.getpid()}:0")


def test_a_suspended_process_is_called_so_with_what_continues_it() -> None:
    other = subprocess.Popen(SLEEP)
    try:
        name = name_of(other.pid)
        assert describe_process(name) == f"process {other.pid}"
        other.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_STOPPED, "the process to stop")
        assert f"kill -CONT {other.pid}" in describe_process(name)
    finally:
        other.kill()
        other.wait()
    assert describe_process(name) == f"process {other.pid}"
