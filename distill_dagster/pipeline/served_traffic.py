"""What the log of served requests is used for: drift of a task's current release, and calibrating the next one."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import polars as pl

from distill_dagster.core import progress
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.request_log import LoggedRequest, read_request_log
from distill_dagster.intake.request_sample import select_teacher_sample
from distill_dagster.kinds import get_kind
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.release.registry import Registry
from distill_dagster.release.routing.drift import (
    WINDOW,
    Familiarity,
    TrafficDrift,
    measure_drift,
    measure_familiarity,
)
from distill_dagster.release.routing.exports import RoutingItem, build_traffic_items
from distill_dagster.release.routing.table import ROUTING_FILE, RoutingTable
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import DATASET
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.accepted import get_accepted_path, list_accepted_slices, read_accepted


def read_shadow_shares(releases: Path, task: str) -> dict[int, float]:
    """The share of shadowed requests of each release that has a `routing.json`, by number.

    Raises:
        DistillError: a `routing.json` is malformed.
    """
    registry = Registry(releases)
    folders = {number: registry.get_folder(task) / str(number) for number in registry.list_numbers(task)}
    return {
        number: RoutingTable.read(folder).shadow_share
        for number, folder in folders.items()
        if (folder / ROUTING_FILE).exists()
    }


def list_traffic_items(folder: TaskFolder, log: Path, releases: Path) -> list[RoutingItem]:
    """A random sample of all requests, with the teacher's answers, that no student learned from.

    Args:
        log: the task's folder of logged requests.
    """
    sample = select_teacher_sample(read_request_log(log), read_shadow_shares(releases, folder.name))
    learned = _list_accepted_texts(folder)
    by_text = {normalize_text(one.text): one for one in sample}  # one request per text: the newest
    return build_traffic_items([one for text, one in by_text.items() if text not in learned])


def _list_accepted_texts(folder: TaskFolder) -> set[str]:
    accepted = folder.accepted
    if accepted is None:
        return set()
    slices = [read_accepted(get_accepted_path(accepted, key)) for key in list_accepted_slices(accepted)]
    return {normalize_text(row.text) for rows in slices for row in rows}


def measure_traffic_drift(
    folder: TaskFolder, lake: Lake, models: Path, log: Path, releases: Path
) -> TrafficDrift | None:
    """Compare the newest requests of the current release with what it was calibrated for and trained on.

    Args:
        log: the task's folder of logged requests.

    Returns:
        None if nothing was released, or the current release has no `routing.json`.

    Raises:
        DistillError: a release cannot be read.
        ModelError: there is no model for sentence embeddings.
    """
    registry = Registry(releases)
    number = registry.read_current_number(folder.name)
    if number is None or not (registry.get_folder(folder.name) / str(number) / ROUTING_FILE).exists():
        return None
    newest = deque((one for one in read_request_log(log) if one.release == number), maxlen=2 * WINDOW)
    export = newest[-1].export if newest else ""
    requests = [one for one in newest if one.export == export]
    routing = RoutingTable.read(registry.get_folder(folder.name) / str(number)).get_routing(export)
    familiarity = _measure_familiarity(folder, lake, models, requests) if requests else None
    return measure_drift(requests, routing, folder.task.routing.margin, get_kind(folder.task).are_equal, familiarity)


def _measure_familiarity(
    folder: TaskFolder, lake: Lake, models: Path, requests: list[LoggedRequest]
) -> Familiarity | None:
    if lake.read_record(folder.name, "filtered_dataset") is None:
        return None
    progress.report_progress("comparing requests with the training rows", 0, 0)
    dataset, _ = lake.read(folder.name, "filtered_dataset", None, DATASET)
    train = [get_user_text(messages) for messages in dataset.filter(pl.col("split") == "train")["messages"]]
    held_out = [StudentPrompt.from_messages(build_messages(r)).text for r in [*folder.golden, *folder.dev]]
    return measure_familiarity(
        sorted(train, key=hash_content),
        sorted(held_out, key=hash_content),
        [one.text for one in requests if one.sampled],
        lambda texts: embed_sentences(texts, models),
    )
