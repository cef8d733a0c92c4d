"""Run the bundled task `word_problems` in an empty home: what a student learns from worked solutions.

Usage: python benchmarks/word_problems.py [--quick] [--json FILE] [--home FOLDER]

The student writes its reasoning before its answer. `seed_only` learned the human examples alone, `distilled` the
teacher's solutions. Golden has 40 problems, so an accuracy is known to about 15 points. `--quick` trains one epoch.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml
from common import name_verdict, open_home, read_score, run_task, wanted, write_result

from distill_dagster.core.paths import PROJECT_FOLDER

TASK, STUDENT = "word_problems", "smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with open_home(arguments.home) as root:
        tasks = root / "tasks"
        shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / TASK, tasks / TASK, dirs_exist_ok=True)
        if arguments.quick:
            settings = yaml.safe_load((tasks / TASK / "task.yaml").read_text())
            settings["students"][STUDENT] |= {"epochs": 1, "seed_only_epochs": 1}
            (tasks / TASK / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        _, metrics = run_task(root, tasks, TASK, [STUDENT])
        values = metrics[STUDENT]
        figures = {
            "verdict": name_verdict(values),
            "systems": [
                {"system": name, **read_score(facts), "items": facts["n"]} for name, facts in values["systems"].items()
            ],
        }
    for name, value in figures.items():
        print(f"{name:10} {value}")
    write_result(wanted(arguments, TASK), figures)


if __name__ == "__main__":
    main()
