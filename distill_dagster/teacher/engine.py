"""The engine: what is stored is not asked, what is asked is stored before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distill_dagster.errors import TeacherError
from distill_dagster.spec import TeacherSpec
from distill_dagster.teacher.batches import Batches
from distill_dagster.teacher.client import Client, Endpoint, Request
from distill_dagster.teacher.recorded import ReplayClient
from distill_dagster.teacher.store import CompletionStore, Response

Refuse = Callable[[Response], None]
"""Raises a `TeacherError` for a response that must not be stored: asking again may bring another."""


class Engine:
    """Answers requests to one teacher, for as long as one event loop runs; it counts what it took."""

    def __init__(self, endpoint: Endpoint, spec: TeacherSpec, store: CompletionStore) -> None:
        self.endpoint, self.spec, self.store = endpoint, spec, store
        replayed = endpoint.recorded
        self._client = ReplayClient(replayed) if replayed is not None else Client(endpoint, spec)
        self._batches = Batches(endpoint, spec, store) if spec.mode == "batch" else None
        self._batched: dict[str, str] = {}
        self._fresh: set[str] = set()
        self.cached = self.prompt_tokens = self.completion_tokens = 0

    @property
    def calls(self) -> int:
        """Requests that were sent, with those that were sent again."""
        return self._client.calls + (self._batches.submitted if self._batches else 0)

    async def prepare(self, requests: Sequence[Request], origin: str) -> None:
        """In batch mode: have all of these answered before `answer` is called for each; else nothing.

        Raises:
            TeacherError: the batches could not be submitted, or are not ready yet.
        """
        if self._batches is not None:
            keys = {request.key for request in requests}
            self._fresh = keys - self.store.known(keys)
            self._batched = await self._batches.run(requests, origin)

    async def answer(self, request: Request, refuse: Refuse | None = None) -> Response:
        """The stored answer, else a new one that is stored before it is returned.

        Raises:
            TeacherError: no answer came, or `refuse` did not take it.
        """
        found = self.store.get([request.key]).get(request.key)
        if found is not None:
            if request.key in self._fresh:
                self._count(found)
            else:
                self.cached += 1
            return found
        if self._batches is not None:
            raise TeacherError(self._batched.get(request.key, "no batch asked this"))
        response = await self._client.ask(request)
        if refuse is not None:
            refuse(response)
        self.store.put(request.key, response)
        self._count(response)
        return response

    def _count(self, response: Response) -> None:
        self.prompt_tokens += response.prompt_tokens or 0
        self.completion_tokens += response.completion_tokens or 0

    async def close(self) -> None:
        await self._client.close()
