"""Requests to an object store that speaks S3, and what its errors mean."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_file

if TYPE_CHECKING:
    from obstore.store import S3Store

T = TypeVar("T")

S3_REMEDY = "Install the extra `s3`: .venv/bin/pip install -c requirements/constraints.txt -e '.[s3]'"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
RETRY_TIMEOUT_S, REQUEST_TIMEOUT_S = 60, 60
ATTEMPTS, QUICK_S = 4, 10.0
"""So often, and within these seconds, is asked again what the client does not retry: an answer cut in the middle."""
MAX_MESSAGE_CHARS = 300


class LakeError(DistillError):
    """The object store of the lake did not do what it was asked to."""


class ObjectMissingError(LakeError):
    """An object is not there."""


class ObjectChangedError(LakeError):
    """A conditional put was refused: the object is not the version that it was to replace."""


@dataclass(frozen=True)
class ListedObject:
    """An object of a listing: its key below the lake's prefix, its size in bytes and when it was written."""

    key: str
    bytes: int
    etag: str
    modified: datetime


class Bucket:
    """The objects below one `s3://BUCKET/PREFIX`. Server errors and lost connections are retried with a backoff.

    Credentials, region and endpoint come from the variables that other S3 clients read (`AWS_ACCESS_KEY_ID`,
    `AWS_REGION`, `AWS_ENDPOINT_URL`, …), or from the role of the machine.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        endpoint = next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), None)
        self._store = _open_store(url, endpoint)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """The content of a small object and its ETag, or None if there is none."""
        import obstore

        def get() -> tuple[bytes, str]:
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

        try:
            return self._ask(get)
        except ObjectMissingError:
            return None

    def replace(self, key: str, content: bytes, etag: str | None) -> str:
        """Put a small object on the condition that it has this ETag, or that there is none. Returns the new ETag.

        Raises:
            ObjectChangedError: the condition is not met. That is also so after a put whose response was lost.
            LakeError: the store did not answer. Whether the object was put is unknown.
        """
        import obstore

        mode: Any = "create" if etag is None else {"e_tag": etag}
        put = obstore.put
        return str(self._ask(lambda: put(self._store, key, content, mode=mode, use_multipart=False))["e_tag"])

    def put(self, key: str, content: bytes) -> None:
        """Put a small object in the place of what is there."""
        import obstore

        self._ask(lambda: obstore.put(self._store, key, content, use_multipart=False))

    def upload(self, key: str, path: Path) -> None:
        """Put a file as an object under a name that nobody else uses."""
        import obstore

        self._ask(lambda: obstore.put(self._store, key, path))

    def download(self, key: str, path: Path, size: int, sha256: str) -> None:
        """Write an object into a file, and check that it is what was uploaded.

        Raises:
            ObjectMissingError: there is no such object.
            LakeError: it is not what was uploaded, however often it is read.
        """
        import obstore

        def get() -> None:
            with path.open("wb") as handle:
                for chunk in obstore.get(self._store, key):
                    handle.write(chunk)

        for _ in range(ATTEMPTS):
            self._ask(get)
            if path.stat().st_size == size and hash_file(path) == sha256:
                return
        raise LakeError(
            f"{self.url}/{key} is not what was written: {path.stat().st_size:,} bytes, expected {size:,} with sha256 "
            f"{sha256[:12]}…. Make the artifact again with `distill refresh --force`."
        )

    def list_objects(self, prefix: str) -> list[ListedObject]:
        """The objects below a prefix that ends at a slash, with one request per 1,000 objects."""
        import obstore

        pages = self._ask(lambda: list(obstore.list(self._store, prefix)))
        return [
            ListedObject(meta["path"], meta["size"], str(meta["e_tag"]), meta["last_modified"])
            for page in pages
            for meta in page
        ]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. One that is not there is no error."""
        import obstore

        if keys:
            self._ask(lambda: obstore.delete(self._store, list(keys)))

    def _ask(self, request: Callable[[], T]) -> T:
        """Make a request that does no harm if it is made twice."""
        from obstore import exceptions

        started = time.monotonic()
        for left in reversed(range(ATTEMPTS)):
            try:
                return request()
            except (FileNotFoundError, exceptions.NotFoundError) as error:
                raise ObjectMissingError(self._describe(error)) from None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                raise ObjectChangedError(self._describe(error)) from None
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                remedy = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this machine."
                raise LakeError(f"{self.url} refuses access: {self._describe(error)} {remedy}") from None
            except (exceptions.BaseError, OSError) as error:
                if left and time.monotonic() - started < QUICK_S:
                    continue
                remedy = f"Check the address and {ENDPOINT_VARIABLES[-1]}, then run the command again: it goes on."
                raise LakeError(f"{self.url} failed: {self._describe(error)} {remedy}") from None
        raise AssertionError

    @staticmethod
    def _describe(error: Exception) -> str:
        text = " ".join(str(error).split("Debug source:")[0].split())
        return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


@lru_cache(maxsize=8)
def _open_store(url: str, endpoint: str | None) -> S3Store:
    """One store per lake and process: it keeps its connections open."""
    if importlib.util.find_spec("obstore") is None:
        raise DistillError(f"The lake {url} needs the package obstore. {S3_REMEDY}")
    from obstore.store import S3Store

    parts = urlsplit(url)
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        # A server on this machine or in this network may have no certificate.
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        },
        retry_config={
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
        },
        **options,
    )
