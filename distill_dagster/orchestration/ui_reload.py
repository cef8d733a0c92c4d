"""Make a running UI load a task that was added, as its button Reload does."""

from __future__ import annotations

import fcntl
import json
import os
import urllib.request

from distill_dagster.core.paths import Home
from distill_dagster.orchestration.in_process import CODE_LOCATION
from distill_dagster.orchestration.instance import open_instance
from distill_dagster.orchestration.partitions import sync_task
from distill_dagster.tasks import TaskFolder

HOST = "127.0.0.1"
"""The UI listens on this address alone."""
RELOAD_S = 120
"""Seconds that the code location may take to load."""
_QUERY = """
mutation Reload($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) {
    __typename
    ... on WorkspaceLocationEntry { locationOrLoadError { __typename } }
  }
}
"""


def find_running_ui(home: Home) -> str | None:
    """The address of the UI of this project, or None if none is running."""
    try:
        lock = os.open(home.locks / "ui", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # its processes hold the lock
        try:
            return f"http://{HOST}:{int(json.loads(os.read(lock, 1000))['port'])}"
        except (ValueError, KeyError, TypeError):
            return None
    finally:
        os.close(lock)
    return None


def load_task_in_ui(home: Home, folder: TaskFolder) -> str | None:
    """Make the running UI load a new task with its slices. Returns its address, or None if it did not work."""
    address = find_running_ui(home)
    if address is None:
        return None
    with open_instance(home) as instance:
        sync_task(folder, instance)
    return address if reload_code_location(address) else None


def reload_code_location(address: str) -> bool:
    """Do what *Reload definitions* in the UI does. Returns False if it failed."""
    body = json.dumps({"query": _QUERY, "variables": {"location": CODE_LOCATION}}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=RELOAD_S) as response:
            answer = json.load(response)
    except (OSError, ValueError):
        return False
    found = answer["data"]["reloadRepositoryLocation"] if isinstance(answer.get("data"), dict) else {}
    return (found.get("locationOrLoadError") or {}).get("__typename") == "RepositoryLocation"
