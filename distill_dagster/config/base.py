"""The base class of every block of `task.yaml`, and patterns of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

TASK_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,40}")
SLICE_KEY_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
STUDENT_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
VARIABLE_NAME_PATTERN = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


@dataclass(frozen=True)
class ShortForm:
    """Annotates a block that may be written as one value, such as `near: false`, for its JSON Schema.

    A validator of the block's model expands the value.
    """

    schema: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        forms: list[Any] = []
        for schema in (self.schema, handler(core)):
            forms += [form for form in schema.get("anyOf", [schema]) if form not in forms]
        return {"anyOf": forms}


SWITCH = ShortForm({"type": "boolean"})
MODEL_NAME = ShortForm({"type": "string"})


class ConfigModel(BaseModel):
    """One block of settings. Unknown keys are errors, so a misspelt setting never becomes a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
