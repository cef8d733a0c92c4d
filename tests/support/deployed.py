"""A project of a deployment: deployment.yaml, `distill ui` for its daemon, and commands that launch runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psutil
import yaml

from tests.e2e.project import CommandResult, Project
from tests.e2e.test_ui_process import RunningUi
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import HANG_S, wait_until


@contextmanager
def deploy(project: Project, environment: Mapping[str, str], **blocks: Any) -> Iterator[None]:
    """Run the UI of a project with these blocks in its deployment.yaml. Commands within the block use both."""
    path = project.root / "deployment.yaml"
    path.write_text(yaml.safe_dump(blocks))
    with mock.patch.dict(os.environ, {**environment, "DISTILL_DEPLOYMENT": str(path)}):
        ui = RunningUi(project)
        services: list[psutil.Process] = []
        try:
            wait_until(ui.is_ready, "the UI")
            services = ui.list_services()
            yield
        finally:
            ui.process.send_signal(signal.SIGTERM)
            ui.process.wait(HANG_S)
            for service in services:
                if service.is_running():
                    service.kill()


@contextmanager
def deploy_on_ray(project: Project, cluster: RayCluster, runs: int = 2, **ray: Any) -> Iterator[None]:
    """Run the UI of a project whose runs are jobs of a cluster, so many at the same time."""
    limits = {"launch": True, "at_once": runs, "pools": {"teacher": runs, "training": runs}}
    settings = {"address": cluster.address, "runs": True, **ray}
    with deploy(project, cluster.environment, runs=limits, ray=settings):
        yield


def launch(project: Project, *arguments: str) -> CommandResult:
    """A command in a process of its own, until it ends. What it wrote to stdout is the last line of its log."""
    log = project.root / "command.txt"
    process = project.start(*arguments, log=log)
    code, text = process.wait(HANG_S), log.read_text()
    return CommandResult(code, text[text.rfind("\n{") + 1 :], text)
