"""Paths of the project folder, the task folders, and everything generated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

PROJECT_FOLDER = Path(__file__).resolve().parent.parent.parent
REPORTS_URL, DATA_DOCS_URL = "/reports", "/data-docs"
"""Where the UI serves the folders `reports` and `data_docs`."""


def build_report_url(path: Path, reports: Path) -> str:
    """Build the address of a file of the folder `reports`, without host and port: the UI serves it on its own."""
    return f"{REPORTS_URL}/{quote(path.relative_to(reports).as_posix())}"


def get_tuning_folder(reports: Path, task: str) -> Path:
    """The folder of the pages about tuning: `reports/<task>/_tuning/<student>.html`. No student has this name."""
    return reports / task / "_tuning"


@dataclass(frozen=True)
class Home:
    """The folders of one installation.

    `DISTILL_HOME` moves everything generated (lake, store, models, instance, reports, releases, training, tuning) and
    the inbox; `DISTILL_TASKS` moves the task folders. By default both are in the project's `data/`.
    """

    root: Path
    tasks: Path

    @classmethod
    def from_env(cls) -> Home:
        """The installation that the environment variables, or the defaults, describe."""
        root = Path(os.environ.get("DISTILL_HOME") or PROJECT_FOLDER / "data").expanduser().resolve()
        tasks = Path(os.environ.get("DISTILL_TASKS") or PROJECT_FOLDER / "data" / "tasks").expanduser().resolve()
        return cls(root=root, tasks=tasks)

    @property
    def lake(self) -> Path:
        """Tables and adapters of every task."""
        return self.root / "lake"

    @property
    def lake_cache(self) -> Path:
        """Local copies of tables and adapters, if the lake is in an object store."""
        return self.root / "lake_cache"

    @property
    def store(self) -> Path:
        """The completion store, unless a variable moves it to another database."""
        return self.root / "store"

    @property
    def batches(self) -> Path:
        """Files of requests for a batch runner, and its answers: `batches/<teacher>/`."""
        return self.root / "batches"

    @property
    def models(self) -> Path:
        """Converted and downloaded models."""
        return self.root / "models"

    @property
    def reports(self) -> Path:
        """Reports: `reports/<task>/<student>/`."""
        return self.root / "reports"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' Data Docs of each task: `data_docs/<task>/index.html`."""
        return self.root / "data_docs"

    @property
    def inbox(self) -> Path:
        """Files with new prompts: `inbox/<task>/*.jsonl`."""
        return self.root / "inbox"

    @property
    def accepted(self) -> Path:
        """Prompts that came through the inbox: `accepted/<task>/<slice>.jsonl`."""
        return self.root / "accepted"

    @property
    def requests(self) -> Path:
        """The log of served requests: `requests/<task>/requests-*.jsonl`, and `feedback.jsonl` beside them."""
        return self.root / "requests"

    @property
    def alerts(self) -> Path:
        """Files about failed runs."""
        return self.root / "alerts"

    @property
    def locks(self) -> Path:
        """Lock files."""
        return self.root / "locks"

    @property
    def tuning(self) -> Path:
        """The trials of `distill tune`: `tuning/<task>/<student>.journal`."""
        return self.root / "tuning"

    @property
    def training(self) -> Path:
        """Checkpoints and TensorBoard files of trainings: `training/<task>/<asset>/<student>/`."""
        return self.root / "training"

    @property
    def releases(self) -> Path:
        """Released students: `releases/<task>/<number>/`, and `releases/<task>/current`."""
        return self.root / "releases"

    @property
    def instance(self) -> Path:
        """Dagster's instance."""
        return self.root / "instance"

    def get_report_folder(self, task: str, student: str) -> Path:
        """The folder of one student's report."""
        return self.reports / task / student
