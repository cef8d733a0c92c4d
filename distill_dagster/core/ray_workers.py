"""Compute parts of a table as tasks of a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from distill_dagster.core.errors import DistillError

if TYPE_CHECKING:
    from ray import ObjectRef

P = TypeVar("P")
R = TypeVar("R")

WAITING_PER_CORE = 2
"""Parts per core of the cluster that are sent before the first result is taken."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in a process that Ray started as a job."""
_connecting = threading.Lock()


@dataclass(frozen=True)
class RayWorkers:
    """The workers of a Ray cluster. A part whose worker dies is computed again by another.

    Args:
        address: `auto` for the cluster that this machine belongs to, `HOST:PORT`, or `local` for one that this process
            starts and ends with it. Within a job, step or task of a cluster it is that cluster.
        cores: CPU cores of a `local` cluster. By default those of the machine.
        store_mb: memory of a `local` cluster for objects between tasks, in MiB. What does not fit is on disk.
    """

    address: str = "auto"
    cores: int | None = None
    store_mb: int = 500
    is_remote = True

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
        """The results of a function for each part, in order.

        Raises:
            DistillError: the cluster cannot be reached, workers died too often, or the function raised it.
        """
        import ray

        for task in self._run(function, parts, 1):
            yield _get(ray, task)

    def map_and_keep(
        self, function: Callable[[P], tuple[R, Any]], parts: Iterable[P]
    ) -> Iterator[tuple[R, ObjectRef[Any]]]:
        """Like `map`, for a function that returns two values. The second stays in the cluster: this is its reference.

        Raises:
            DistillError: as for `map`.
        """
        import ray

        for first, second in self._run(function, parts, 2):
            yield _get(ray, first), second

    def _run(self, function: Callable[[P], Any], parts: Iterable[P], returns: int) -> Iterator[Any]:
        """Send parts, a few ahead of the one whose references are taken."""
        import ray
        from ray.exceptions import RayError

        self.connect()
        apply: Any = ray.remote(_apply).options(num_returns=returns)
        sent = ray.put(function)
        most = WAITING_PER_CORE * max(2, int(ray.cluster_resources().get("CPU", 0)))
        waiting: deque[Any] = deque()
        try:
            for part in parts:
                waiting.append(apply.remote(sent, part))
                if len(waiting) > most:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # the caller stopped reading, or a part failed
            for task in waiting:
                try:
                    ray.cancel(task if returns == 1 else task[0])
                except (RayError, ValueError):
                    break  # the cluster is gone

    def connect(self) -> None:
        """Connect this process with the cluster, once.

        Raises:
            DistillError: Ray is not installed, or the cluster does not answer.
        """
        if importlib.util.find_spec("ray") is None:
            raise DistillError("Work on a Ray cluster needs the package ray. Install it: pip install '.[ray]'")
        import ray

        with _connecting:
            if ray.is_initialized():
                return
            terminate = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(**self._build_options())
            except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
                raise DistillError(
                    f"The Ray cluster at {self.address!r} does not answer: {error}. Start one with `ray start --head`, "
                    "or set `ray.address` in deployment.yaml, or `ray.stages: false`."
                ) from error
            if threading.current_thread() is threading.main_thread():
                # Ray's own handler would end the process before Dagster can note the end of a run.
                signal.signal(signal.SIGTERM, terminate)

    def _build_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"address": self.address}
        if not self.address.startswith("ray://"):  # a remote client has neither
            options |= {"log_to_driver": False, "logging_level": "warning"}
        if JOB_VARIABLE not in os.environ:  # within a job Ray refuses a second environment
            # Each task has one core. Results never depend on the number of threads.
            options["runtime_env"] = {"env_vars": {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}}
        if self.address == "local":
            options |= {"num_cpus": self.cores, "include_dashboard": False}
            options |= {"object_store_memory": self.store_mb * 2**20}
        return options


def _apply(function: Callable[[P], R], part: P) -> R:
    return function(part)


def _get(ray: Any, task: Any) -> Any:
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, DistillError) else error) from None
    except RayError as error:
        raise DistillError(f"Ray gave up a part of the work: {error}") from error
