"""The command ends at once, and yet with all output, its exit code, and what others do at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("arguments", "code"), [("--version", 0), ("no-such-command", 2)])
def test_exit_handlers_run_and_the_exit_code_stays(arguments: str, code: int) -> None:
    script = f"""
import atexit, sys
from distill_dagster.__main__ import run_and_leave
class Kept:
    def __del__(self):
        print("freed")
atexit.register(lambda: print("handled"))
sys.kept, sys.argv = Kept(), ["distill", "{arguments}"]
run_and_leave()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert ended.returncode == code
    assert ended.stdout.endswith("handled\n")


def test_an_unexpected_error_ends_with_its_traceback() -> None:
    script = """
import distill_dagster.cli
from distill_dagster.__main__ import run_and_leave
def fail(**_):
    raise ZeroDivisionError
distill_dagster.cli.app = fail
run_and_leave()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_a_reader_that_went_away_is_no_crash() -> None:
    command = f"{sys.executable} -m distill_dagster --help | head -n 1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
