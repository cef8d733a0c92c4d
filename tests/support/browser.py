"""`distill ui` on a free port and headless Chromium on it, for the tests and for the pictures of the documentation."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.support.waiting import HANG_S

LOCATION = "distill_dagster.definitions"
SLOW_MS = 300_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def serve_ui(start: Callable[[int], subprocess.Popen[Any]]) -> Iterator[str]:
    """The address of the UI, which `start` starts on a port in a session of its own; it is stopped as by Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = start(port)
    alive = f"http://127.0.0.1:{port}/server_info"
    try:
        deadline = time.monotonic() + HANG_S
        while not is_up(alive):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("`distill ui` did not come up; run it by hand to see why")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=HANG_S)
        if is_up(alive):
            raise RuntimeError("Ctrl-C left the webserver behind")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def open_browser_page(width: int, height: int, *flags: str) -> Iterator[Page]:
    """A page of Chromium: $CHROMIUM, or `chromium` on the PATH. No run may start in this process meanwhile:
    Playwright's event loop would be in its way."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise RuntimeError("Chromium is needed: set CHROMIUM to it, or put it on the PATH.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(SLOW_MS)
        yield page
        browser.close()
