"""A student trained by two processes is the student that one process trains."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.config.checkpoint import CheckpointSpec
from distill_dagster.config.objective import TokenKdObjectiveSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.student import ranks
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_tiny_model

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
TEXTS = ["rye bread", "a flat tyre", "rolls", "my chain is rusty again", "a plum cake", "a bell", "sour loaf"]
ROWS = [TrainRow(str(n), StudentPrompt.from_text(text), ("red", "blue")[n % 2]) for n, text in enumerate(TEXTS)]
HELD = [TrainRow(f"h{n}", StudentPrompt.from_text(text), "red") for n, text in enumerate(["buns", "a dough", "pie"])]


def make_spec(model: Path) -> StudentSpec:
    """Steps of 3, 3 and 1 rows: on two ranks, one of them has no row of the last."""
    lora = LoraSpec(rank=4)
    return StudentSpec(model=str(model), architecture="causal_lm", lora=lora, batch_size=3, learning_rate=1e-2)


def test_two_ranks_train_what_one_process_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(write_tiny_model(tmp_path / "tiny", size=32))
    alone = train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, tmp_path / "alone", tmp_path)
    monkeypatch.setenv(ranks.PROCESSES_VARIABLE, "2")
    made: list[progress.Progress] = []
    with progress.listen_to_progress(made.append):
        log = train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, tmp_path / "ranks", tmp_path, work=tmp_path / "work")
    assert [(report.done, report.total) for report in made] == [(step, 6) for step in range(1, 7)]
    assert [loss for *_, loss in log.losses] == pytest.approx([loss for *_, loss in alone.losses], abs=1e-4)
    for one, other in zip(log.validation, alone.validation, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    weights = load_file(tmp_path / "ranks" / "adapter_model.safetensors")
    for name, weight in load_file(tmp_path / "alone" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)


SCRIPT = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from distill_dagster.config import StudentSpec
from distill_dagster.student.ranks import get_rank, join_ranks
from tests.student.test_trainer import build_trainer

join_ranks()
folder = Path(sys.argv[1])
trainer = build_trainer(StudentSpec.model_validate_json((folder / "spec.json").read_text()), folder, 4)
weights = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
for one in weights.values():
    one.data += 0.01 * get_rank()
trainer.train()
assert trainer.model_wrapped is trainer.model, type(trainer.model_wrapped)
save_file({name: one.detach() for name, one in weights.items()}, folder / f"{get_rank()}.safetensors")
"""


KILLED = """
import os, pickle, signal, sys
from pathlib import Path

from distill_dagster.core import progress
from distill_dagster.student.train import train_adapter

def listen(made):
    if made.done == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

arguments, named = pickle.loads(Path(sys.argv[1]).read_bytes())
with progress.listen_to_progress(listen):
    train_adapter(*arguments, **named)
"""


def test_two_ranks_of_which_one_was_killed_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, so that the random states of both ranks matter."""
    lora, checkpoint = LoraSpec(rank=4, dropout=0.2), CheckpointSpec(every_steps=1)
    spec = make_spec(write_tiny_model(tmp_path / "tiny", size=32))
    spec = spec.model_copy(update={"lora": lora, "checkpoint": checkpoint})
    given, work = (spec, LABELS, SETTINGS, ROWS, HELD), tmp_path / "work"
    resumed = (*given, tmp_path / "resumed", tmp_path)
    (tmp_path / "arguments").write_bytes(pickle.dumps((resumed, {"work": work})))
    (tmp_path / "rank.py").write_text(KILLED)
    ended = launch_ranks(tmp_path / "rank.py", tmp_path / "arguments")
    assert "Signal 9 (SIGKILL)" in ended.stderr
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setenv(ranks.PROCESSES_VARIABLE, "2")
    log = train_adapter(*resumed, work=work)
    whole = train_adapter(*given, tmp_path / "whole", tmp_path)
    assert log.resumed_at == [4]
    assert (log.losses, log.validation) == (whole.losses, whole.validation)
    name = "adapter_model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def launch_ranks(script: Path, argument: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*launcher, str(script), str(argument)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_ranks_start_equal_and_keep_no_copy_of_the_gradients(tmp_path: Path) -> None:
    """As DistributedDataParallel would. Here the weights of the second rank are others before the training."""
    spec = make_spec(write_tiny_model(tmp_path / "tiny", size=32))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    (tmp_path / "rank.py").write_text(SCRIPT)
    ended = launch_ranks(tmp_path / "rank.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, atol=0, rtol=0)


def test_two_ranks_read_what_the_first_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = (write_tiny_model(tmp_path / name, size=32, seed=len(name)) for name in ("tiny", "teacher"))
    objective = TokenKdObjectiveSpec(kind="token_kd", teacher=str(teacher))
    spec = StudentSpec(
        model=str(model), architecture="causal_lm", lora=LoraSpec(rank=4), objective=objective, batch_size=4, epochs=1
    )

    def train(name: str) -> list[float]:
        kept = tmp_path / f"{name}-kept"
        log = train_adapter(spec, LABELS, SETTINGS, ROWS, [], tmp_path / name, tmp_path, captured=kept)
        assert log.rows_captured == len(ROWS)
        assert len(list(kept.glob("*.parquet"))) == 1
        assert not [one for one in kept.iterdir() if one.suffix not in {".parquet", ".lock"}]
        return [loss for *_, loss in log.losses]

    alone = train("alone")
    monkeypatch.setenv(ranks.PROCESSES_VARIABLE, "2")
    assert train("ranks") == pytest.approx(alone, abs=1e-4)


def test_a_rank_leaves_its_error(tmp_path: Path) -> None:
    given: tuple[Any, ...] = (make_spec(tmp_path / "nowhere"), LABELS, SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
    (tmp_path / "arguments").write_bytes(pickle.dumps((given, {})))
    with pytest.raises(DistillError):
        ranks.run_rank(tmp_path)
    assert "nowhere" in (tmp_path / ranks.ERROR_FILE).read_text()
    assert not (tmp_path / ranks.LOG_FILE).exists()


def test_any_rank_leaves_its_error_and_the_first_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    for name in ("nowhere", "elsewhere"):
        given: tuple[Any, ...] = (make_spec(tmp_path / name), LABELS, SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
        (tmp_path / "arguments").write_bytes(pickle.dumps((given, {})))
        with pytest.raises(DistillError, match=name):
            ranks.run_rank(tmp_path)
    assert "nowhere" in (tmp_path / ranks.ERROR_FILE).read_text()


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_a_wrong_number_of_processes_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranks.PROCESSES_VARIABLE, value)
    with pytest.raises(DistillError, match=f"DISTILL_TRAINING_PROCESSES is '{value}'"):
        ranks.count_ranks()
