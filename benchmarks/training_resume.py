"""Kill a training again and again, let it go on, and compare it with one that ran through.

Usage: python benchmarks/training_resume.py [--students minilm smollm2] [--kills 5] [--rows 128] [--every 4] [--seed 0]
                                            [--models FOLDER] [--json FILE] [--quick]

The students are those of the bundled task support_triage, the rows its labelled tickets: examples.jsonl, dev.jsonl and
human.jsonl, a fifth of them for validation. One process trains without interruption. Others get SIGKILL at random
steps, each after its own, until so many were killed; the last one finishes. `resume_bit_equal` is true if for every
student the last loss, all logged losses, all validation scores and the bytes of the weights are the same in both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import wanted, write_result

from distill_dagster.config.checkpoint import CheckpointSpec
from distill_dagster.core import progress
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow

TASK = "support_triage"
WEIGHTS = ("adapter_model.safetensors", "head.safetensors")


def read_rows(folder: Path, count: int) -> list[TrainRow]:
    """Labelled tickets of the task, in an order of their own."""
    lines = []
    for name in ("examples", "dev", "human"):
        path = folder / f"{name}.jsonl"
        lines += path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.strip()]
    rows = [TrainRow(str(n), StudentPrompt.from_text(row["text"]), row["label"]) for n, row in enumerate(found)]
    random.Random(0).shuffle(rows)
    return rows[:count]


def train(arguments: argparse.Namespace, student: str, out: Path, work: Path, kill_at: int) -> None:
    """Train in this process, which kills itself in the middle of step `kill_at`; 0: it ends by itself."""
    home = Home.from_env()
    task = open_task(home.tasks, TASK, home.accepted).task
    rows = read_rows(home.tasks / TASK, arguments.rows)
    held = len(rows) // 5
    spec = task.students[student].model_copy(update={"checkpoint": CheckpointSpec(every_steps=arguments.every)})

    def listen(made: progress.Progress) -> None:
        if kill_at and made.done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with progress.listen_to_progress(listen):
        settings = TaskSettings.from_task(task)
        train_adapter(spec, task.labels, settings, rows[held:], rows[:held], out, arguments.models, work=work)


def read_weights(folder: Path) -> dict[str, bytes]:
    """The bytes of the weights of a trained student, by file."""
    return {name: (folder / name).read_bytes() for name in WEIGHTS if (folder / name).exists()}


def run(student: str, out: Path, work: Path, kill_at: int) -> int:
    """Train in a process of its own. Return how it ended: 0, or minus the signal."""
    own = ["--train", student, str(out), str(work), str(kill_at)]
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], check=False).returncode


def measure(arguments: argparse.Namespace, student: str, folder: Path) -> dict[str, Any]:
    """Train without interruption and with kills, and compare."""
    started = time.perf_counter()
    if run(student, folder / "whole", folder / "work_whole", 0):
        raise SystemExit(f"{student}: the training failed")
    whole = json.loads((folder / "whole" / "training_log.json").read_text())
    rng = random.Random(arguments.seed)
    kills = sorted(rng.sample(range(2, whole["steps"] + 1), arguments.kills))
    for step in kills:
        ended = run(student, folder / "killed", folder / "work", step)
        if ended != -signal.SIGKILL:
            raise SystemExit(f"{student}: was not killed at step {step}, it ended with {ended}")
        print(f"{student}: killed at step {step} of {whole['steps']}", file=sys.stderr, flush=True)
    if run(student, folder / "killed", folder / "work", 0):
        raise SystemExit(f"{student}: the training failed")
    killed = json.loads((folder / "killed" / "training_log.json").read_text())
    weights = [read_weights(folder / name) for name in ("whole", "killed")]
    return {
        "rows": arguments.rows,
        "every_steps": arguments.every,
        "steps": whole["steps"],
        "kills": kills,
        "resumed_at": killed["resumed_at"],
        "last_loss": [log["losses"][-1][2] for log in (whole, killed)],
        "losses_equal": all(whole[name] == killed[name] for name in ("losses", "loss_parts", "validation")),
        "weights_equal": weights[0] == weights[1],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["minilm", "smollm2"])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--every", type=int, default=4, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which it is killed")
    parser.add_argument("--models", type=Path, default=Home.from_env().models, help="folder of converted models")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one kill of minilm; writes no result")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        student, out, work, kill_at = arguments.train
        return train(arguments, student, Path(out), Path(work), int(kill_at))
    if arguments.quick:
        arguments.students, arguments.kills = ["minilm"], 1
    figures: dict[str, dict[str, Any]] = {}
    for student in arguments.students:
        with tempfile.TemporaryDirectory() as scratch:
            figures[student] = measure(arguments, student, Path(scratch))
        print(json.dumps({student: figures[student]}, indent=1), flush=True)
    equal = all(of["losses_equal"] and of["weights_equal"] for of in figures.values())
    write_result(wanted(arguments, "training"), {"resume_bit_equal": equal, "resume": figures})
    return None


if __name__ == "__main__":
    main()
