"""What finds texts of like meaning: a model that somebody else has loaded, or will when it is first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EmbedFunction = Callable[[list[str]], "np.ndarray"]
"""Texts to float32 (texts, dimensions), each row of length 1."""
