"""Checkpoints of a training: what a killed training needs to go on as if nothing had happened.

`transformers.Trainer` writes optimizer, schedule, random states and its own state. Here are the other parts: which
folder, the trained weights, the training log, the best epoch, and which checkpoints are complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config.student import RUN_SETTINGS
from distill_dagster.core.files import write_atomically
from distill_dagster.core.hashing import hash_content
from distill_dagster.student.batches import MicroBatches

if TYPE_CHECKING:
    import torch

    from distill_dagster.config import LabelSpec, StudentSpec
    from distill_dagster.student.types import TaskSettings, TrainRow

PROGRESS_FILE = "progress.json"
"""Written last: a checkpoint without it is not complete."""
WEIGHTS_FILE = "trained.safetensors"
BEST_FILE = "best.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"
PACKAGES = ("torch", "transformers", "peft")


def compute_training_key(
    spec: StudentSpec,
    base: str | None,
    labels: Sequence[LabelSpec],
    settings: TaskSettings,
    rows: Sequence[TrainRow],
    validation: Sequence[TrainRow],
    epochs: int,
    taught_by: str = "",
) -> str:
    """Hash of all that decides what a training computes (64 hex digits). How often it is saved does not.

    Args:
        base: the hash of the base's weights, if it is known.
        taught_by: the hash of the model whose probabilities or layers are learned, if there is one.
    """
    from importlib.metadata import version

    value = {
        "spec": spec.model_dump(mode="json", exclude=set(RUN_SETTINGS)),
        "base": base,
        "taught_by": taught_by,
        "labels": [label.model_dump(mode="json") for label in labels],
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "validation": [asdict(row) for row in validation],
        "epochs": epochs,
        "packages": {name: version(name) for name in PACKAGES},
    }
    return hash_content(json.loads(json.dumps(value, default=str)))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training below `work`: the folders `checkpoint-<step>` in `folder`."""

    work: Path
    key: str

    @property
    def folder(self) -> Path:
        return self.work / CHECKPOINTS_FOLDER / self.key[:16]

    @property
    def tensorboard(self) -> Path:
        """The folder of this training's TensorBoard files. They stay, so that trainings can be compared."""
        return self.work / "tensorboard" / self.key[:8]

    @property
    def run_name(self) -> str:
        """The name of this training in MLflow: task, asset and student."""
        return "/".join(self.work.parts[-3:])

    def clean(self) -> None:
        """Delete checkpoints of other trainings below `work`, and those that a killed process left incomplete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        for path in self.folder.glob("checkpoint-*"):
            if not (path / PROGRESS_FILE).exists():
                shutil.rmtree(path)

    def find_latest(self) -> Path | None:
        """The checkpoint with the most steps."""
        found = self.folder.glob("checkpoint-*")
        return max(found, key=get_step, default=None)


def delete_checkpoints(work: Path) -> None:
    """Delete all checkpoints below the folder `work` of a training, when what it trained is stored."""
    shutil.rmtree(work / CHECKPOINTS_FOLDER, ignore_errors=True)


def get_step(checkpoint: Path | None) -> int:
    """The number of steps before a checkpoint: 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))


def write_progress(checkpoint: Path, progress: dict[str, Any]) -> None:
    """Complete a checkpoint: write what `read_progress` returns."""
    write_atomically(checkpoint / PROGRESS_FILE, json.dumps(progress))


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `write_progress` wrote."""
    value: dict[str, Any] = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
    return value


def read_micro_batches(checkpoint: Path) -> MicroBatches | None:
    """How the training that saved a checkpoint cut its steps. None: the checkpoint is of an earlier version."""
    saved = read_progress(checkpoint).get("micro_batches")
    return None if saved is None else MicroBatches(**saved)


def list_trained_weights(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that training changes, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights that `write_weights` wrote, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


def set_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give trained weights of a module new values. `weights` maps their names to tensors of the same shapes."""
    import torch

    trained = list_trained_weights(module)
    with torch.no_grad():
        for name, weight in weights.items():
            trained[name].copy_(weight)
