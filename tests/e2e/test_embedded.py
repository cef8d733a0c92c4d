"""The teacher that needs no account and the student that shares its base: one tiny run, cut off from the network."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest

from distill_dagster.tables.schemas import PROMPTS, SCORED
from distill_dagster.teacher.providers import embedded
from tests.e2e.project import SEEDS, TASK, CommandResult, Project, create_project
from tests.support.task import TEXTS, jsonl

KEY = "planted-key-of-the-embedded-server-0123456789"
PLANTED = "<script>alert('planted')</script>"
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE),
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}
SMOLLM2: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "architecture": "causal_lm",
    "prompt": "plain",
    "dtype": "bfloat16",
    "epochs": 1,
    "max_tokens": 64,
    "lora": {"rank": 4},
}


class Embedded:
    """The run, the addresses that any socket of the process was connected to, and the server's endpoint."""

    def __init__(self, project: Project, models: Path) -> None:
        self.project = project
        self.connected: set[str] = set()
        self.bases: list[str] = []
        project.home.mkdir(parents=True)
        (project.home / "models").symlink_to(models)

    def run(self) -> CommandResult:
        return self.distill("run", TASK, "--json")

    def distill(self, *arguments: str) -> CommandResult:
        """A command without a network, with a planted key for the server."""
        start, connect = embedded.EmbeddedServer.start, socket.socket.connect

        def noted_start(server: embedded.EmbeddedServer) -> Any:
            endpoint = start(server)
            assert endpoint.api_key == KEY
            self.bases.append(endpoint.api_base or "")
            return endpoint

        def noted_connect(self_: socket.socket, address: Any) -> None:
            if self_.family in (socket.AF_INET, socket.AF_INET6):
                self.connected.add(address[0])
            connect(self_, address)

        with (
            mock.patch.dict(os.environ, OFFLINE),
            mock.patch.object(secrets, "token_urlsafe", return_value=KEY),
            mock.patch.object(embedded.EmbeddedServer, "start", noted_start),
            mock.patch.object(socket.socket, "connect", noted_connect),
        ):
            return self.project.distill(*arguments)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> tuple[Embedded, CommandResult]:
    """Two labels, two slices of two seeds, two golden rows; a golden row, a dev row and a label carry HTML."""
    labels = ["refund", f"login {PLANTED}"]
    project = create_project(
        tmp_path_factory.mktemp("embedded"),
        "",
        teacher={
            "model": "embedded/smollm2-135m-instruct",
            "api_base": None,
            "timeout_s": 300,
            "max_retries": 2,
            "top_logprobs": 300,
            "calibration": "examples",
            "calibration_items": 1,
        },
        labels=[{"name": name, "description": f"is about {name}"} for name in labels],
        students={"one": None, "two": None, "smollm2": SMOLLM2},
        default_student="smollm2",
        curation={"min_rows": 2, "validation_share": 0.0},
    )
    for key in SEEDS:
        project.change_slice(key, lambda value: value.update(seeds=[value["seeds"][0], value["seeds"][4]]))
    texts = {"refund": TEXTS["refund"], labels[1]: [f"{t} {PLANTED}" for t in TEXTS["login"]]}
    for file, words, count in (("examples", "example:", 3), ("dev", "tried:", 1), ("golden", "held out:", 1)):
        rows = [
            {"id": f"{file}-{n}-{i}", "text": f"{words} {text}", "label": label}
            for n, (label, some) in enumerate(texts.items())
            for i, text in enumerate(some[:count])
        ]
        (project.folder / f"{file}.jsonl").write_text(jsonl(rows))
    one = Embedded(project, models_folder)
    return one, one.run()


def test_the_run_is_complete_and_never_left_this_machine(ran: tuple[Embedded, CommandResult]) -> None:
    one, ended = ran
    assert ended.code == 0, ended.err
    assert ended.partitions["eval_report"] == ["smollm2"]
    assert ended.json["teacher_calls"] == one.project.stored_answers() > 0
    assert one.connected == {"127.0.0.1"}
    report = (one.project.home / "reports" / TASK / "smollm2" / "metrics.json").read_text()
    assert "are the same model before training" in report, "the reader learns that nothing larger was distilled"


def test_a_local_teacher_is_not_said_to_cost_an_unknown_sum(ran: tuple[Embedded, CommandResult]) -> None:
    one, _ = ran
    spent = one.project.distill("ledger", TASK).out
    assert "│ local" in spent
    assert "unknown" not in spent
    again = one.project.distill("run", TASK, "--student", "smollm2", "--slice", "shop")
    assert "cost" not in again.out
    assert "cost at most nothing, the teacher is local;" in one.project.distill("estimate", TASK).out


