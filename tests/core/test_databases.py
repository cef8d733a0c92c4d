"""URLs of the databases: the variables that set them, their driver, and messages without the password."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.core import database_urls
from distill_dagster.core.database_urls import POSTGRES_VARIABLE, STORE_VARIABLE
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.definitions import build_definitions
from distill_dagster.orchestration import prepare_instance_folder
from tests.support.task import write_small_task

PASSWORD = "s3cret"
URL = f"postgresql://me:{PASSWORD}@127.0.0.1:1/answers"
WITH_DRIVER = URL.replace("postgresql:", "postgresql+psycopg2:")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home for the test, with none of the variables set."""
    for name in (POSTGRES_VARIABLE, STORE_VARIABLE, "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes changes of the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISTILL_TASKS", str(tmp_path / "tasks"))
    return Home.from_env()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (URL, WITH_DRIVER),
        (URL.replace("postgresql:", "postgres:"), WITH_DRIVER),
        (WITH_DRIVER, WITH_DRIVER),
        ("postgresql+psycopg://me@host/x", "postgresql+psycopg://me@host/x"),
        ("sqlite:////tmp/postgresql://x.db", "sqlite:////tmp/postgresql://x.db"),
        ("", ""),
    ],
)
def test_the_installed_driver_is_added_to_a_url_without_one(given: str, used: str) -> None:
    assert database_urls.add_driver(given) == used


def test_one_variable_moves_both_databases_and_another_the_store_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (database_urls.get_postgres_url(), database_urls.get_store_url()) == ("", "")
    monkeypatch.setenv(POSTGRES_VARIABLE, URL)
    assert (database_urls.get_postgres_url(), database_urls.get_store_url()) == (WITH_DRIVER, WITH_DRIVER)
    monkeypatch.setenv(STORE_VARIABLE, "sqlite:///answers.db")
    assert (database_urls.get_postgres_url(), database_urls.get_store_url()) == (WITH_DRIVER, "sqlite:///answers.db")
    monkeypatch.setenv(POSTGRES_VARIABLE, " ")
    assert (database_urls.get_postgres_url(), database_urls.find_store_variable()) == ("", STORE_VARIABLE)


def test_the_instance_file_names_the_variable_and_is_restored_without_it(
    surroundings: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, template = surroundings.instance / "dagster.yaml", (PROJECT_FOLDER / "dagster.yaml").read_text()
    prepare_instance_folder(surroundings)
    assert copied.read_text() == template
    monkeypatch.setenv(POSTGRES_VARIABLE, URL)
    prepare_instance_folder(surroundings)
    assert PASSWORD not in copied.read_text()
    added = {"storage": {"postgres": {"postgres_url": {"env": POSTGRES_VARIABLE}}}}
    assert yaml.safe_load(copied.read_text()) == yaml.safe_load(template) | added
    assert os.environ[POSTGRES_VARIABLE] == WITH_DRIVER, "Dagster reads the variable itself"
    monkeypatch.delenv(POSTGRES_VARIABLE)
    prepare_instance_folder(surroundings)
    assert copied.read_text() == template
    assert [path.name for path in surroundings.instance.iterdir()] == ["dagster.yaml"]


def test_the_users_own_instance_is_not_changed(
    surroundings: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(POSTGRES_VARIABLE, URL)
    prepare_instance_folder(surroundings)
    assert not (tmp_path / "dagster.yaml").exists()
    assert not surroundings.instance.exists()


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("given", [URL, WITH_DRIVER, URL.replace("s3cret", "a%40b$c")])
def test_env_sets_the_driver_without_printing_the_password(
    shell: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, given)
    printed = CliRunner().invoke(app, ["env"], catch_exceptions=False).stdout
    assert "me:" not in printed
    script = [shell, "-c", f'eval "$1"; printenv {POSTGRES_VARIABLE}', shell, printed]
    done = subprocess.run(script, env={POSTGRES_VARIABLE: given}, capture_output=True, text=True, check=True)
    assert done.stdout == database_urls.add_driver(given) + "\n"


def test_env_prints_no_database_if_no_variable_is_set() -> None:
    printed = CliRunner().invoke(app, ["env"], catch_exceptions=False).stdout
    assert POSTGRES_VARIABLE not in printed
    assert STORE_VARIABLE not in printed


@pytest.mark.parametrize("name", [POSTGRES_VARIABLE, STORE_VARIABLE])
def test_the_ui_shows_the_name_of_the_variable_not_its_value(
    name: str, surroundings: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, URL)
    write_small_task(tmp_path)
    shown = serialize_value(RepositorySnap.from_def(build_definitions(surroundings).get_repository_def()))
    assert name in shown
    assert PASSWORD not in shown
    assert json.loads(shown)


@pytest.mark.parametrize("name", [POSTGRES_VARIABLE, STORE_VARIABLE])
@pytest.mark.parametrize(
    "given",
    [
        "nonsense",
        "postgresql://me:s3cret@127.0.0.1:port/answers",
        "postgresql://me:s3cret@more@127.0.0.1/answers",
        "nosuch://me:s3cret@127.0.0.1/answers",
    ],
)
def test_a_malformed_url_is_refused_without_the_password(
    name: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, given)
    result = CliRunner().invoke(app, ["ui"], catch_exceptions=False)
    assert result.exit_code == 1
    assert name in result.stderr
    assert "%40 for @" in result.stderr or "make setup-postgres" in result.stderr
    assert PASSWORD not in result.output
    assert "more@" not in result.output


def test_a_missing_driver_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setitem(sys.modules, "dagster_postgres", None)
    for name in (POSTGRES_VARIABLE, STORE_VARIABLE):
        with mock.patch.dict(os.environ, {name: URL}):
            result = CliRunner().invoke(app, ["ui"], catch_exceptions=False)
        assert result.exit_code == 1
        assert f"{name} names a PostgreSQL database" in result.stderr
        assert "make setup-postgres" in result.stderr
        assert PASSWORD not in result.output


def test_dagster_accepts_every_section_of_dagster_yaml(tmp_path: Path) -> None:
    """Loading the file checks every section: an unknown key is an error."""
    shutil.copy(PROJECT_FOLDER / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 1
        assert concurrency.pool_config.pool_granularity is not None
        assert concurrency.pool_config.pool_granularity.value == "op"
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 2
        assert (instance.run_retries_enabled, instance.run_retries_max_retries) == (True, 0)
        assert instance.run_monitoring_enabled
        assert instance.freshness_enabled, "freshness policies are evaluated without a section of their own"
