"""An S3 server on this machine, and a proxy before it that injects faults into its answers."""

from __future__ import annotations

import http.client
import itertools
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["503", "slow", "cut", "lost"]
"""`503`: refused before it is done. `slow`: answered late. `cut`: half of the body. `lost`: done, and no answer."""
Chooser = Callable[[str, str], Fault | None]
"""Chooses the fault of a request by its method and path."""

CONDITIONS = ("if-match", "if-none-match")
BUCKET = "lake"
SLOW_S = 0.3
START_S = 60.0
# In a process of its own: its locks must not meet those of the process under test.
_SERVE = (
    "import logging, os, sys\n"
    "logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
    "from moto.server import ThreadedMotoServer\n"
    "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
    "server.start()\n"
    "print(server.get_host_and_port()[1], flush=True)\n"
    "sys.stdin.read()\n"  # until the process that started it ends, however it ends
    "os._exit(0)\n"
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": "us-east-1",
}


class FaultyProxy:
    """Passes requests on to an S3 server. `choose` injects faults; `counts` has the requests by method."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.choose: Chooser = lambda method, path: None
        self.counts: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.ignores_conditions = False
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            fault = self.choose(request.command, request.path)
            self.counts[request.command] += 1
            if fault:
                self.injected[fault] += 1
        if fault == "503":
            text = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
            request.send_response(503)
            request.send_header("Content-Length", str(len(text)))
            request.end_headers()
            request.wfile.write(text)
            return
        if fault == "slow":
            time.sleep(SLOW_S)
        passed = http.client.HTTPConnection(self.target, timeout=60)
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() != "connection"}
        for name in CONDITIONS if self.ignores_conditions else ():
            headers.pop(name, None)
        passed.request(request.command, request.path, content or None, headers)
        answer = passed.getresponse()
        body = answer.read()
        passed.close()
        if fault == "lost":
            request.close_connection = True
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                request.send_header(name, value)
        length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(body))
        if answer.status not in (204, 304):
            request.send_header("Content-Length", length or "0")
        request.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
            request.close_connection = True
        with suppress(ConnectionError):
            request.wfile.write(body)

    @contextmanager
    def run(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


@contextmanager
def run_object_store() -> Iterator[FaultyProxy]:
    """An empty bucket `lake` of an S3 server in a process of its own, behind a proxy without faults."""
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            target = f"127.0.0.1:{int(server.stdout.readline())}"
            urllib.request.urlopen(urllib.request.Request(f"http://{target}/{BUCKET}", method="PUT"), timeout=START_S)
            with FaultyProxy(target).run() as proxy:
                yield proxy
        finally:
            server.kill()  # it has nothing to save
            server.wait()


def inject_once(fault: Fault, method: str, part: str) -> Chooser:
    """A fault for the first request with this method whose path contains `part`."""
    left = [1]

    def choose(used: str, path: str) -> Fault | None:
        if used == method and part in path and left:
            left.pop()
            return fault
        return None

    return choose


def inject_often(every: int, faults: tuple[Fault, ...] = ("503", "cut", "lost", "slow")) -> Chooser:
    """A fault for every so many requests, each kind in turn."""
    turns = itertools.cycle([None] * (every - 1) + [True])
    kinds = itertools.cycle(faults)
    return lambda method, path: next(kinds) if next(turns) else None
