"""A training that ends early goes on from its checkpoint and gives the same weights, bit by bit."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill_dagster.config import StudentSpec
from distill_dagster.config.checkpoint import CheckpointSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student.checkpoints import delete_checkpoints
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import TrainingLog, TrainRow
from tests.student.test_training import HELD, LABELS, MINILM, ROWS, SETTINGS, SMOLLM2
from tests.support.tiny_model import write_tiny_model

WEIGHTS = ("adapter_model.safetensors", "head.safetensors")
EPOCHS, STEPS = 3, 12


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), size=32)


def make_spec(tiny: Path, **changes: object) -> StudentSpec:
    """32 rows, 4 steps an epoch, with dropout, so that random states matter."""
    lora = SMOLLM2.lora.model_copy(update={"dropout": 0.2})
    changes = {"lora": lora, "patience": 5, "checkpoint": CheckpointSpec(every_steps=1)} | changes
    return SMOLLM2.model_copy(update={"model": str(tiny), **changes})


def train(
    spec: StudentSpec,
    folder: Path,
    name: str,
    rows: list[TrainRow] = ROWS,
    validation: list[TrainRow] = HELD,
    stop_at: int | None = None,
) -> TrainingLog:
    """Train with checkpoints in `folder`. The process "ends" in the middle of step `stop_at`."""

    def listen(made: progress.Progress) -> None:
        if made.done == stop_at:
            raise StoppedError

    with progress.listen_to_progress(listen):
        out, work = folder / name, folder / "work"
        log = train_adapter(spec, LABELS, SETTINGS, rows, validation, out, folder, EPOCHS, work=work)
    delete_checkpoints(work)
    return log


def read_weights(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in WEIGHTS if (out / name).exists()}


def check_equal(folder: Path, log: TrainingLog, expected: TrainingLog) -> None:
    assert read_weights(folder / "resumed") == read_weights(folder / "whole")
    for name in ("losses", "loss_parts", "validation", "best_epoch", "steps", "epochs"):
        assert getattr(log, name) == getattr(expected, name), name


@pytest.mark.parametrize("every", [1, 3])
def test_a_training_goes_on_from_any_step(every: int, tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny, checkpoint=CheckpointSpec(every_steps=every))
    expected = train(spec, tmp_path, "whole")
    assert (expected.steps, expected.resumed_at) == (STEPS, [])
    assert set(expected.loss_parts) == {"answer", "soft_label"}
    stops = [2, 4, 5, 9, 12] if every == 1 else [5, 8, 11]
    for stop in stops:  # each goes on from where the one before it ended
        with pytest.raises(StoppedError):
            train(spec, tmp_path, "resumed", stop_at=stop)
    log = train(spec, tmp_path, "resumed")
    check_equal(tmp_path, log, expected)
    # The checkpoint of an epoch's last step comes after validation, and none is written before the process ends there.
    assert log.resumed_at == ([1, 3, 4, 8, 11] if every == 1 else [3, 6, 9])
    assert 0 < log.seconds_before < log.seconds


def test_the_best_epoch_is_in_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """The validation rows contradict the training rows: the more it learns, the worse it gets."""
    spec = make_spec(tiny, learning_rate=1e-2, patience=2)
    against = [replace(row, answer_label={"red": "blue", "blue": "red"}[row.answer_label], soft={}) for row in HELD]
    expected = train(spec, tmp_path, "whole", validation=against)
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", validation=against, stop_at=11)
    log = train(spec, tmp_path, "resumed", validation=against)
    assert log.best_epoch in (1, 2), "an epoch that had ended before the kill"
    assert log.resumed_at == [10]
    check_equal(tmp_path, log, expected)


def test_an_encoder_goes_on(models_folder: Path, tmp_path: Path) -> None:
    spec = MINILM.model_copy(update={"checkpoint": CheckpointSpec(every_steps=1), "patience": 5})
    (tmp_path / "all-minilm-l6-v2").symlink_to(models_folder)
    expected = train(spec, tmp_path, "whole", ROWS[:16])
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", ROWS[:16], stop_at=4)
    log = train(spec, tmp_path, "resumed", ROWS[:16])
    assert log.resumed_at == [3]
    assert [scores["epoch"] for scores in log.validation] == [0, 1, 2, 3]
    check_equal(tmp_path, log, expected)
    assert "head.safetensors" in read_weights(tmp_path / "resumed")


@pytest.mark.parametrize("changed", ["learning_rate", "rows"])
def test_another_training_starts_over(changed: str, tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny)
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", stop_at=3)
    [old] = (tmp_path / "work" / "checkpoints").iterdir()
    other = spec.model_copy(update={"learning_rate": 1e-4}) if changed == "learning_rate" else spec
    rows = [replace(ROWS[0], weight=2.0), *ROWS[1:]] if changed == "rows" else ROWS
    with pytest.raises(StoppedError):
        train(other, tmp_path, "resumed", rows, stop_at=2)
    [new] = (tmp_path / "work" / "checkpoints").iterdir()
    assert new.name != old.name
    assert [path.name for path in new.glob("checkpoint-*")] == ["checkpoint-1"]


def test_how_often_it_is_saved_starts_nothing_over(tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny)
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", stop_at=6)
    log = train(spec.model_copy(update={"checkpoint": CheckpointSpec(every_steps=7)}), tmp_path, "resumed")
    assert log.resumed_at == [5]


def test_an_incomplete_checkpoint_does_not_count(tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny)
    expected = train(spec, tmp_path, "whole")
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", stop_at=8)
    [training] = (tmp_path / "work" / "checkpoints").iterdir()
    assert sorted(path.name for path in training.iterdir()) == ["checkpoint-6", "checkpoint-7"]
    (training / "checkpoint-7" / "progress.json").unlink()  # it is written last
    (training / "checkpoint-7" / "optimizer.pt").write_bytes(b"half")
    log = train(spec, tmp_path, "resumed")
    assert log.resumed_at == [6]
    check_equal(tmp_path, log, expected)


def test_without_checkpoints_it_starts_over(tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny, checkpoint=CheckpointSpec(every_steps=None))
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", stop_at=6)
    assert train(spec, tmp_path, "resumed").resumed_at == []


def test_tensorboard_files_have_every_figure_once(tiny: Path, tmp_path: Path) -> None:
    """Also after a kill: what was logged after the checkpoint is hidden, as TensorBoard does it."""
    spec = make_spec(tiny, checkpoint=CheckpointSpec(every_steps=3))
    with pytest.raises(StoppedError):
        train(spec, tmp_path, "resumed", stop_at=6)
    log = train(spec, tmp_path, "resumed")
    found = read_tensorboard(tmp_path / "work" / "tensorboard")
    assert found["train/loss"] == {step: pytest.approx(loss, abs=1e-6) for step, _, loss in log.losses}
    for name, part in log.loss_parts.items():
        assert found[f"train/loss_{name}"] == {step: pytest.approx(value, abs=1e-6) for step, value in part}
    assert list(found["eval/loss"].values()) == [pytest.approx(scores["loss"], abs=1e-6) for scores in log.validation]
    assert len(found["train/learning_rate"]) == STEPS


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars below a folder by name and step. A file that begins at a step hides the later ones of older files."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    files = sorted(folder.rglob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        data, position = file.read_bytes(), 0
        while position < len(data):  # the TFRecord format: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += length + 16
            if event.session_log.status == SessionLog.START:
                for name, scalars in found.items():
                    found[name] = {step: value for step, value in scalars.items() if step < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_mlflow_is_asked_for_only_with_a_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_dagster.student import training_logs

    monkeypatch.delenv(training_logs.MLFLOW_VARIABLE, raising=False)
    assert not training_logs.is_mlflow_wanted()
    monkeypatch.setenv(training_logs.MLFLOW_VARIABLE, "sqlite:///runs.db")
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(DistillError, match="pip install mlflow-skinny"):
            training_logs.is_mlflow_wanted()
    else:
        assert training_logs.is_mlflow_wanted()
    monkeypatch.setenv(training_logs.MLFLOW_OFF_VARIABLE, "TRUE")
    assert not training_logs.is_mlflow_wanted()


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student.train import train_adapter

def listen(made):
    if made.done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

arguments = pickle.loads(Path(sys.argv[1]).read_bytes())
with progress.listen_to_progress(listen):
    train_adapter(*arguments[:-1], work=arguments[-1])
"""


def test_a_killed_process_goes_on(tiny: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny)
    expected = train(spec, tmp_path, "whole")
    arguments = (spec, LABELS, SETTINGS, ROWS, HELD, tmp_path / "resumed", tmp_path, EPOCHS, tmp_path / "work")
    (tmp_path / "arguments").write_bytes(pickle.dumps(arguments))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "arguments")], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "resumed").exists()
    log = train(spec, tmp_path, "resumed")
    assert log.resumed_at == [6]
    check_equal(tmp_path, log, expected)
    saved = json.loads((tmp_path / "resumed" / "training_log.json").read_text())
    assert (saved["resumed_at"], saved["losses"][-1][2]) == ([6], expected.losses[-1][2])
