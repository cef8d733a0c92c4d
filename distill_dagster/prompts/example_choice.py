"""Choose the few-shot examples of a prompt: the same for each draw, or those nearest to the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from distill_dagster.config import FewShotSpec
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.text import normalize_text
from distill_dagster.prompts.few_shot import FewShotExample, build_draws

if TYPE_CHECKING:
    import numpy as np

SIMILARITY_DIGITS = 4
"""Decimal places that similarities are rounded to, so that a machine's last bits do not change a prompt."""


class ExampleChoice(Protocol):
    """Chooses the examples of each sample of a prompt, in prompt order."""

    shared: bool
    """Whether the examples are the same for every prompt."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Prepare many prompts at once. Optional: it is faster than one by one."""

    def choose(self, text: str, sample: int) -> list[FewShotExample]:
        """The examples of sample number `sample` of a prompt."""
        ...


def build_example_choice(
    pool: list[FewShotExample], labels: list[str], few_shot: FewShotSpec, embed: EmbedFunction | None
) -> ExampleChoice:
    """The choice of a task's settings. Only `few_shot.nearest` needs `embed`."""
    if not few_shot.nearest:
        return FixedExamples(build_draws(pool, labels, few_shot))
    assert embed is not None, "few_shot.nearest needs sentence embeddings"
    return NearestExamples(pool, few_shot, embed)


class FixedExamples:
    """The same examples before every prompt, so that a server can reuse the computed prefix."""

    shared = True

    def __init__(self, draws: list[list[FewShotExample]]) -> None:
        self._draws = draws

    def prepare(self, texts: Sequence[str]) -> None:
        pass

    def choose(self, text: str, sample: int) -> list[FewShotExample]:
        return self._draws[sample % len(self._draws)]


class NearestExamples:
    """The examples most similar to each prompt, the most similar one last (Liu et al. 2022, KATE).

    Several draws take turns: draw i has the ranks i, i + draws, i + 2 draws, and so on, so that all draws are about
    equally near. An example with the text of the prompt itself is left out.
    """

    shared = False

    def __init__(self, pool: list[FewShotExample], few_shot: FewShotSpec, embed: EmbedFunction) -> None:
        self._pool = sorted(pool, key=lambda example: example.id)  # ties go to the smaller id
        self._keys = [normalize_text(example.text) for example in self._pool]
        self._few_shot, self._embed = few_shot, embed
        self._vectors: np.ndarray | None = None
        self._ranked: dict[str, list[int]] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        import numpy as np

        unknown = list(dict.fromkeys(text for text in texts if text not in self._ranked))
        if not unknown or not self._pool:
            return
        if self._vectors is None:
            self._vectors = self._embed([example.text for example in self._pool])
        similar = np.round(self._embed(unknown) @ self._vectors.T, SIMILARITY_DIGITS)
        for text, row in zip(unknown, np.argsort(-similar, axis=1, kind="stable").tolist(), strict=True):
            key = normalize_text(text)
            number = self._few_shot.nearest * self._few_shot.draws
            self._ranked[text] = [index for index in row if self._keys[index] != key][:number]

    def choose(self, text: str, sample: int) -> list[FewShotExample]:
        self.prepare([text])
        ranked = self._ranked.get(text, [])
        return [self._pool[index] for index in reversed(ranked[sample % self._few_shot.draws :: self._few_shot.draws])]
