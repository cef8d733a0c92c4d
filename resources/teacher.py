"""The Dagster resource for teachers: a provider's endpoint, or the embedded server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from distill_dagster.config import TeacherSpec
from distill_dagster.teacher.providers.client import Endpoint, resolve_endpoint
from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS


class TeacherResource(dg.ConfigurableResource):
    """Opens the endpoint of a teacher. The embedded server starts for its first user and stops after its last."""

    models: str

    @contextmanager
    def open_endpoint(self, spec: TeacherSpec) -> Iterator[Endpoint]:
        if not spec.is_embedded:
            yield resolve_endpoint(spec)
            return
        endpoint, lease = EMBEDDED_SERVERS.acquire(spec, Path(self.models))
        try:
            yield endpoint
        finally:
            EMBEDDED_SERVERS.release(lease)
