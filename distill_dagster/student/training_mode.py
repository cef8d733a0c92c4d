"""Switch a module between training and evaluation for a while: in evaluation, dropout is off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def set_training(module: Any, mode: bool) -> Iterator[None]:
    """Put a torch module in training mode, or with `mode` False in evaluation mode, within the block."""
    before = module.training
    module.train(mode)
    try:
        yield
    finally:
        module.train(before)
