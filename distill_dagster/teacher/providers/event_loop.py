"""The event loop that sends all requests of this process, so that they share limits and connections."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the event loop of the process and wait for it. An interrupt cancels it.

    If several tasks of a group fail, the first error is raised; it cancelled the others.
    """
    ended = threading.Event()

    async def run_and_signal() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(run_and_signal(), _get_loop())
    try:
        while True:
            # Wait in short pieces, so that the main thread can handle signals in between.
            wait([future], timeout=0.5)
            if future.done():
                return future.result()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    except BaseException:
        if not future.done():
            future.cancel()
            ended.wait(timeout=10)  # so that it can still write, for example what was spent
        raise


def _get_loop() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():  # a forked process does not have the thread of the loop
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="teacher", daemon=True).start()
            atexit.register(_close_loop, _loop)
        return _loop


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    from distill_dagster.teacher.providers.transport import close_connections

    if _owner == os.getpid():
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(close_connections(), loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
