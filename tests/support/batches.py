"""A provider with OpenAI's files and batches over HTTP, with the answers of `FakeProvider`.

A batch is answered when it was polled `polls` times, or when a test calls `end`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.provider import FakeProvider, ReceivedRequest, build_answer


@dataclass
class BatchProvider(FakeProvider):
    """`fail_line` selects the texts whose line fails. After `answered` lines a batch expires.

    `on_create` is called when a batch is created, before the client receives the response.
    """

    polls: int | None = 1
    rewrite: Callable[[str, str], str] = lambda text, line: line
    """Called with a text and the line of its result; returns the line to send, or an empty text for none."""
    fail_line: Callable[[str], bool] = lambda text: False
    answered: int | None = None
    refuse: str | None = None
    on_create: Callable[[dict[str, Any]], None] = lambda batch: None
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    looked: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> BatchProvider:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _batch_handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    @property
    def lines(self) -> list[list[dict[str, Any]]]:
        """The requests of each batch, in the order of creation."""
        return [_lines(self.files[batch["input_file_id"]]) for batch in self.batches.values()]

    @property
    def asked(self) -> list[str]:
        """The request_keys of all lines of all batches."""
        return [line["custom_id"] for lines in self.lines for line in lines]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        lines = _lines(self.files[body["input_file_id"]])
        id_ = f"batch_{len(self.batches)}"
        self.batches[id_] = {
            "id": id_,
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "status": "in_progress",
            "created_at": int(time.time()),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.on_create(self.batches[id_])
        return self.batches[id_]

    def look(self, id_: str) -> dict[str, Any]:
        self.looked[id_] = self.looked.get(id_, 0) + 1
        batch = self.batches[id_]
        if batch["status"] == "in_progress" and self.polls is not None and self.looked[id_] >= self.polls:
            self.end(id_)
        return batch

    def end(self, id_: str, status: str | None = None) -> None:
        """Answer a batch, in another order than that of its requests."""
        batch = self.batches[id_]
        if self.refuse is not None:
            error = {"code": "invalid", "message": self.refuse, "line": 1}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
            return
        lines = _lines(self.files[batch["input_file_id"]])
        out, errors, texts = [], [], {line["custom_id"]: _text(line) for line in lines}
        for number, line in enumerate(lines):
            text = _text(line)
            if self.answered is not None and number >= self.answered:
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({"id": "x", "custom_id": line["custom_id"], "response": None, "error": error})
            elif self.fail_line(text):
                body = {"error": {"message": f"no answer to {text}", "type": "server_error"}}
                response = {"status_code": 500, "request_id": "r", "body": body}
                errors.append({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None})
            else:
                chat = line["url"].endswith("/chat/completions")
                prompt = json.dumps(line["body"]["messages"]) if chat else line["body"]["prompt"]
                answer = build_answer(self, ReceivedRequest(line["url"], line["body"], "", text), chat, prompt, "")
                response = {"status_code": 200, "request_id": "r", "body": answer}
                out.append({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None})
        for name, rows in (("output_file_id", out), ("error_file_id", errors)):
            if rows:
                batch[name] = f"{name}-{id_}"
                written = [self.rewrite(texts[row["custom_id"]], _to_line(row)) for row in reversed(rows)]
                content = "".join(f"{line}\n" for line in written if line)
                self.files[batch[name]] = content.encode("utf-8", "backslashreplace")  # lone surrogates as JSON escapes
        ended = status or ("expired" if self.answered is not None else "completed")
        batch |= {
            "status": ended,
            "request_counts": {"total": len(lines), "completed": len(out), "failed": len(errors)},
        }


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines()]  # as a careless gateway does


def _to_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _text(line: dict[str, Any]) -> str:
    body = line["body"]
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body["prompt"].splitlines()[-1].partition(" =>")[0])


def _batch_handler(provider: BatchProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, content: bytes) -> None:
            url = urlsplit(self.path)
            path = url.path.removeprefix("/v1")
            provider.calls.append(f"{self.command} {path}")
            if provider.faults and (status := provider.faults.pop(0)):
                secret = self.headers.get("Authorization", "")
                self._send(status, json.dumps({"error": {"message": f"on purpose, {secret}", "type": "t"}}).encode())
            elif self.command == "POST" and path == "/files":
                id_ = f"file-{len(provider.files)}"
                provider.files[id_] = _upload(self.headers["Content-Type"], content)
                self._json(
                    {"id": id_, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch"}
                )
            elif self.command == "POST" and path == "/batches":
                self._json(provider.create(json.loads(content)))
            elif path == "/batches":
                query = parse_qs(url.query)
                every = list(reversed(provider.batches.values()))
                start = next((n + 1 for n, b in enumerate(every) if b["id"] == query.get("after", [""])[0]), 0)
                limit = int(query.get("limit", ["20"])[0])
                some = every[start : start + limit]
                self._json({"object": "list", "data": some, "has_more": len(every) > start + limit})
            elif (found := re.fullmatch(r"/batches/([^/]+)", path)) and found[1] in provider.batches:
                self._json(provider.look(found[1]))
            elif (found := re.fullmatch(r"/files/([^/]+)/content", path)) and found[1] in provider.files:
                self._send(200, provider.files[found[1]])
            else:
                self._send(404, b'{"error": {"message": "no such thing"}}')

        def _json(self, value: dict[str, Any]) -> None:
            self._send(200, json.dumps(value).encode())

        def _send(self, status: int, raw: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                for name, value in provider.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


def _upload(kind: str, content: bytes) -> bytes:
    """Read the uploaded file from a multipart form."""
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    for part in content.split(b"--" + boundary):
        head, _, body = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return body.removesuffix(b"\r\n")
    raise AssertionError("no file in the form")
