"""Generate docs/task-yaml.md and the JSON Schemas next to it from the models of the files that people write.

python -m distill_dagster.pipeline.task_reference        # a test fails while a file is stale
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.curation.filters.settings import list_declarable_filters
from distill_dagster.pipeline.task_schema import SchemaFile, build_file_schema, render_file_schema

DOCS = PROJECT_FOLDER / "docs"
REFERENCE_PAGE = DOCS / "task-yaml.md"
BEGIN_MARK, END_MARK = "<!-- generated from the models: begin -->", "<!-- generated from the models: end -->"
SCHEMA_FILES: dict[SchemaFile, str] = {"task": "task.schema.json", "slice": "slice.schema.json"}
_FILTERS_BLOCK = "FilterSettings"
_FILTER_BLOCKS = {built_in.__name__: name for name, built_in in list_declarable_filters().items()}
_TITLES: dict[SchemaFile, str] = {"task": "task.yaml", "slice": "A slice file", "row": "A line of a JSONL file"}
_TABLE_HEAD = "| field | value | default | meaning |\n| --- | --- | --- | --- |"
_Schema = Mapping[str, Any]


def render_reference_page() -> str:
    """docs/task-yaml.md with its generated part rendered again; the rest is written by hand."""
    text = REFERENCE_PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN_MARK)
    _, _, after = rest.partition(END_MARK)
    return f"{before}{BEGIN_MARK}\n\n{render_reference()}\n{END_MARK}{after}"


def render_reference() -> str:
    """The tables of all fields, as Markdown."""
    return "\n".join(part for file in _TITLES for part in _render_file(file))


def _render_file(file: SchemaFile) -> Iterator[str]:
    schema = build_file_schema(file)
    blocks = _collect_blocks(schema)
    anchors = {name: _to_anchor(paths[0]) for name, paths in blocks.items()}
    page = _Page(schema["$defs"], anchors | dict.fromkeys(_FILTER_BLOCKS, "parameters-of-filters"))
    yield f"\n## {_TITLES[file]}\n"
    yield from page.render_table(schema)
    for name, paths in blocks.items():
        block = page.blocks[name]
        yield f"\n### {paths[0]}\n\n{_to_cell(block['description'])}"
        if others := paths[1:]:
            yield f"\nAlso {', '.join(f'`{path}`' for path in others)}."
        yield ""
        yield from page.render_table(block)
        if name == _FILTERS_BLOCK:
            yield from page.render_filter_parameters()


def _collect_blocks(schema: _Schema) -> dict[str, list[str]]:
    """The paths of every block by its name in `$defs`, in the order of the fields that hold them.

    Paths without a name of the user's choice come first. Blocks of single filters are left out.
    """
    found: dict[str, list[str]] = {}

    def visit(block: _Schema, prefix: str) -> None:
        for name, field in block["properties"].items():
            for kind, suffix in _find_blocks(field):
                path = f"{prefix}{name}{suffix}"
                if chosen := _find_choice(schema["$defs"][kind]):
                    path += f" ({chosen})"
                if kind not in _FILTER_BLOCKS and path not in found.setdefault(kind, []):
                    found[kind].append(path)
                    visit(schema["$defs"][kind], f"{prefix}{name}{suffix}.")

    visit(schema, "")
    return {kind: sorted(paths, key=lambda path: ("<name>" in path, path.count("."))) for kind, paths in found.items()}


def _find_choice(block: _Schema) -> str | None:
    """The value of `kind` if the block is one of several that a field may contain."""
    return block["properties"].get("kind", {}).get("const")


def _find_blocks(field: _Schema) -> Iterator[tuple[str, str]]:
    """The blocks that a field may contain, each with what follows the field's name in its path."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], ""
    for option in field.get("anyOf", ()):
        yield from _find_blocks(option)
    if isinstance(field.get("items"), Mapping):
        yield from _find_blocks(field["items"])
    if isinstance(field.get("additionalProperties"), Mapping):
        yield from ((name, f".<name>{rest}") for name, rest in _find_blocks(field["additionalProperties"]))


