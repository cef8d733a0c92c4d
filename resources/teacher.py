"""The teacher endpoint: a provider's, or the embedded server, started for its first user and stopped after its last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from distill_dagster.config import TeacherSpec
from distill_dagster.teacher.providers.client import Endpoint, resolve_endpoint
from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS


class TeacherResource(dg.ConfigurableResource):
    """Hands out the endpoint of a teacher for as long as it is needed."""

    models: str

    @contextmanager
    def endpoint(self, spec: TeacherSpec) -> Iterator[Endpoint]:
        if not spec.embedded:
            yield resolve_endpoint(spec)
            return
        endpoint, lease = EMBEDDED_SERVERS.acquire(spec, Path(self.models))
        try:
            yield endpoint
        finally:
            EMBEDDED_SERVERS.release(lease)
