"""Tags of deployment.yaml are on the runs of the jobs that it names, and on no others."""

from __future__ import annotations

import json
from pathlib import Path

from assets import build_task_definitions
from distill_dagster.config.deployment import RunsSpec
from distill_dagster.orchestration import RunSummary
from tests.support.task import write_small_task


def test_each_kind_of_job_has_its_tags(tmp_path: Path) -> None:
    student = {"model": "all-minilm-l6-v2", "architecture": "encoder"}
    folder = write_small_task(tmp_path, "shop_mail", students={"tiny": None, "one": student}, default_student="one")
    gpu = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}
    runs = RunsSpec(tags={"students": {"dagster-k8s/config": gpu, "team": "search"}, "shared": {"team": "data"}})
    jobs = build_task_definitions(folder, lambda *_: RunSummary(), runs.tags).jobs or ()
    tags = {job.name: job.tags or {} for job in jobs}
    assert json.loads(tags["shop_mail_students"]["dagster-k8s/config"]) == gpu
    assert tags["shop_mail_students"]["team"] == "search"
    assert tags["shop_mail_release"]["team"] == "search", "a release measures a student, so it gets a GPU too"
    assert tags["shop_mail_shared"]["team"] == "data"
    assert "team" not in tags["shop_mail_slices"]
