"""Train on several GPUs of one machine: one process per GPU, started by torch's launcher and joined by accelerate.

Every process, called a rank, runs the whole of `train_adapter`. The ranks share the rows of each step and of
validation, and give each other their gradients, so that all have the same weights. The first rank writes the files.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, Any, TypeVar

from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student.types import TrainingLog

T = TypeVar("T")

PROCESSES_VARIABLE = "DISTILL_TRAINING_PROCESSES"
"""How many processes train one student, by default one."""
LaunchRanks = Callable[[tuple[Any, ...], dict[str, Any]], TrainingLog]
"""Runs `train_adapter` with positional and named arguments as several ranks, and returns the first rank's log."""
ERROR_FILE = "error.txt"
LOG_FILE = "log.json"
_PROGRESS_MARK = "progress: "
_LAST_LINES = 40
LONGEST_WAIT = timedelta(days=2)
"""So long may the first rank work alone, for example when a large teacher reads all answers."""


def get_world_size() -> int:
    """How many processes train the same student as this one, with it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def get_rank() -> int:
    """The number of this process among those that train the same student."""
    return int(os.environ.get("RANK", "0"))


def is_first_rank() -> bool:
    """Whether this process writes the files: it is the first rank, or the only process."""
    return get_rank() == 0


def count_ranks() -> int:
    """How many processes this process should start for a training: 1 for none.

    Raises:
        DistillError: the variable is no whole number of at least 1.
    """
    value = os.environ.get(PROCESSES_VARIABLE, "1")
    if not value.isdigit() or int(value) < 1:
        raise DistillError(
            f"{PROCESSES_VARIABLE} is {value!r}. Set it to the number of GPUs to train on, for example 2."
        )
    return 1 if get_world_size() > 1 else int(value)


def join_ranks() -> None:
    """Connect with the other ranks, and choose the GPU of this one. Without other ranks it does nothing."""
    if get_world_size() > 1:
        from accelerate import PartialState

        from distill_dagster.student.loading import choose_device

        PartialState(cpu=choose_device() == "cpu", timeout=LONGEST_WAIT)


def wait_for_ranks() -> None:
    """Wait until all ranks are here."""
    if get_world_size() > 1:
        import torch

        torch.distributed.barrier()


def gather_from_ranks(value: T) -> list[T]:
    """The values that all ranks give, in the order of ranks."""
    if get_world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object([value])
    return gathered


def train_on_ranks(ranks: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> TrainingLog:
    """Run `train_adapter` with these arguments in several processes. Return the first rank's log.

    Raises:
        DistillError: there are not so many GPUs, a rank raised it, or a rank ended early.
    """
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise DistillError(f"{PROCESSES_VARIABLE} is {ranks}, but this machine has {gpus} GPU(s). Lower it.")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "arguments").write_bytes(pickle.dumps((arguments, named)))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        lines = _run([*launcher, "-m", __name__, scratch])
        if (folder / ERROR_FILE).exists():
            raise DistillError((folder / ERROR_FILE).read_text(encoding="utf-8"))
        if not (folder / LOG_FILE).exists():
            raise DistillError("A training process ended early:\n" + "\n".join(lines))
        return TrainingLog.from_dict(json.loads((folder / LOG_FILE).read_text(encoding="utf-8")))


def _run(command: list[str]) -> list[str]:
    """Run the launcher and pass on progress. Return the last lines of what the ranks wrote otherwise."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    environment = os.environ | {PROCESSES_VARIABLE: "1"}  # a rank starts no ranks
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    errors = Thread(target=_read, args=(process.stderr, last.append), daemon=True)
    errors.start()
    try:
        _read(process.stdout, lambda line: _pass_on(line, last))
        process.wait()
    finally:
        process.terminate()
        process.wait()
        errors.join()
    return list(last)


def _read(stream: IO[str], take: Callable[[str], object]) -> None:
    for line in stream:
        take(line.rstrip())


def _pass_on(line: str, last: deque[str]) -> None:
    if not line.startswith(_PROGRESS_MARK):
        last.append(line)
        return
    made = progress.Progress(**json.loads(line.removeprefix(_PROGRESS_MARK)))
    progress.report_progress(made.work, made.done, made.total, loss=made.loss)


def run_rank(folder: Path) -> None:
    """Train as one rank, with the arguments in the folder. The first rank writes the log there, any rank its error."""
    from distill_dagster.student.train import train_adapter

    def listen(made: progress.Progress) -> None:
        if is_first_rank():  # if the process that started the ranks is gone, this fails and ends the rank
            print(_PROGRESS_MARK + json.dumps(asdict(made)), flush=True)

    try:
        with progress.listen_to_progress(listen):
            arguments, named = pickle.loads((folder / "arguments").read_bytes())
            log = train_adapter(*arguments, **named)
    except DistillError as error:
        with suppress(FileExistsError), (folder / ERROR_FILE).open("x", encoding="utf-8") as file:
            file.write(str(error))
        raise
    if is_first_rank():
        (folder / LOG_FILE).write_text(json.dumps(log.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
