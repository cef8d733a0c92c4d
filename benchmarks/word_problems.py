"""Run the bundled task `word_problems` in an empty home: what a student learns from worked solutions.

Usage: python benchmarks/word_problems.py [--quick] [--json FILE] [--home FOLDER]

The student writes its reasoning before its answer. `seed_only` learned the human examples alone, `distilled` the
teacher's solutions. Golden has 40 problems, so an accuracy is known to about 15 points. `--quick` trains one epoch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import yaml
from common import run_task, wanted, write_result

from distill_dagster.core.paths import PROJECT_FOLDER

TASK, STUDENT = "word_problems", "smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.home or Path(temporary)
        os.environ["DISTILL_HOME"] = str(root)
        tasks = root / "tasks"
        shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / TASK, tasks / TASK, dirs_exist_ok=True)
        if arguments.quick:
            settings = yaml.safe_load((tasks / TASK / "task.yaml").read_text())
            settings["students"][STUDENT] |= {"epochs": 1, "seed_only_epochs": 1}
            (tasks / TASK / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        _, metrics = run_task(root, tasks, TASK, [STUDENT])
        values = metrics[STUDENT]
        figures = {
            "verdict": {True: "yes", False: "no", None: "undecided"}[values["verdict"]["worth_it"]],
            "systems": [
                {
                    "system": name,
                    "accuracy": round(facts["score"]["value"], 4),
                    "interval": [round(facts["score"][end], 4) for end in ("low", "high")],
                    "items": facts["n"],
                }
                for name, facts in values["systems"].items()
            ],
        }
    for name, value in figures.items():
        print(f"{name:10} {value}")
    write_result(wanted(arguments, TASK), figures)


if __name__ == "__main__":
    main()
