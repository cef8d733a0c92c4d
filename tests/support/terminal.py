"""A command on a terminal: a real pty, and the screen that a person sees, by a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

from tests.support.waiting import wait_until


class Terminal:
    """`with Terminal(["distill", …], environment) as terminal:` runs a command; at the end of the block it is killed.

    Args:
        command: Its first word is started as it is.
        stdout: Where stdout goes instead of the terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        columns: int = 80,
        lines: int = 24,
        stdout: Path | None = None,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        self._main, self._side = pty.openpty()
        fcntl.ioctl(self._side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        size = {"COLUMNS", "LINES", "DAGSTER_HOME", "NO_COLOR"}  # what the terminal says is what counts
        inherited = {name: value for name, value in os.environ.items() if name not in size}
        self._stdout = stdout.open("w") if stdout else None
        self.process = subprocess.Popen(
            command,
            env=inherited | {"TERM": "xterm-256color", **environment},
            cwd=folder,
            stdin=self._side,
            stdout=self._stdout or self._side,
            stderr=self._side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches the whole process group
        )
        os.close(self._side)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        os.close(self._main)
        if self._stdout:
            self._stdout.close()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 65536)
            except OSError:  # the other side is closed: the command has ended
                return
            if not data:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    @property
    def screen(self) -> str:
        """The lines that are on the screen now."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def everything(self) -> str:
        """All lines, those that were scrolled off too."""
        with self._lock:
            top = [
                "".join(row[column].data for column in range(self._screen.columns)).rstrip()
                for row in self._screen.history.top
            ]
        return "\n".join([*top, self.screen])

    def press(self, keys: str) -> None:
        """Type keys; `\\x03` is Ctrl-C."""
        os.write(self._main, keys.encode())

    def wait_for(self, condition: Callable[[str], object], what: str) -> str:
        """Return the screen once it fulfils a condition."""
        seen = ""

        def check() -> bool:
            nonlocal seen
            seen = self.screen
            return bool(condition(seen))

        wait_until(check, f"{what}; the screen:\n{self.screen}")
        return seen

    def wait(self) -> int:
        """Wait for the end of the command and of its output. Returns the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code


def distill_command(*arguments: str) -> list[str]:
    """The words that start `distill` with the Python of the tests."""
    return [sys.executable, "-c", "from distill_dagster.cli import app; app(prog_name='distill')", *arguments]
