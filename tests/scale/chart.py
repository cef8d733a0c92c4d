"""What Dagster's Helm chart makes of deploy/kubernetes/values.yaml: the parts that the values decide.

The chart comes from no package registry. Its keys were read from its sources, `helm/dagster` of dagster 1.13.
"""

from __future__ import annotations

from typing import Any

import yaml

from distill_dagster.core.paths import PROJECT_FOLDER

FOLDER = PROJECT_FOLDER / "deploy" / "kubernetes"
POD = "volumes volumeMounts env envConfigMaps envSecrets labels nodeSelector affinity tolerations podSecurityContext "
POD += "securityContext resources readinessProbe livenessProbe startupProbe annotations schedulerName image"
KEYS: dict[str, str] = {
    "": "global generatePostgresqlPasswordSecret postgresql dagster-user-deployments dagsterWebserver dagsterDaemon "
    "runLauncher computeLogManager retention telemetry additionalInstanceConfig imagePullSecrets ingress scheduler "
    "pythonLogs busybox migrate serviceAccount generateCeleryConfigSecret rabbitmq redis flower concurrency",
    "global": "postgresqlSecretName dagsterHome serviceAccountName celeryConfigSecretName",
    "postgresql": "image enabled postgresqlHost postgresqlUsername postgresqlPassword postgresqlDatabase "
    "postgresqlParams postgresqlScheme service",
    "dagster-user-deployments": "enabled enableSubchart imagePullSecrets deployments",
    "dagster-user-deployments.deployments": f"{POD} name port dagsterApiGrpcArgs codeServerArgs "
    "includeConfigInLaunchedRuns",
    "dagsterWebserver": f"{POD} replicaCount nameOverride pathPrefix service workspace deploymentLabels enableReadOnly "
    "dbStatementTimeout dbPoolRecycle logLevel",
    "dagsterDaemon": f"{POD} enabled runCoordinator heartbeatTolerance deploymentLabels runMonitoring runRetries "
    "sensors schedules",
    "runLauncher": "type config",
    "runLauncher.config.k8sRunLauncher": "image imagePullPolicy jobNamespace loadInclusterConfig kubeconfigFile "
    "envConfigMaps envSecrets envVars volumeMounts volumes labels failPodOnRunFailure resources schedulerName "
    "securityContext runK8sConfig",
    "runLauncher.config.k8sRunLauncher.runK8sConfig": "containerConfig podSpecConfig podTemplateSpecMetadata "
    "jobSpecConfig jobMetadata",
}
"""Keys that the chart knows, by path. The chart ignores others, or refuses them."""


def read_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
    return values


def find_unknown_keys(values: dict[str, Any]) -> list[str]:
    """Return the keys that the chart does not know."""
    unknown = []
    for path, names in KEYS.items():
        found: Any = values
        for part in filter(None, path.split(".")):
            found = found[part]
        for block in found if isinstance(found, list) else [found]:
            unknown += [f"{path}.{key}" for key in block if key not in names.split()]
    return unknown


def build_deployment(name: str, block: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """Build the Deployment of a process from its block of the values, with what the chart gives its container."""
    labels = {"component": name}
    image = f"{block['image']['repository']}:{block['image']['tag']}"
    parts = {key: block[key] for key in ("securityContext", "resources", "volumeMounts", "env")}
    probes = {key: block[key] for key in ("readinessProbe", "livenessProbe", "startupProbe") if key in block}
    for probe in probes.values():
        probe.pop("enabled", None)
        if "httpGet" not in probe:
            probe["exec"] = {"command": ["dagster", "api", "grpc-health-check", "-p", "4000"]}
    built = {"name": "dagster", "image": image, "imagePullPolicy": block["image"]["pullPolicy"]} | parts | probes
    built["envFrom"] = [{"secretRef": secret} for secret in block["envSecrets"]]
    spec = {
        "securityContext": block["podSecurityContext"],
        "containers": [built | container],
        "volumes": block["volumes"],
    }
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def build_launcher_config(values: dict[str, Any]) -> dict[str, Any]:
    """Build the configuration of the run launcher that the chart writes to dagster.yaml."""
    block = values["runLauncher"]["config"]["k8sRunLauncher"]
    run = block["runK8sConfig"]
    return {
        "load_incluster_config": block["loadInclusterConfig"],
        "job_namespace": "default",
        "image_pull_policy": block["imagePullPolicy"],
        "service_account_name": "distill-dagster",
        "dagster_home": values["global"]["dagsterHome"],
        "instance_config_map": "distill-dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "security_context": block["securityContext"],
        "fail_pod_on_run_failure": block["failPodOnRunFailure"],
        "run_k8s_config": {
            "pod_spec_config": run["podSpecConfig"],
            "job_spec_config": run["jobSpecConfig"],
        },
    }


def build_container_context(deployment: dict[str, Any]) -> dict[str, Any]:
    """Build what the code location tells the launcher about its runs (`includeConfigInLaunchedRuns`)."""
    return {
        "k8s": {
            "image_pull_policy": deployment["image"]["pullPolicy"],
            "env_config_maps": ["distill-dagster-distill-user-env"],
            "env_secrets": [secret["name"] for secret in deployment["envSecrets"]],
            "volume_mounts": deployment["volumeMounts"],
            "volumes": deployment["volumes"],
            "resources": deployment["resources"],
            "namespace": "default",
            "service_account_name": "distill-dagster-user-deployments",
            "env": deployment["env"],
        }
    }


def build_instance_config(values: dict[str, Any]) -> dict[str, Any]:
    """Build the chart's dagster.yaml, without run launcher."""
    daemon, keep, postgres = values["dagsterDaemon"], values["retention"], values["postgresql"]
    monitoring = daemon["runMonitoring"]
    database = {
        "username": postgres["postgresqlUsername"],
        "password": {"env": "DAGSTER_PG_PASSWORD"},
        "hostname": postgres["postgresqlHost"],
        "db_name": postgres["postgresqlDatabase"],
        "port": postgres["service"]["port"],
    }
    return {
        "storage": {"postgres": {"postgres_db": database}},
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "run_retries": {"enabled": daemon["runRetries"]["enabled"]},
        "sensors": {"use_threads": True, "num_workers": daemon["sensors"]["numWorkers"]},
        "schedules": {"use_threads": True, "num_workers": daemon["schedules"]["numWorkers"]},
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        "retention": {
            "sensor": {"purge_after_days": keep["sensor"]["purgeAfterDays"]},
            "schedule": {"purge_after_days": keep["schedule"]["purgeAfterDays"]},
            "auto_materialize": {"purge_after_days": keep["autoMaterialize"]["purgeAfterDays"]},
        },
        **values["additionalInstanceConfig"],
    }
