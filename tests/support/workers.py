"""Workers for tests: they compute parts in this process, as remote ones would, and count them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class FakeWorkers:
    """Counts the parts. Each part travels as bytes, as to another machine."""

    is_remote = True

    def __init__(self) -> None:
        self.parts = 0

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            self.parts += 1
            yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(part)))))
