"""Releases that other machines made, if the lake is in an object store. In a local lake these functions do nothing."""

from __future__ import annotations

from distill_dagster.release.registry import MANIFEST_FILE, Registry
from distill_dagster.tables.lake import Lake


def pull_releases(lake: Lake, registry: Registry, task: str) -> None:
    """Get the manifests of a task's releases and which of them is current, so that the registry knows all of them."""
    if (shared := lake.share_releases(task, registry.get_folder(task), MANIFEST_FILE)) is not None:
        shared.pull()


def complete_release(lake: Lake, registry: Registry, task: str, number: int | None = None) -> None:
    """Get the files of a release that are not here; by default of the current one. Call `pull_releases` before."""
    if (shared := lake.share_releases(task, registry.get_folder(task), MANIFEST_FILE)) is not None:
        number = registry.read_current_number(task) if number is None else number
        if number is not None:
            shared.complete(number)


def push_new_release(lake: Lake, registry: Registry, task: str, number: int) -> None:
    """Give a release that was just made to other machines, as the current one.

    Raises:
        DistillError: another machine has made a release of this number meanwhile.
    """
    if (shared := lake.share_releases(task, registry.get_folder(task), MANIFEST_FILE)) is not None:
        shared.push(number)


def push_current_number(lake: Lake, registry: Registry, task: str, number: int) -> None:
    """Tell other machines which release is current."""
    if (shared := lake.share_releases(task, registry.get_folder(task), MANIFEST_FILE)) is not None:
        shared.use(number)
