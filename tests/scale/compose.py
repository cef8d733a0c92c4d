"""The services of deploy/compose/compose.yaml as processes of this machine: same commands, variables and checks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill_dagster.core.paths import PROJECT_FOLDER
from tests.support.waiting import HANG_S, wait_until

COMPOSE_FILE = PROJECT_FOLDER / "deploy" / "compose" / "compose.yaml"
SET = {"POSTGRES_PASSWORD": "hush-db", "OBJECT_STORE_USER": "hush-user", "OBJECT_STORE_PASSWORD": "hush-store"}


def interpolate(text: str, values: dict[str, str]) -> str:
    """Replace `${NAME:-default}` and `${NAME:?message}` as Compose does."""

    def replace(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name in values:
            return values[name]
        assert kind == "-", f"{name} must be set: {rest}"
        return rest

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", replace, text)


def read_compose(values: dict[str, str]) -> dict[str, Any]:
    """Read the file with its variables and merged mappings."""
    read: dict[str, Any] = yaml.safe_load(interpolate(COMPOSE_FILE.read_text(), values))
    return read


@dataclass
class ComposedProcess:
    """A service of the Compose file as a process. `replaced` maps addresses of containers to those of this machine."""

    name: str
    service: dict[str, Any]
    replaced: dict[str, str]
    environment: dict[str, str]
    folder: Path

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.name}.txt"
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again."""
        entry = self.service.get("entrypoint", ["python", "-m", "distill_dagster.orchestration.container"])
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                list(map(self._replace, [*entry, *self.service["command"]])),
                env=self.build_environment(),
                cwd=PROJECT_FOLDER,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def is_healthy(self) -> bool:
        """Whether the service's own health check passes."""
        assert self.process.poll() is None, self.log.read_text()
        kind, *command = self.service["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            list(map(self._replace, command)), env=self.build_environment(), capture_output=True, check=False
        )
        return done.returncode == 0

    def wait_until_healthy(self) -> None:
        wait_until(self.is_healthy, f"the health check of {self.name}", pause_s=0.5)

    def stop(self) -> int:
        """Stop it as Docker does, and wait. Returns the exit code."""
        self.process.send_signal(getattr(signal, self.service.get("stop_signal", "SIGTERM")))
        return self.process.wait(HANG_S)

    def kill(self) -> None:
        """Kill what is left of its session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(HANG_S)

    def _replace(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def build_environment(self) -> dict[str, str]:
        binaries = f"{PROJECT_FOLDER / 'deploy' / 'bin'}:{Path(sys.executable).parent}"
        declared = {name: self._replace(str(value)) for name, value in self.service["environment"].items()}
        image = {"DAGSTER_HOME": f"{self.environment['DISTILL_HOME']}/instance"}  # as the Dockerfile sets it
        path = f"{binaries}:{os.environ['PATH']}"
        return {**os.environ, **image, **declared, **self.environment, "PATH": path}
