"""Which few-shot examples stand before a prompt: a fixed choice per draw, or those nearest to the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from distill_dagster.config import FewShot
from distill_dagster.core.embedding import Embed
from distill_dagster.prompts.few_shot import Example, draws
from distill_dagster.tasks import normalize

if TYPE_CHECKING:
    import numpy as np

DIGITS = 4
"""Similarities are rounded to so many places, so that a machine's last bits do not change a prompt."""


class Choice(Protocol):
    """Gives the examples of one sample of a prompt, in prompt order."""

    shared: bool
    """Whether they are the same for every prompt."""

    def look_up(self, texts: Sequence[str]) -> None:
        """Prepare many prompts in one go; optional."""

    def examples(self, text: str, sample: int) -> list[Example]: ...


def choice_of(pool: list[Example], labels: list[str], few_shot: FewShot, embed: Embed | None) -> Choice:
    """The choice that a task asks for. `embed` is wanted for `few_shot.nearest` alone."""
    if not few_shot.nearest:
        return Fixed(draws(pool, labels, few_shot))
    assert embed is not None, "few_shot.nearest needs sentence embeddings"
    return Nearest(pool, few_shot, embed)


class Fixed:
    """The same examples before every prompt: a server keeps what it computed for them."""

    shared = True

    def __init__(self, draws: list[list[Example]]) -> None:
        self._draws = draws

    def look_up(self, texts: Sequence[str]) -> None:
        pass

    def examples(self, text: str, sample: int) -> list[Example]:
        return self._draws[sample % len(self._draws)]


class Nearest:
    """The examples most similar to each prompt, the most similar one last (Liu et al. 2022, KATE).

    With several draws they take turns: draw i has the ranks i, i + draws, i + 2 draws, and so on, so that all draws
    are about equally near. An example with the prompt's own text is left out.
    """

    shared = False

    def __init__(self, pool: list[Example], few_shot: FewShot, embed: Embed) -> None:
        self._pool = sorted(pool, key=lambda e: e.id)  # ties go to the smaller id
        self._keys = [normalize(e.text) for e in self._pool]
        self._few_shot, self._embed = few_shot, embed
        self._vectors: np.ndarray | None = None
        self._ranked: dict[str, list[int]] = {}

    def look_up(self, texts: Sequence[str]) -> None:
        import numpy as np

        unknown = list(dict.fromkeys(text for text in texts if text not in self._ranked))
        if not unknown or not self._pool:
            return
        if self._vectors is None:
            self._vectors = self._embed([e.text for e in self._pool])
        similar = np.round(self._embed(unknown) @ self._vectors.T, DIGITS)
        for text, row in zip(unknown, np.argsort(-similar, axis=1, kind="stable").tolist(), strict=True):
            own = normalize(text)
            wanted = self._few_shot.nearest * self._few_shot.draws
            self._ranked[text] = [i for i in row if self._keys[i] != own][:wanted]

    def examples(self, text: str, sample: int) -> list[Example]:
        self.look_up([text])
        ranked = self._ranked.get(text, [])
        return [self._pool[i] for i in reversed(ranked[sample % self._few_shot.draws :: self._few_shot.draws])]
