"""A prefix tree of labels in tokens. It gives a distribution over labels without a bias to short ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Branch:
    """A point where labels differ: after `prefix`, one of `children` (token ids) follows.

    `labels[c]` are the indices of the labels below child c.
    """

    prefix: tuple[int, ...]
    children: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


class LabelTrie:
    """The prefix tree of labels in tokens.

    Only nodes with several children are choices. P(label) is a product over the branches on its path: at each, the
    softmax over the children. This is a distribution by construction. Forced tokens cost nothing, so labels with many
    tokens have no disadvantage. Every path ends with the end token, which separates a label from a longer one with the
    same prefix.
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
        self._add_branches(list(range(len(paths))), 0)

    def _add_branches(self, members: list[int], depth: int) -> None:
        while len(members) > 1:
            groups: dict[int, list[int]] = {}
            for label in members:
                groups.setdefault(self.paths[label][depth], []).append(label)
            if len(groups) > 1:
                self._add_branch(self.paths[members[0]][:depth], groups)
                for group in groups.values():
                    self._add_branches(group, depth + 1)
                return
            depth += 1

    def _add_branch(self, prefix: tuple[int, ...], groups: dict[int, list[int]]) -> None:
        index = len(self.branches)
        self.branches.append(Branch(prefix, tuple(groups), tuple(tuple(group) for group in groups.values())))
        for child, group in enumerate(groups.values()):
            for label in group:
                self.steps[label].append((index, child))

    @property
    def has_one_choice(self) -> bool:
        """Whether all labels differ in their first token, so that one forward pass is enough."""
        return len(self.branches) == 1 and not self.branches[0].prefix

    def find_probes(self) -> list[tuple[int, ...]]:
        """Find token sequences that together visit all branches: the prefixes that no other prefix extends."""
        prefixes = [branch.prefix for branch in self.branches]
        return [p for p in prefixes if not any(len(o) > len(p) and o[: len(p)] == p for o in prefixes)]

    def compute_log_probs(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
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

    def sum_by_child(self, probs: torch.Tensor, branch: int) -> torch.Tensor:
        """Sum a distribution over labels, shape (rows, labels), over the labels below each child of a branch."""
        import torch

        groups = self.branches[branch].labels
        return torch.stack([probs[:, list(group)].sum(1) for group in groups], dim=1)
