"""Edit the text of a task.yaml: keep one of several teachers, and set a field. Comments and order stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from distill_dagster.core.errors import DistillError


def keep_teacher(text: str, name: str) -> str:
    """The text with `teacher`, one of the `teachers`, in the place of them all. `cascade` is removed.

    A comment above the kept teacher stays; comments above `teachers` and `cascade`, and the other teachers, go.

    Raises:
        DistillError: the task has no such teacher.
    """
    root = _parse(text)
    teachers = _find(root, "teachers")
    known = [key.value for key, _ in teachers[1].value] if teachers and _is_mapping(teachers[1]) else []
    if teachers is None or name not in known:
        remedy = f"Known: {', '.join(known)}." if known else "It has one `teacher`, without a name."
        raise DistillError(f"the task has no teacher {name!r}. {remedy}")
    kept = _find(teachers[1], name)
    assert kept is not None
    lines = text.splitlines(keepends=True)
    changes = [(*teachers, _render_teacher(text, *kept))]
    if cascade := _find(root, "cascade"):
        changes.append((*cascade, []))
    for key, value, new in sorted(changes, key=lambda change: change[0].start_mark.line, reverse=True):
        start, end = _find_comment(lines, key.start_mark.line), _count_lines(text, value)
        lines[start:end] = new
        if not new and start < len(lines) and not lines[start].strip():
            del lines[start]  # the blank line that separated what is gone
    return "".join(lines)


def set_field(text: str, path: Sequence[str], value: Any) -> str:
    """The text with a field set. Fields on the way to it are added if they are missing.

    Args:
        path: the names on the way, such as `("teacher", "few_shot", "draws")`.
        value: a plain value, a list or a mapping.

    Raises:
        DistillError: a field on the way is not a mapping.
    """
    node = _parse(text)
    for depth, name in enumerate(path):
        if not _is_mapping(node):
            place = ".".join(path[:depth])
            raise DistillError(f"{place} is not a mapping of fields, so {'.'.join(path)} cannot be set.")
        entry = _find(node, name)
        if entry is None:
            return _insert(text, node, path[depth:], value)
        key, node = entry
    start, end = key.end_mark.index, _find_end(text, node)
    return f"{text[:start]}: {_dump(value)}{text[end:]}"


def _parse(text: str) -> Any:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not _is_mapping(root):
        raise DistillError("task.yaml is not a mapping of fields.")
    return root


def _is_mapping(node: yaml.Node | None) -> bool:
    return isinstance(node, yaml.MappingNode)


def _find(mapping: Any, name: str) -> tuple[yaml.Node, Any] | None:
    return next(((key, value) for key, value in mapping.value if key.value == name), None)


def _find_end(text: str, node: Any) -> int:
    """The index after the last character of a node. PyYAML ends a block where the next token begins."""
    start: int = node.start_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">"):
        return int(node.end_mark.index)
    if isinstance(node, yaml.CollectionNode) and node.flow_style:
        return int(node.end_mark.index)
    if isinstance(node, yaml.ScalarNode):
        return start + len(text[start : node.end_mark.index].rstrip())
    parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    return max(_find_end(text, part) for part in parts)


def _count_lines(text: str, node: Any) -> int:
    """The number of lines up to the last one of a node."""
    return text.count("\n", 0, _find_end(text, node)) + 1


def _find_comment(lines: Sequence[str], line: int) -> int:
    """The first line of the comment directly above a line, or the line itself."""
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line


def _render_teacher(text: str, key: yaml.Node, value: Any) -> list[str]:
    lines = text.splitlines(keepends=True)
    if text[: key.start_mark.index].rpartition("\n")[2].strip():  # `teachers: {a: …, b: …}` on one line
        return [f"teacher: {text[value.start_mark.index : _find_end(text, value)]}\n"]
    line, column = key.start_mark.line, key.start_mark.column
    start = _find_comment(lines, line)
    block = [
        text_line[column:] if text_line.strip() else "\n" for text_line in lines[start : _count_lines(text, value)]
    ]
    block[line - start] = f"teacher{block[line - start][key.end_mark.column - column :]}"
    return block


def _insert(text: str, mapping: Any, path: Sequence[str], value: Any) -> str:
    """The text with a new field at the end of a mapping."""
    for name in reversed(path[1:]):
        value = {name: value}
    if mapping.flow_style or not mapping.value:
        end = mapping.end_mark.index - 1  # before the brace
        separator = ", " if mapping.value else ""
        return f"{text[:end].rstrip()}{separator}{path[0]}: {_dump(value)}{text[end:]}"
    end = _find_end(text, mapping)
    end = len(text) if (line_end := text.find("\n", end)) < 0 else line_end  # a comment behind the last value stays
    indent = " " * mapping.value[0][0].start_mark.column
    return f"{text[:end]}\n{indent}{path[0]}: {_dump(value)}{text[end:]}"


def _dump(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**31 - 1, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
