"""The event loop in which all requests of a process are sent: limits and connections are shared by all that ask."""

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
    """Run a coroutine in the process's loop and wait for it; an interrupt cancels it.

    The first error of a group is raised as itself: what else failed beside it was stopped by it.
    """
    ended = threading.Event()

    async def telling() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(telling(), _get_loop())
    try:
        while True:
            # Not for ever in one piece: a signal that another thread received is looked at in between.
            wait([future], timeout=0.5)
            if future.done():
                return future.result()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    except BaseException:
        if not future.done():
            future.cancel()
            ended.wait(timeout=10)  # what it writes on its way out, such as what was spent
        raise


def _get_loop() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():  # a forked process has no thread that runs it
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
