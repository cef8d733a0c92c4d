"""A release is pushed to a hub only if somebody asks, as one commit with a tag. The hub is a server of this test."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.release.hub import check_repository, push_release
from distill_dagster.release.registry import Registry, Release


class FakeHub(ThreadingHTTPServer):
    """Answers as the Hub's API for one repository, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.token = ""
        self.refuses = False
        self.dislikes_card = False


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) or self._read_chunks()
        hub, path = self.server, self.path
        if hub.refuses:
            self._send(403, {"error": "no right to write"})
        elif path == "/api/repos/create":
            hub.created, hub.token = json.loads(body), self.headers["authorization"]
            self._send(200, {"url": f"{self._address}/team/mail", "id": "team/mail"})
        elif path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self._send(200, {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        elif path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            for deleted in (line["value"]["path"] for line in lines if line["key"] == "deletedFile"):
                del hub.files[deleted]
            hub.files |= {value["path"]: base64.b64decode(value["content"]) for value in values}
            self._send(200, {"commitUrl": f"{self._address}/team/mail/commit/a", "commitOid": "a", "success": True})
        elif "/tag/" in path:
            hub.tags.append(json.loads(body)["tag"])
            self._send(200, {})
        elif "/tree/main" in path:
            sizes = {file: len(content) for file, content in hub.files.items()}
            self._send(200, [{"type": "file", "path": file, "size": n, "oid": "a"} for file, n in sizes.items()])
        elif path == "/api/validate-yaml" and hub.dislikes_card:
            self._send(400, {"errors": [{"message": "license is unknown"}], "warnings": []})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        else:
            self._send(404, {"error": path})

    do_GET = do_POST = do_HEAD = _handle

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _read_chunks(self) -> bytes:
        found = b""
        while self.headers.get("transfer-encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _send(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    def fill(folder: Path, number: int) -> dict[str, Any]:
        (folder / "report").mkdir()
        (folder / "report" / "golden.json").write_text("[]")
        (folder / "report" / "metrics.json").write_text("{}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\ncard")
        return {"student": "tiny", "exports": [], "left_out": [], "notes": []}

    return Registry(tmp_path).publish("mail", fill)


def test_all_files_but_single_golden_scores_are_pushed_as_one_commit(hub: FakeHub, release: Release) -> None:
    address = push_release(release, "team/mail")
    assert address.endswith("/team/mail")
    assert hub.created == {"name": "mail", "organization": "team", "visibility": "private"}
    assert hub.token == "Bearer hf_test"
    assert set(hub.files) == {"README.md", "manifest.json", "report/metrics.json"}
    assert hub.files["README.md"] == (release.path / "README.md").read_bytes()
    manifest = json.loads(hub.files["manifest.json"])
    assert set(manifest["files"]) == {"README.md", "report/metrics.json"}
    assert manifest["files"].items() <= release.manifest["files"].items()
    assert hub.tags == ["release-1"]
    push_release(release, "team/mail", private=False)
    assert hub.created["visibility"] == "public"


def test_files_of_an_earlier_release_go_and_other_files_stay(hub: FakeHub, release: Release) -> None:
    hub.files = dict.fromkeys(("gguf/model-f16.gguf", "vllm.sh", "README.md", "LICENSE", ".gitattributes"), b"old")
    push_release(release, "team/mail")
    assert set(hub.files) == {"README.md", "manifest.json", "report/metrics.json", "LICENSE", ".gitattributes"}
    assert hub.files["README.md"] == (release.path / "README.md").read_bytes()


def test_a_card_that_the_hub_does_not_accept_is_an_error(hub: FakeHub, release: Release) -> None:
    hub.dislikes_card = True
    with pytest.raises(DistillError, match=r"Invalid metadata in README\.md\. - license is unknown"):
        push_release(release, "team/mail")


def test_a_hub_that_refuses_is_an_error_with_a_remedy(hub: FakeHub, release: Release) -> None:
    hub.refuses = True
    with pytest.raises(DistillError, match=r"team/mail could not be pushed to: .*HF_TOKEN"):
        push_release(release, "team/mail")


def test_a_changed_release_is_not_pushed(hub: FakeHub, release: Release) -> None:
    card = release.path / "README.md"
    card.chmod(0o644)
    card.write_text("other")
    with pytest.raises(DistillError, match=r"README\.md was changed"):
        push_release(release, "team/mail")
    assert hub.files == {}


@pytest.mark.parametrize("name", ["mail", "a/b/c", "", "team/ mail"])
def test_a_name_that_is_no_repository_is_an_error(name: str) -> None:
    with pytest.raises(DistillError, match="org/name"):
        check_repository(name)
