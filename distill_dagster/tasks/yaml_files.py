"""Read text and YAML files; every problem names its file, line, field and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import make_symlink_problem
from distill_dagster.tasks.unknown_fields import REFERENCE, drop_union_choices, suggest_field

SECRET_FIELDS = {"api_base", "api_key_env", "lake"}
"""Fields, or blocks, that may contain a key by mistake: no message repeats their value."""
MAX_NESTING = 100
"""How deep lists and mappings of a YAML file may be nested."""
T = TypeVar("T")


@dataclass
class ParseResult(Generic[T]):
    """The content of a file, as far as it can be read, and the problems in it."""

    value: T | None
    problems: list[Problem] = field(default_factory=list)


def require_value(result: ParseResult[T]) -> T:
    """The content of a file.

    Raises:
        InputError: the file has problems that are more than warnings.
    """
    errors = [p for p in result.problems if p.severity == "error"]
    if errors or result.value is None:
        raise InputError(errors)
    return result.value


def read_text(path: Path, problems: list[Problem]) -> str:
    """The text of a file. If it cannot be read, the text is empty and `problems` gets the reason."""
    if path.is_symlink():
        problems.append(make_symlink_problem(path))
        return ""
    content = b""
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        problems.append(Problem(path, "the file is missing.", f"Add it; {REFERENCE} shows what belongs in it."))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        remedy = "Save the file as UTF-8."
        problems.append(Problem(path, f"invalid UTF-8 at byte {error.start}.", remedy, line=line))
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there."))
    return ""


class _UniqueKeys:
    """A safe loader that rejects duplicate keys in a mapping. PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        loader: Any = super()
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, which the safe loader itself resolves
                continue
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        mapping: dict[Any, Any] = loader.construct_mapping(node, deep)
        return mapping


class _StrictLoader(_UniqueKeys, yaml.SafeLoader):
    """The loader with the best error messages."""


_LibYamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_UniqueKeys, _LibYamlLoader):
    """The loader that takes a tenth of the time: a task may have a thousand slices."""


def _load_yaml(text: str, kind: Any) -> tuple[Any, yaml.Node | None]:
    loader = kind(text)
    try:
        tree = loader.get_single_node()
        return (loader.construct_document(tree) if tree else None), tree
    finally:
        loader.dispose()


def _load_yaml_fast(text: str) -> tuple[Any, yaml.Node | None]:
    """As `_load_yaml`, with libyaml.

    Raises:
        RecursionError: the text is nested too deep, which could make libyaml end the process.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise RecursionError
    return _load_yaml(text, _FastLoader)


def read_yaml(path: Path, problems: list[Problem]) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML file and its node tree, which knows the lines. Problems are added to `problems`."""
    text = read_text(path, problems)
    if problems:
        return None, None
    try:
        try:
            return _load_yaml_fast(text)
        except yaml.YAMLError:
            return _load_yaml(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or "malformed YAML"
        remedy = "Fix the YAML; quote texts that contain `:` or `#`."
        problems.append(Problem(path, f"{message}.", remedy, line=mark.line + 1 if mark else None))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an unquoted `2024-02-30`
        reason = str(error).splitlines()[0] if str(error) else "nested too deep"
        remedy = "Fix the YAML; quote texts that look like dates or numbers."
        problems.append(Problem(path, f"malformed YAML: {reason}.", remedy))
    return None, None


def find_line(tree: yaml.Node | None, location: Iterable[int | str]) -> int | None:
    """The line of the deepest node that a pydantic location leads to."""
    if tree is None:
        return None
    line, current = tree.start_mark.line + 1, tree
    for step in location:
        if isinstance(current, yaml.MappingNode):
            entry = next(((key, value) for key, value in current.value if key.value == str(step)), None)
            if entry is None:
                break
            line, current = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(current, yaml.SequenceNode) and isinstance(step, int) and step < len(current.value):
            current = current.value[step]
            line = current.start_mark.line + 1
    return line


_REMEDIES = {
    "missing": "Add it.",
    "too_short": "Add at least one.",
    "string_too_short": "Write some text.",
    "string_pattern_mismatch": "Write some text.",
    "string_type": "Quote texts that look like numbers, dates or yes and no.",
}


def convert_validation_error(
    path: Path,
    error: ValidationError,
    root: type[BaseModel],
    line: Callable[[tuple[int | str, ...]], int | None],
    block: tuple[str, ...] = (),
) -> list[Problem]:
    """Pydantic's errors as problems of the file at `path`.

    Args:
        root: the model that did not accept the content.
        line: returns the line of a location in the file.
        block: the location of the validated block in the file, if it is not the whole file.
    """
    problems = []
    for item in error.errors():
        item_location = drop_union_choices(root, item["loc"])
        location = (*block, *item_location)
        message = item["msg"].removeprefix("Value error, ").rstrip(".")
        message = {
            "extra_forbidden": "an unknown field",
            "string_pattern_mismatch": "the text is empty",
            "dict_type": "not a mapping of fields",
            "model_type": "not a mapping of fields",
            "model_attributes_type": "not a mapping of fields",
            "union_tag_not_found": "`kind` is missing",
        }.get(item["type"], message[:1].lower() + message[1:])
        quoted = item["type"] not in ("missing", "extra_forbidden") and not SECRET_FIELDS & set(item["loc"])
        if quoted and isinstance(item["input"], str | int | float | bool):
            message += f" (found {str(item['input'])[:60]!r})"
        elif item["type"] == "union_tag_invalid":
            message = f"kind {item['ctx']['tag'][:60]!r} is not one of {item['ctx']['expected_tags']}"
        name = ".".join(str(part) for part in location) or None
        remedy = _REMEDIES.get(item["type"], f"Fix the value; {REFERENCE} lists the fields.")
        if item["type"] == "extra_forbidden":
            remedy = suggest_field(root, item["loc"])
        problems.append(Problem(path, f"{message}.", remedy, line=line(location), field=name))
    return problems
