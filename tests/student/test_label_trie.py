from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.student.label_trie import LabelTrie
from distill_dagster.student.losses import build_soft_targets, compute_soft_loss
from distill_dagster.student.types import StudentPrompt, TrainRow

END = 0
paths_of_tokens = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=9, unique=True
)


def random_logits(trie: LabelTrie, rows: int = 3, seed: int = 0) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, len(b.children), generator=chance) * 4 for b in trie.branches]


@settings(max_examples=150, deadline=None)
@given(paths=paths_of_tokens, seed=st.integers(0, 100))
def test_probabilities_sum_to_one(paths: list[tuple[int, ...]], seed: int) -> None:
    trie = LabelTrie(paths, END)
    probs = trie.compute_log_probs(random_logits(trie, seed=seed)).exp()
    assert probs.shape[1] == len(paths)
    torch.testing.assert_close(probs.sum(1), torch.ones(probs.shape[0]))


@settings(max_examples=150, deadline=None)
@given(paths=paths_of_tokens)
def test_probes_pass_every_branch_and_masses_add_up(paths: list[tuple[int, ...]]) -> None:
    trie = LabelTrie(paths, END)
    probes = trie.find_probes()
    assert all(any(probe[: len(b.prefix)] == b.prefix for probe in probes) for b in trie.branches)
    probs = torch.full((1, len(paths)), 1 / len(paths))
    for index, branch in enumerate(trie.branches):
        below = sum(path[: len(branch.prefix)] == branch.prefix for path in trie.paths)
        torch.testing.assert_close(trie.sum_by_child(probs, index).sum(), torch.tensor(below / len(paths)))


def test_forced_tokens_cost_nothing() -> None:
    trie = LabelTrie([(5, 7, 8, 9), (6,)], END)
    assert trie.has_one_choice
    probs = trie.compute_log_probs([torch.zeros(1, 2)]).exp()
    torch.testing.assert_close(probs, torch.tensor([[0.5, 0.5]]))


def test_a_label_that_begins_another_ends_with_the_end_token() -> None:
    trie = LabelTrie([(5,), (5, 6), (7,)], END)
    assert not trie.has_one_choice
    assert [b.children for b in trie.branches] == [(5, 7), (END, 6)]
    root, deeper = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.2, 0.8]]).log()
    torch.testing.assert_close(trie.compute_log_probs([root, deeper]).exp(), torch.tensor([[0.15, 0.6, 0.25]]))


def test_a_shared_first_token_is_no_choice() -> None:
    trie = LabelTrie([(5, 1), (5, 2)], END)
    assert [(b.prefix, b.children) for b in trie.branches] == [((5,), (1, 2))]
    assert not trie.has_one_choice


@pytest.mark.parametrize("paths", [[], [()], [(1,), (1,)]])
def test_impossible_labels_are_refused(paths: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="token"):
        LabelTrie(paths, END)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000))
def test_soft_loss_of_one_hot_targets_is_cross_entropy(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, generator=chance) * 3
    labels = torch.randint(0, 4, (5,), generator=chance)
    target = torch.nn.functional.one_hot(labels, 4).float()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(compute_soft_loss(logits, target, 1.0), expected)


def test_soft_loss_is_zero_at_the_teacher_and_grows_away_from_it() -> None:
    rows = [TrainRow("p", StudentPrompt.from_text("t"), "a", {"a": 0.7, "b": 0.3})]
    target = build_soft_targets(rows, ["a", "b"], 2.0)
    same = torch.tensor([[0.7, 0.3]]).log()
    assert compute_soft_loss(same, target, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert compute_soft_loss(same.flip(1), target, 2.0).item() > 0.1


def test_gradients_keep_their_size_at_high_temperature() -> None:
    """Hinton et al. 2015, equation 4: at high T the scaled gradient is (z - v) / N for logits of mean 0."""
    student = torch.tensor([[1.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[-0.5, 0.5]])
    temperature = 100.0
    target = (teacher / temperature).softmax(-1)
    compute_soft_loss(student, target, temperature).sum().backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 2, rtol=1e-3, atol=1e-3)


def test_rows_without_soft_labels_are_one_hot_and_unknown_labels_refused() -> None:
    rows = [TrainRow("p", StudentPrompt.from_text("t"), "b")]
    assert build_soft_targets(rows, ["a", "b"], 3.0).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="not one of the labels"):
        build_soft_targets([TrainRow("p", StudentPrompt.from_text("t"), "b", {"z": 1.0})], ["a", "b"], 1.0)
