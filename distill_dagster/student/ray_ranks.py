"""Train on several workers of a Ray cluster, by Ray Train: each worker is a rank as in `ranks`, on any machine.

The rows travel to the workers, and the trained files back. Models and checkpoints are read and written where they are:
each machine of the cluster has them at the same path. A lost worker stops the ranks. They start again together, from
the latest checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.student.ranks import LONGEST_WAIT, is_first_rank
from distill_dagster.student.types import TrainingLog

MOST_RESTARTS = 3
"""How often ranks start again after a lost worker."""
_OUT = 5  # the place of `out` among the positional arguments of `train_adapter`
_POLL_S = 0.5


@dataclass(frozen=True)
class RayRanks:
    """Launches the ranks of one training. Each has a GPU, if the cluster has as many.

    Args:
        count: the number of ranks, at least 2.
    """

    workers: RayWorkers
    count: int

    def __call__(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> TrainingLog:
        """Run `train_adapter` with these arguments, and write what it trained to its folder `out`.

        Raises:
            DistillError: a rank raised it, the cluster has too few cores, or workers were lost too often.
        """
        self.workers.connect()
        import ray
        from ray.exceptions import RayError
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        found = ray.cluster_resources()
        has_gpus = found.get("GPU", 0) >= self.count
        if found.get("CPU", 0) < self.count:
            raise DistillError(
                f"`ray.train_processes` is {self.count}, but the cluster has {found.get('CPU', 0):.0f} CPU cores. "
                "Lower it, or add workers."
            )
        mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        folder = named.get("work") or arguments[_OUT]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".ray-train-") as scratch:
            trainer = TorchTrainer(
                _run_rank,
                train_loop_config={"given": [ray.put((arguments, named))], "mailbox": mailbox},
                torch_config=TorchConfig(timeout_s=int(LONGEST_WAIT.total_seconds())),
                scaling_config=ScalingConfig(num_workers=self.count, use_gpu=has_gpus),
                run_config=RunConfig(
                    name="training", storage_path=scratch, failure_config=FailureConfig(max_failures=MOST_RESTARTS)
                ),
            )
            failures: list[Exception] = []

            def fit() -> None:
                try:
                    trainer.fit()
                except (RayError, TrainingFailedError) as failure:
                    failures.append(failure)

            # A daemon: an interrupted process does not wait for the training, and Ray ends it with the process.
            fitting = Thread(target=fit, daemon=True)
            fitting.start()
            while fitting.is_alive():
                fitting.join(_POLL_S)
                made = ray.get(mailbox.take_progress.remote())
                if made is not None:
                    progress.report_progress(made.work, made.done, made.total, loss=made.loss)
            error, result = ray.get(mailbox.get_outcome.remote())
        if error is not None:
            raise DistillError(error)
        if result is None:
            raise DistillError(f"The training on the Ray cluster ended early: {''.join(map(str, failures))}")
        log, files = result
        for name, content in files.items():
            path = arguments[_OUT] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return TrainingLog.from_dict(log)


class _Mailbox:
    """What the ranks tell the process that started them. It lives in the cluster."""

    def __init__(self) -> None:
        self._progress: progress.Progress | None = None
        self._error: str | None = None
        self._result: tuple[dict[str, Any], dict[str, bytes]] | None = None

    def note_progress(self, made: progress.Progress) -> None:
        self._progress = made

    def take_progress(self) -> progress.Progress | None:
        made, self._progress = self._progress, None
        return made

    def fail(self, error: str) -> None:
        self._error = self._error or error

    def finish(self, log: dict[str, Any], files: dict[str, bytes]) -> None:
        self._result = (log, files)

    def get_outcome(self) -> tuple[str | None, tuple[dict[str, Any], dict[str, bytes]] | None]:
        return self._error, self._result


def _run_rank(config: dict[str, Any]) -> None:
    """Train as one rank. The first rank sends what it trained, any rank its error."""
    import ray

    from distill_dagster.student.train import train_adapter

    mailbox = config["mailbox"]
    error, _ = ray.get(mailbox.get_outcome.remote())
    if error is not None:  # Ray Train starts the ranks again, also after an error that would come again
        raise DistillError(error)

    def listen(made: progress.Progress) -> None:
        if is_first_rank():
            mailbox.note_progress.remote(made)

    given: tuple[tuple[Any, ...], dict[str, Any]] = ray.get(config["given"][0])
    arguments, named = [*given[0]], given[1]
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        try:
            with progress.listen_to_progress(listen):
                arguments[_OUT] = out
                log = train_adapter(*arguments, **named)
        except DistillError as error:
            ray.get(mailbox.fail.remote(str(error)))
            raise
        if is_first_rank():
            files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
            ray.get(mailbox.finish.remote(log.to_dict(), files))
