"""A task whose lake is in an object store: what one machine made, another one has, and goes on with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.project import GROUP, TASK, Project, create_project
from tests.support.object_store import BUCKET, CREDENTIALS, run_object_store
from tests.support.provider import FakeProvider

pytestmark = [pytest.mark.scale, pytest.mark.slow]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty lake, as the environment of all commands says it."""
    with run_object_store() as server:
        url = f"s3://{BUCKET}/deployment"
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url, "DISTILL_LAKE_URL": url}.items():
            monkeypatch.setenv(name, value)
        yield url


def test_another_machine_goes_on_with_what_is_in_the_lake(tmp_path: Path, url: str, provider: FakeProvider) -> None:
    one, other = create_project(tmp_path / "one", provider.url), Project(tmp_path / "other")
    shutil.copytree(one.root / "tasks", other.root / "tasks")
    ended = one.run("--student", "one")
    assert ended.code == 0, ended.err
    for shared in ("instance", "store"):  # in a deployment these are databases that both machines use
        shutil.copytree(one.home / shared, other.home / shared)

    states = other.distill("status", TASK, "--json").json
    assert {name: count for name, count in states["counts"].items() if count} == {"fresh": states["counts"]["fresh"]}
    assert states["counts"]["fresh"] > 10
    asked = len(provider.requests)
    ended = other.distill("refresh", TASK, "--json")
    assert (ended.code, ended.json["runs"], len(provider.requests)) == (0, [], asked)
    report = other.distill("report", TASK, "--student", "one", "--json").json["reports"]["one"]["report"]
    assert Path(report).is_relative_to(other.home)
    assert Path(report).read_bytes() == (one.home / "reports" / TASK / "one" / "report.html").read_bytes()

    for machine in (one, other):
        machine.change_slice("web", lambda value: value["seeds"].append("where is the refund form"))
    ended = other.distill("backfill", TASK, "--json")
    assert ended.code == 0, ended.err
    assert {asset: keys for asset, keys in ended.partitions.items() if keys} == {asset: ["web"] for asset in GROUP}
    statuses = [machine.distill("status", TASK, "--json").json["artifacts"] for machine in (one, other)]
    assert statuses[0] == statuses[1]
    assert next(found["name"] for found in statuses[0] if found["state"] != "fresh") == "filtered_dataset"
    cleaned = one.distill("clean-lake", "--older-than-days", "0", "--json").json
    assert cleaned["removed"] == 0  # all are younger than an hour
    assert cleaned["kept"] > 15
    assert not any((machine.home / "lake").exists() for machine in (one, other))
