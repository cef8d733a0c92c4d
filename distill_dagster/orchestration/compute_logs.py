"""Keep what a step writes to stdout and stderr in files, for the UI, and off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._config.config_schema import UserConfigSchema
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster._utils import ensure_file, touch_file

from distill_dagster.core.paths import Home


class QuietComputeLogManager(LocalComputeLogManager):
    """Dagster's own manager without the copy to the terminal.

    For the copy Dagster starts four processes per run. They write into the progress display, and each prints a
    traceback at Ctrl-C. The files are where Dagster's default puts them, so the UI shows them, old ones too.
    """

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> QuietComputeLogManager:
        instance = os.environ.get("DAGSTER_HOME") or Home.from_env().instance
        return cls(str(Path(instance) / "storage"), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        paths = [self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[io_type]) for io_type in ComputeIOType]
        for path in paths:
            ensure_file(path)
        with redirect_to_file(sys.stdout, paths[0]), redirect_to_file(sys.stderr, paths[1]):
            yield CapturedLogContext(log_key)
        touch_file(self.complete_artifact_path(log_key))