@dataclass(frozen=True)
class _Page:
    """Renders the tables of one file: its blocks by name, and the anchor of the heading of each."""

    blocks: Mapping[str, _Schema]
    anchors: Mapping[str, str]

    def render_table(self, block: _Schema) -> Iterator[str]:
        yield _TABLE_HEAD
        for name, field in block["properties"].items():
            yield self.render_row(f"`{name}`", field, name in block.get("required", ()))

    def render_filter_parameters(self) -> Iterator[str]:
        """One table with the fields of all blocks of filters."""
        yield f"\n#### Parameters of filters\n\n[filters.md](filters.md) describes the filters.\n\n{_TABLE_HEAD}"
        for kind, name in _FILTER_BLOCKS.items():
            for parameter, field in self.blocks[kind]["properties"].items():
                if parameter != "enabled":
                    yield self.render_row(f"[`{name}`](filters.md#{name})`.{parameter}`", field)
        yield self.render_row("`<filter>.enabled`", self.blocks[next(iter(_FILTER_BLOCKS))]["properties"]["enabled"])

    def render_row(self, name: str, field: _Schema, is_required: bool = False) -> str:
        default = "required" if is_required else f"`{json.dumps(field['default'])}`" if "default" in field else ""
        meaning = field.get("description") or self.blocks[next(_find_blocks(field))[0]]["description"].split("\n")[0]
        return f"| {' | '.join(_to_cell(text) for text in (name, self.describe_value(field), default, meaning))} |"

    def describe_value(self, field: _Schema) -> str:
        """What may be written as the value of a field, in words."""
        if "$ref" in field:
            name = field["$ref"].rpartition("/")[2]
            return f"[{_find_choice(self.blocks[name]) or 'block'}](#{self.anchors[name]})"
        if "anyOf" in field:
            options = [self.describe_value(option) for option in field["anyOf"] if option != {"type": "null"}]
            is_nullable = {"type": "null"} in field["anyOf"] and field.get("default") is not None
            return " or ".join(dict.fromkeys([*options, *(["null"] if is_nullable else [])]))
        if "enum" in field or "const" in field:
            values = [f"`{value}`" for value in field.get("enum", [field.get("const")])]
            return " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))
        match field.get("type"):
            case "array":
                return f"list of {_bracket(self.describe_value(field['items']))}"
            case "object":
                inner = field.get("additionalProperties")
                return f"name to {_bracket(self.describe_value(inner))}" if isinstance(inner, Mapping) else "mapping"
            case "integer":
                return f"whole number{_describe_range(field)}"
            case "number":
                return f"number{_describe_range(field)}"
            case "boolean":
                return "true or false"
            case "string":
                return "date" if field.get("format") == "date" else "text"
        return "any value"


def _describe_range(field: _Schema) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {_format_number(least)} to {_format_number(most)}"
    parts = [("above", above), ("at least", least), ("at most", most), ("below", below)]
    words = [f"{word} {_format_number(value)}" for word, value in parts if value is not None]
    return f" {' and '.join(words)}" if words else ""


def _format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bracket(words: str) -> str:
    return f"({words})" if " or " in words and not words.startswith("`") else words


def _to_cell(text: str) -> str:
    """Text in one line of Markdown. Outside of code, `<` would begin a tag."""
    one_line = re.sub(r"\s*\n\s*", " ", text.strip()).replace("|", "\\|")
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], one_line)


def _to_anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def write_reference() -> None:
    """Write the page and the schemas."""
    REFERENCE_PAGE.write_text(render_reference_page(), encoding="utf-8")
    for file, name in SCHEMA_FILES.items():
        (DOCS / name).write_text(render_file_schema(file), encoding="utf-8")


if __name__ == "__main__":
    write_reference()
