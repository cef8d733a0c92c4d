"""The linear probe: its solution, its penalty, soft targets and weights, and the predictor of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from distill_dagster.student import predict
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.linear_probe import (
    ANCHOR_SCALES,
    PENALTIES,
    LinearHead,
    ProbeRows,
    build_probe_rows,
    compute_mean_loss,
    fit_linear_probe,
    fit_start_head,
    limit_rows,
)
from distill_dagster.student.predict import build_linear_probe_predictor, load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TrainRow
from tests.student.test_training import HELD, LABELS, MINILM, ROWS, SETTINGS, share_right

T = StudentPrompt.from_text("t")
RNG = np.random.default_rng(3)
TRUE = RNG.normal(size=(3, 6)) * 2


def draw(rows: int) -> ProbeRows:
    vectors = RNG.normal(size=(rows, 6))
    return ProbeRows(vectors, softmax(vectors @ TRUE.T, axis=1), np.ones(rows))


def test_without_anchors_it_is_scikit_learns_logistic_regression() -> None:
    """Soft targets and weights equal rows that are repeated with these weights."""
    rows = replace(draw(60), weights=RNG.uniform(0.5, 2, 60))
    scaled = rows.weights / rows.weights.mean()
    head = fit_linear_probe(rows, np.zeros((3, 6)), penalties=[0.5])
    numbers, labels = np.nonzero(rows.targets)
    peer = LogisticRegression(C=1 / 0.5, max_iter=5000, tol=1e-8)
    peer.fit(rows.vectors[numbers], labels, sample_weight=(rows.targets * scaled[:, None])[numbers, labels])
    probs = softmax(head.compute_logits(rows.vectors), axis=1)
    np.testing.assert_allclose(probs, peer.predict_proba(rows.vectors), atol=2e-3)


def test_a_strong_penalty_stays_at_the_anchors() -> None:
    anchors = RNG.normal(size=(3, 6))
    head = fit_linear_probe(draw(30), anchors, penalties=[1e9], scales=[1.0])
    np.testing.assert_allclose(head.weight, anchors / 0.05, rtol=1e-4)


def test_the_penalty_is_the_best_on_rows_that_were_not_fitted() -> None:
    rows, held = draw(25), draw(400)
    rows = replace(rows, targets=np.eye(3)[rows.targets.argmax(1)])
    anchors = np.zeros((3, 6))
    head = fit_linear_probe(rows, anchors, held)
    losses = {p: compute_mean_loss(fit_linear_probe(rows, anchors, held, [p]), held) for p in PENALTIES}
    assert head.penalty == min(losses, key=losses.__getitem__) != PENALTIES[-1]
    assert compute_mean_loss(head, held) == pytest.approx(min(losses.values()), abs=1e-3)


def test_many_rows_shorten_anchors_that_mislead_and_few_keep_good_ones() -> None:
    misleading, good = -0.05 * TRUE, 0.05 * TRUE
    assert fit_linear_probe(draw(200), misleading, draw(200)).anchor_scale == ANCHOR_SCALES[-1]
    few = fit_linear_probe(draw(4), good, draw(200))
    assert few.anchor_scale == ANCHOR_SCALES[0]
    assert (fit_start_head(draw(4), good, few).penalty or 0) == pytest.approx(10 * (few.penalty or 0))


def test_cross_validation_gives_noise_a_strong_penalty() -> None:
    vectors = RNG.normal(size=(40, 6))
    noise = ProbeRows(vectors, np.eye(3)[RNG.integers(3, size=40)], np.ones(40))
    assert fit_linear_probe(noise, np.zeros((3, 6))).penalty == PENALTIES[0]
    clear = draw(300)
    assert (fit_linear_probe(clear, np.zeros((3, 6))).penalty or 1) < 0.1


def test_one_row_is_enough() -> None:
    head = fit_linear_probe(ProbeRows(np.ones((1, 6)), np.eye(3)[[1]], np.ones(1)), np.zeros((3, 6)))
    assert head.compute_logits(np.ones((1, 6))).argmax() == 1


def test_many_rows_are_thinned_out_evenly() -> None:
    rows = [TrainRow(str(n), T, "red") for n in range(10)]
    assert [row.prompt_id for row in limit_rows(rows, most=4)] == ["0", "2", "5", "7"]
    assert limit_rows(rows, most=10) == limit_rows(rows) == rows
    assert limit_rows([]) == []


def test_rows_mix_soft_labels_and_answers_and_keep_weights() -> None:
    rows = [TrainRow("a", T, "red", {"red": 0.6, "blue": 0.4}, weight=2.0), TrainRow("b", T, "blue")]
    built = build_probe_rows(rows, np.zeros((2, 4)), ["red", "blue"], soft_weight=0.5)
    np.testing.assert_allclose(built.targets, [[0.8, 0.2], [0.0, 1.0]], atol=1e-6)
    assert built.weights.tolist() == [2, 1]
    assert compute_mean_loss(LinearHead(np.zeros((2, 4)), np.zeros(2)), built) == pytest.approx(np.log(2), abs=1e-6)


def test_the_predictor_learns_what_the_descriptions_hide(models_folder: Path) -> None:
    base = load_predictor(MINILM, LABELS, SETTINGS, models_folder)
    probe = build_linear_probe_predictor(ROWS, [], LABELS, models_folder)
    assert share_right(base.predict, HELD) < 0.5 < share_right(probe.predict, HELD) == 1.0
    assert base.parameters < probe.parameters < 1.01 * base.parameters
    [found] = probe.predict([StudentPrompt.from_text("rye bread")])
    assert found.label == "blue"
    assert sum(found.probs.values()) == pytest.approx(1)
    assert probe.predict([]) == []
    with pytest.raises(ValueError, match="no rows"):
        build_linear_probe_predictor([], [], LABELS, models_folder)


@pytest.mark.parametrize(("rate", "kept"), [(2e-3, "tuned"), (0.5, "probe")])
def test_an_encoder_keeps_the_better_of_its_probe_and_the_tuned_student(
    rate: float, kept: str, models_folder: Path, tmp_path: Path
) -> None:
    """A rate that ruins the encoder leaves the probe: fine-tuning cannot make a student worse on validation."""
    spec = MINILM.model_copy(update={"learning_rate": rate, "patience": 1})
    log = train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, tmp_path, models_folder, epochs=4)
    losses = [scores["loss"] for scores in log.validation]
    assert log.validation[0]["epoch"] == 0
    assert log.probe_penalty in PENALTIES
    student = EncoderStudent(spec, LABELS, SETTINGS, models_folder)
    if kept == "probe":
        assert (log.best_epoch, log.kept) == (0, "linear probe")
        student.fit_head(ROWS, HELD)
        probe = student.compute_log_probs([row.prompt for row in HELD])
        student = EncoderStudent(spec, LABELS, SETTINGS, models_folder)
        student.load_adapter(tmp_path, merge=True)
        torch.testing.assert_close(student.compute_log_probs([row.prompt for row in HELD]), probe, atol=1e-4, rtol=1e-4)
    else:
        assert (log.kept, log.best_epoch) == ("fine-tuned", losses.index(min(losses)))
        student.load_adapter(tmp_path, merge=True)
        assert student.compute_validation_scores(HELD)["loss"] == pytest.approx(min(losses), abs=1e-4)
        assert min(losses) < losses[0]


def test_fine_tuning_starts_from_a_stronger_penalty(models_folder: Path, tmp_path: Path) -> None:
    """A head that fits the rows as well as it can leaves the adapter nothing to learn."""
    student = EncoderStudent(MINILM, LABELS, SETTINGS, models_folder)
    base = student.model["head"].weight.detach().clone()
    student.fit_head(ROWS, HELD)
    probe = student.model["head"].weight.detach().clone()
    student.start_fine_tuning()
    start = student.model["head"].weight.detach()
    assert 0 < (start - base).norm() < (probe - base).norm()


def test_without_validation_the_tuned_student_is_kept(models_folder: Path, tmp_path: Path) -> None:
    log = train_adapter(MINILM, LABELS, SETTINGS, ROWS[:8], [], tmp_path, models_folder, epochs=1)
    assert (log.kept, log.best_epoch, log.epochs) == ("fine-tuned", None, 1)


def test_students_of_one_dataset_share_a_probe_and_other_rows_fit_another(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def count(*parts: Any) -> LinearHead:
        fits.append(parts)
        return fit_linear_probe(*parts)

    monkeypatch.setattr(predict, "fit_linear_probe", count)
    prompt = [StudentPrompt.from_text("rye bread")]
    rows = [replace(row, prompt_id=f"shared-{row.prompt_id}") for row in ROWS]
    first = build_linear_probe_predictor(rows, ROWS, LABELS, models_folder).predict(prompt)
    assert build_linear_probe_predictor(rows, ROWS, LABELS, models_folder).predict(prompt) == first
    assert len(fits) == 1
    changed = [replace(row, weight=2.0) if n == 0 else row for n, row in enumerate(rows)]
    assert build_linear_probe_predictor(changed, ROWS, LABELS, models_folder).predict(prompt) != first
    assert len(fits) == 2


def test_rows_of_weight_zero_teach_it_nothing(models_folder: Path) -> None:
    wrong = [replace(row, answer_label="red", soft={}, weight=0.0) for row in ROWS]
    probe = build_linear_probe_predictor([*ROWS, *wrong], ROWS, LABELS, models_folder)
    assert share_right(probe.predict, HELD) == 1.0
