"""Measure what happens past one machine, part by part, and collect the figures in one file.

Usage: python benchmarks/scale.py [--parts teacher cut kills launch lake] [--quick] [--json FILE]

Each part is `scale_<part>.py` next to this file, with `measure(quick, scratch) -> dict`. A part runs in a process of
its own, so that it leaves no cluster, connection or memory to the next one. The figures of other parts are kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import wanted, write_result

PARTS = ("teacher", "cut", "kills", "launch", "lake")


def measure_part(part: str, quick: bool, figures: Path) -> None:
    """Measure one part in this process, in a scratch folder of its own, and write its figures to `figures`."""
    module = importlib.import_module(f"scale_{part}")
    with tempfile.TemporaryDirectory(prefix=f"scale-{part}-") as scratch:
        figures.write_text(json.dumps(module.measure(quick, Path(scratch))))


def run_part(part: str, quick: bool) -> dict[str, float] | None:
    """Measure one part in a process of its own. Returns its figures, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--part-into", str(figures), "--parts", part]
        started = time.perf_counter()
        ended = subprocess.run(command + ["--quick"] * quick, check=False)
        seconds = time.perf_counter() - started
        if ended.returncode or not figures.exists():
            print(f"{part}: failed after {seconds:.0f} s (exit code {ended.returncode})", file=sys.stderr)
            return None
        found: dict[str, float] = json.loads(figures.read_text())
        print(f"{part}: {seconds:.0f} s", *(f"  {name}: {value}" for name, value in found.items()), sep="\n")
        return found


def main() -> int:
    """Measure the parts, and write the figures of each part as soon as it has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--part-into", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part_into is not None:
        measure_part(arguments.parts[0], arguments.quick, arguments.part_into)
        return 0
    failed = []
    for part in arguments.parts:
        found = run_part(part, arguments.quick)
        if found is None:
            failed.append(part)
        else:
            write_result(wanted(arguments, "scale"), found)
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
