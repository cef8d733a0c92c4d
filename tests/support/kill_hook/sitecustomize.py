"""Kill this process while it publishes an artifact, if a file asks for it. Loaded by Python itself from PYTHONPATH.

`$DISTILL_TEST_KILLS/<asset>` holds `before` (the artifact is complete but not in place), `after` (it is in place, and
Dagster does not know) or `node` (`before`, but the process waits to be killed together with its machine). The file is
removed first, so that each asks for one kill.
"""

# ruff: noqa: PTH107, PTH123  (every Python process loads this file first)
import os
import signal
import sys
import time
from contextlib import suppress

FOLDER = os.environ.get("DISTILL_TEST_KILLS", "")
_due: list[str] = []


def _find_asset(path: str) -> str:
    """The asset that a file of the lake, or of the reports, belongs to."""
    parts = path.split("/")
    if "reports" in parts and len(parts) == parts.index("reports") + 3:  # reports/<task>/<student>
        return "eval_report"
    if "lake" not in parts:
        return ""
    inside = parts[parts.index("lake") + 2 :]
    return inside[0].removesuffix(".parquet") if inside else ""


def _take_order(asset: str) -> str:
    path = f"{FOLDER}/{asset}"
    try:
        with open(path) as file:
            how = file.read().strip()
        os.remove(path)  # two processes may have read it: one of them removes it
    except FileNotFoundError:
        return ""
    return how


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.kill":
        return
    if _due:
        os.kill(os.getpid(), signal.SIGKILL)
    if event != "os.rename":
        return
    asset = _find_asset(os.fsdecode(arguments[1]))  # type: ignore[arg-type]
    how = _take_order(asset) if asset else ""
    if not how:
        return
    with open(f"{FOLDER}/done.txt", "a") as log:
        log.write(f"{asset} {how} {os.getpid()}\n")
    if how == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "after":
        _due.append(how)
    else:
        with suppress(FileNotFoundError), open(f"{FOLDER}/node", "w") as file:
            file.write(str(os.getpid()))
        while True:
            time.sleep(1)


if FOLDER:
    sys.addaudithook(_watch)
