"""JSON Schema of task.yaml and of the other files that people write, for editors and for the reference."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema

from distill_dagster.config import Task
from distill_dagster.curation.filters.settings import FilterSettings
from distill_dagster.tasks import LabelledRow
from distill_dagster.tasks.rows import SliceFile

SchemaFile = Literal["task", "slice", "row"]
"""task.yaml, a file in slices/, and one line of a JSONL file."""
_MODELS: dict[SchemaFile, tuple[type[BaseModel], str]] = {
    "task": (Task, "task.yaml"),
    "slice": (SliceFile, "slices/<slice>.yaml"),
    "row": (LabelledRow, "one line of examples.jsonl, dev.jsonl, golden.jsonl or human.jsonl"),
}


def build_file_schema(file: SchemaFile) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind of file. Its blocks are in `$defs`.

    Rules that involve several fields are left to `distill check`.
    """
    model, title = _MODELS[file]
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation")]
    if file == "task":
        models.append((FilterSettings, "validation"))
    definitions = models_json_schema(models, schema_generator=_FileSchema)[1]["$defs"]
    schema = definitions.pop(model.__name__)
    if file == "task":
        definitions["CurationSpec"]["properties"]["filters"] |= {"$ref": "#/$defs/FilterSettings"}
        schema["anyOf"] = [{"required": ["teacher"]}, {"required": ["teachers"]}]
    for block in (schema, *definitions.values()):
        del block["title"]  # the name of a class
    return {"$schema": GenerateJsonSchema.schema_dialect, "title": title} | schema | {"$defs": definitions}


def render_file_schema(file: SchemaFile) -> str:
    """The JSON Schema of one kind of file as text."""
    return json.dumps(build_file_schema(file), indent=1, ensure_ascii=False) + "\n"


class _FileSchema(GenerateJsonSchema):
    """Leaves out what an editor need not show: titles, and defaults that are empty or whole blocks."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        default = schema.get("default")
        if default in (None, "", [], (), {}) or isinstance(default, BaseModel):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}
