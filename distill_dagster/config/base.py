"""The base class of every block of `task.yaml`, and patterns of names."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

TASK_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,40}")
SLICE_KEY_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
STUDENT_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
VARIABLE_NAME_PATTERN = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


class ConfigModel(BaseModel):
    """One block of settings. Unknown keys are errors, so a misspelt setting never becomes a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
