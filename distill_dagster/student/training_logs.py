"""Where a training's figures go besides the training log: TensorBoard, and MLflow if a tracking URI is set.

Import this module inside functions: it loads transformers.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import transformers
from transformers.integrations import MLflowCallback, TensorBoardCallback, is_mlflow_available

from distill_dagster.core.errors import DistillError

MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
MLFLOW_OFF_VARIABLE = "DISABLE_MLFLOW_INTEGRATION"
"""`TRUE` turns MLflow off although there is a tracking URI. transformers has the same variable."""


def is_mlflow_wanted() -> bool:
    """Whether figures go to MLflow.

    Raises:
        DistillError: they would, but MLflow is not installed.
    """
    if not os.environ.get(MLFLOW_VARIABLE) or os.environ.get(MLFLOW_OFF_VARIABLE, "").upper() == "TRUE":
        return False
    if not is_mlflow_available():
        raise DistillError(
            f"{MLFLOW_VARIABLE} is set, but MLflow is not installed. Run `pip install mlflow-skinny`, or set "
            f"{MLFLOW_OFF_VARIABLE}=TRUE."
        )
    return True


def build_log_callbacks(folder: Path, first_step: int) -> list[transformers.TrainerCallback]:
    """Callbacks of a `transformers.Trainer` that write to TensorBoard files in `folder`, and to MLflow if it is wanted.

    Args:
        first_step: the first step that is logged. What was logged of it and later steps before a kill is hidden.

    Raises:
        DistillError: MLflow is wanted, but not installed.
    """
    from tensorboardX import SummaryWriter

    # A file is named after the second, and a training that goes on within it would replace the file before.
    writer = SummaryWriter(str(folder), purge_step=first_step, filename_suffix=f".{time.time_ns()}")
    return [TensorBoardCallback(writer), *([MLflowCallback()] if is_mlflow_wanted() else [])]
