"""The files of deploy/ against the strictest checks that need no cluster: hadolint, Compose, Kubernetes, Dagster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from dagster._config import process_config, validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job, get_user_defined_k8s_config
from dagster_ray.kuberay.configs import RayClusterSpec
from kubernetes.client import ApiClient

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tasks.deployment_file import DEPLOYMENT_VARIABLE, read_deployment
from tests.scale import chart
from tests.scale.compose import COMPOSE_FILE, SET, read_compose

pytestmark = pytest.mark.scale
DEPLOY = PROJECT_FOLDER / "deploy"
KUBERNETES = ("1.31", "1.37")
"""The oldest version that still gets fixes, and the newest whose schemas are installed."""


def validate(manifest: dict[str, Any]) -> None:
    """Check a manifest against the schemas of Kubernetes, which know every key."""
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_dockerfile_passes_hadolint_and_copies_what_the_ignore_file_lets_through() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for name in line.split()[:-1]}
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied == allowed
    assert all((PROJECT_FOLDER / name).exists() for name in copied)
    assert os.access(DEPLOY / "bin" / "dagster-webserver", os.X_OK)


def test_compose_file_is_valid_and_every_service_is_limited_and_checked() -> None:
    compose = read_compose(SET)
    PyCompose.from_yaml(yaml.safe_dump(compose)).validate()
    assert_misspelt_key_is_found(compose)
    with pytest.raises(AssertionError, match="POSTGRES_PASSWORD must be set"):
        read_compose({})
    assert not any(secret in COMPOSE_FILE.read_text() for secret in SET.values())
    for name, service in compose["services"].items():
        assert re.search(r":[A-Za-z]*\.?\d", service["image"]), f"{name}: the image has no version"
        if name in ("bucket", "distill"):
            continue
        assert service["healthcheck"], name
        assert service["restart"] == "unless-stopped", name
        assert {"limits", "reservations"} == set(service["deploy"]["resources"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def assert_misspelt_key_is_found(compose: dict[str, Any]) -> None:
    daemon = {**compose["services"]["daemon"], "stop_grace": "60s"}
    with pytest.raises(ValueError, match="stop_grace"):
        PyCompose.from_yaml(yaml.safe_dump({**compose, "services": {"daemon": daemon}}))


@pytest.mark.parametrize("name", ["compose/deployment.yaml", "kubernetes/cluster.yaml"])
def test_switches_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = DEPLOY / name
    if name.startswith("kubernetes"):
        path = tmp_path / "deployment.yaml"
        path.write_text(read_cluster()["ConfigMap"]["data"]["deployment.yaml"])
    monkeypatch.setenv(DEPLOYMENT_VARIABLE, str(path))
    monkeypatch.delenv("DISTILL_LAKE_URL", raising=False)
    deployment = read_deployment()
    assert deployment.runs.launch
    assert deployment.runs.workspace
    assert deployment.lake.url == "s3://distill/lake"


def read_cluster() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((chart.FOLDER / "cluster.yaml").read_text())}


def test_manifests_are_valid() -> None:
    for manifest in read_cluster().values():
        validate(manifest)
    values = chart.read_values()
    assert chart.find_unknown_keys(values) == []
    [code] = values["dagster-user-deployments"]["deployments"]
    command = {"args": ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", str(code["port"])]}
    validate(chart.build_deployment("code-location", code, {"args": [*command["args"], *code["codeServerArgs"]]}))
    web = values["dagsterWebserver"]
    validate(chart.build_deployment("webserver", web, {"ports": [{"containerPort": web["service"]["port"]}]}))
    validate(chart.build_deployment("daemon", values["dagsterDaemon"], {}))


def test_a_misspelt_key_is_found() -> None:
    """The checks above can fail."""
    values = chart.read_values()
    values["dagsterDaemon"]["runMonitor"] = {}
    assert chart.find_unknown_keys(values) == ["dagsterDaemon.runMonitor"]
    web = chart.build_deployment("webserver", values["dagsterWebserver"], {"resource": {}})
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        validate(web)


def test_charts_instance_is_valid_for_dagster() -> None:
    values = chart.read_values()
    config = chart.build_instance_config(values)
    validated = validate_config(dagster_instance_config_schema(), config)
    assert validated.success, validated.errors
    launcher = process_config(K8sRunLauncher.config_type(), chart.build_launcher_config(values))
    assert launcher.success, launcher.errors


@pytest.mark.parametrize("kind", ["shared", "slices", "students", "assistants"])
def test_job_of_a_run_asks_for_what_it_needs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job that the launcher of these values makes for a run with the tags of the deployment."""
    path = tmp_path / "deployment.yaml"
    path.write_text(read_cluster()["ConfigMap"]["data"]["deployment.yaml"])
    monkeypatch.setenv(DEPLOYMENT_VARIABLE, str(path))
    tags = dg.define_asset_job("one", tags=dict(read_deployment().runs.tags[kind])).tags  # type: ignore[index]
    assert tags is not None
    values = chart.read_values()
    [code] = values["dagster-user-deployments"]["deployments"]
    config = process_config(K8sRunLauncher.config_type(), chart.build_launcher_config(values)).value
    assert config is not None
    monkeypatch.setattr("dagster_k8s.launcher.load_kubernetes_config", lambda **_: None)
    launcher = K8sRunLauncher(**config)
    context = K8sContainerContext.create_for_run(dg.DagsterRun(job_name="one"), launcher, include_run_tags=False)
    context = context.merge(K8sContainerContext.create_from_config(chart.build_container_context(code)))
    context = context.merge(K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(tags)))
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(
            job_image="registry.example.com/distill-dagster:0.1.0", run_launcher=launcher
        ),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        user_defined_k8s_config=context.run_k8s_config,
    )
    manifest = ApiClient().sanitize_for_serialization(job)
    validate(manifest)
    pod = manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    has_gpu = kind in ("students", "assistants")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == has_gpu
    assert ("nodeSelector" in pod) == has_gpu
    assert container["image"].endswith("0.1.0-gpu" if has_gpu else "0.1.0")
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert {"name": "home", "mountPath": "/data"} in container["volumeMounts"]


def test_ray_cluster_has_known_fields_and_valid_pods() -> None:
    cluster = yaml.safe_load((chart.FOLDER / "raycluster.yaml").read_text())
    spec = cluster["spec"]
    known = {re.sub(r"_(\w)", lambda found: found[1].upper(), name) for name in RayClusterSpec.model_fields}
    assert set(spec) <= known
    assert spec["authOptions"]["mode"] == "token"
    pins = (PROJECT_FOLDER / "requirements" / "constraints.txt").read_text()
    assert f"\nray=={spec['rayVersion']}\n" in pins
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]})
