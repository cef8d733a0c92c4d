"""Labels as paths of tokens: a distribution over them without a bias to short labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Branch:
    """A point where labels part: behind `prefix`, one of `children` (token ids) follows.

    `labels[c]` are the indices of the labels below child c.
    """

    prefix: tuple[int, ...]
    children: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


class LabelTrie:
    """The prefix tree of labels in tokens.

    Only nodes with several children are choices, so P(label) is the product, over the branches on its path, of the
    softmax over that branch's children. It is a distribution by construction: forced tokens cost nothing and a label
    of many tokens is not at a disadvantage. Every path ends with the end token, which tells a label from a longer one
    that begins with it.
    """

    def __init__(self, paths: Sequence[Sequence[int]], end: int) -> None:
        """`paths[i]` are the token ids of label i without the end token.

        Raises:
            ValueError: there is no label, a path is empty, or two labels have the same tokens.
        """
        if not paths or any(not path for path in paths):
            raise ValueError("every label needs at least one token")
        self.paths = [(*path, end) for path in paths]
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("two labels have the same tokens")
        self.branches: list[Branch] = []
        self.steps: list[list[tuple[int, int]]] = [[] for _ in paths]
        """For each label the (branch, child) choices that lead to it."""
        self._grow(list(range(len(paths))), 0)

    def _grow(self, members: list[int], depth: int) -> None:
        while len(members) > 1:
            below: dict[int, list[int]] = {}
            for label in members:
                below.setdefault(self.paths[label][depth], []).append(label)
            if len(below) > 1:
                self._add_branch(self.paths[members[0]][:depth], below)
                for group in below.values():
                    self._grow(group, depth + 1)
                return
            depth += 1

    def _add_branch(self, prefix: tuple[int, ...], below: dict[int, list[int]]) -> None:
        index = len(self.branches)
        self.branches.append(Branch(prefix, tuple(below), tuple(tuple(group) for group in below.values())))
        for child, group in enumerate(below.values()):
            for label in group:
                self.steps[label].append((index, child))

    @property
    def one_choice(self) -> bool:
        """Whether all labels part at their first token, so that one forward pass tells them all."""
        return len(self.branches) == 1 and not self.branches[0].prefix

    def probes(self) -> list[tuple[int, ...]]:
        """Token sequences that together pass all branches: the prefixes that no longer prefix continues."""
        prefixes = [branch.prefix for branch in self.branches]
        return [p for p in prefixes if not any(len(o) > len(p) and o[: len(p)] == p for o in prefixes)]

    def log_probs(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log-probability of every label, shape (rows, labels).

        `logits[b]` has the shape (rows, children of branch b).
        """
        import torch

        choices = [branch.float().log_softmax(-1) for branch in logits]
        rows = choices[0].shape[0] if choices else 1
        columns = []
        for steps in self.steps:
            parts = [choices[branch][:, child] for branch, child in steps]
            columns.append(torch.stack(parts).sum(0) if parts else torch.zeros(rows))
        return torch.stack(columns, dim=1)

    def masses(self, probs: torch.Tensor, branch: int) -> torch.Tensor:
        """A distribution over labels, shape (rows, labels), summed over the labels below each child of a branch."""
        import torch

        groups = self.branches[branch].labels
        return torch.stack([probs[:, list(group)].sum(1) for group in groups], dim=1)
