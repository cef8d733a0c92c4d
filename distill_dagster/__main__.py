"""The entry point of the `distill` command. `python -m distill_dagster` is the same."""

from __future__ import annotations

import atexit
import os
import sys

_exit_code: int | None = None


def _leave() -> None:
    """End the process at once, with all other exit handlers done.

    Python would free a million objects of libraries one by one, which takes a second. mypy leaves like this too.
    """
    if _exit_code is None:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more: Python's own end says so
        return
    os._exit(_exit_code)


# Handlers run in reverse order. Those of the libraries, which run_and_leave() imports, come before this one.
atexit.register(_leave)


def run_and_leave() -> None:
    """Run the command of `sys.argv`, and end the process."""
    global _exit_code
    from distill_dagster.cli import app

    try:
        app(prog_name="distill")
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            _exit_code = ended.code or 0
        raise


if __name__ == "__main__":
    run_and_leave()
