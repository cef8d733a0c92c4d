"""The type of a function that embeds sentences. Its owner loads the model, at the latest on the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EmbedFunction = Callable[[list[str]], "np.ndarray"]
"""Returns a float32 array (texts, dimensions) for a list of texts. Each row has length 1."""