def test_the_server_is_gone_afterwards(ran: tuple[Embedded, CommandResult]) -> None:
    one, _ = ran
    assert len(one.bases) == 1, "one server for all the runs of one command"
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/v1", one.bases[0])
    assert found is not None
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(found[1])), timeout=5):
        pass
    assert embedded.EMBEDDED_SERVERS._servers == {}


def test_no_file_and_no_output_holds_the_key(ran: tuple[Embedded, CommandResult]) -> None:
    """Invariant 6: not the store, not the events and logs of Dagster, not the records, not the report."""
    one, ended = ran
    files = [path for path in one.project.home.rglob("*") if path.is_file() and "models" not in path.parts]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in ended.out + ended.err


def test_html_in_tickets_and_labels_is_escaped_in_the_report(ran: tuple[Embedded, CommandResult]) -> None:
    """Invariant 9."""
    one, _ = ran
    html = (one.project.home / "reports" / TASK / "smollm2" / "report.html").read_text()
    assert "&lt;script&gt;alert" in html, "the planted text is shown"
    scripts = re.findall(r"<script[^>]*>(.*?)</script", html, re.DOTALL | re.IGNORECASE)
    assert html.lower().count("<script") == len(scripts) == 1, "the page's own, which filters the table of items"
    assert "alert" not in scripts[0]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", html), "nothing is fetched by whoever opens it"


def test_what_a_recording_does_not_know_is_asked_of_the_embedded_teacher(tmp_path: Path, models_folder: Path) -> None:
    """As in the bundled task: no server starts while the recording knows everything, and an edit works offline."""
    project = create_project(tmp_path / "cascade", "")
    own = {"model": "embedded/smollm2-135m-instruct", "api": "text", "soft_labels": "logprobs", "max_tokens": 1}
    own |= {"boost_labels": True, "few_shot": {"nearest": 2, "draws": 1}, "timeout_s": 300}
    recorded = {"model": "replay/logs", "terms": {"acknowledged": True}}
    project.change_task(teacher=None, teachers={"recorded": recorded, "embedded": own}, cascade={})
    texts = [text for seeds in SEEDS.values() for text in seeds]
    for name in ("dev", "golden"):
        texts += [json.loads(line)["text"] for line in (project.folder / f"{name}.jsonl").read_text().splitlines()]
    answers = [{"text": text, "label": "login", "probs": {"login": 0.9, "refund": 0.1}} for text in texts]
    (project.folder / "recorded").mkdir()
    (project.folder / "recorded" / "logs.jsonl").write_text(jsonl(answers))
    one = Embedded(project, models_folder)
    ended = one.distill("backfill", TASK, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["teacher_calls"], one.bases) == (0, [])
    assert len(ended.partitions["scored_completions"]) == len(SEEDS)

    project.change_slice("shop", lambda value: value["seeds"].append("my new phone logs me out"))
    planned = one.distill("backfill", TASK, "--dry-run", "--json").json
    assert (planned["partitions"], planned["teacher_calls"]) == ({"teacher_completions": ["shop"]}, 1)
    ended = one.distill("backfill", TASK, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["teacher_calls"] == 1
    assert len(one.bases) == 1, "the server started for the one prompt"
    assert embedded.EMBEDDED_SERVERS._servers == {}
    assert ended.partitions["teacher_completions"] == ["shop"]
    scored = project.lake.read(TASK, "scored_completions", "shop", SCORED)[0]
    assert dict(scored["teacher"].value_counts().iter_rows()) == {"recorded": 6, "embedded": 1}
    assert project.record("teacher_completions", "shop").missing_rows == 0
    assert "no slice to backfill" in one.distill("backfill", TASK).out


def test_it_imagines_prompts_too(tmp_path: Path, models_folder: Path) -> None:
    """However weak they are: texts that are new within the slice, durable, and from this machine alone."""
    settings = {"model": "embedded/smollm2-135m-instruct", "api_base": None, "timeout_s": 300}
    imagine = {"per_request": 2, "max_tokens": 80, "temperature": 0.7, "axes": {"style": ["polite", "short"]}}
    project = create_project(tmp_path / "imagining", "", teacher=settings, imagine=imagine)
    project.change_slice("shop", lambda value: value.update(target=8))
    one = Embedded(project, models_folder)
    with mock.patch.dict(os.environ, OFFLINE):
        ended = project.distill("imagine", TASK, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["teacher_calls"] >= 1
    found = ended.json["imagined"]["shop"]
    assert found["imagined"] >= 1
    assert found["imagined"] + found["missing"] == 2
    table = project.lake.read(TASK, "seed_prompts", "shop", PROMPTS)[0]
    assert table.filter(pl.col("origin") == "synthetic").height == found["imagined"]
    assert embedded.EMBEDDED_SERVERS._servers == {}
    assert one.project.stored_answers() == ended.json["teacher_calls"]
