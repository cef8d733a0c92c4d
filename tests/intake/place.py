"""A task of its own for a test of imports, and files to import into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.intake.import_files import import_file
from distill_dagster.intake.import_options import ImportOptions, ImportSummary
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import ImportTarget, TaskFolder
from distill_dagster.tasks.accepted import get_accepted_path, read_accepted
from tests.support.task import jsonl, write_small_task


class Place:
    """A task, and files to import into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox = root, root / "inbox" / "shop_mail"
        self.path = write_small_task(root).path

    @property
    def folder(self) -> TaskFolder:
        return TaskFolder(self.path, self.root / "accepted" / "shop_mail")

    def file(self, name: str, content: str | list[Any]) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            assert isinstance(content, list)
            pl.DataFrame(content).write_parquet(path)
        else:
            path.write_text(jsonl(content) if isinstance(content, list) else content)
        return path

    def load(self, path: Path, target: ImportTarget, **options: Any) -> ImportSummary:
        return import_file(self.folder, path, ImportOptions(target, **options), self.inbox)

    def accepted(self, key: str) -> list[str]:
        return [row.text for row in read_accepted(get_accepted_path(self.root / "accepted" / "shop_mail", key))]

    def errors(self) -> list[str]:
        return [str(p) for p in check_task_folder(self.folder) if p.severity == "error"]

    def golden_rows(self) -> list[dict[str, Any]]:
        """The rows of golden.jsonl that were imported."""
        rows = [json.loads(line) for line in (self.path / "golden.jsonl").read_text().split("\n") if line]
        return [row for row in rows if "source" in row]
