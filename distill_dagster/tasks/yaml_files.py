"""Texts and YAML of a task folder, read so that whatever is wrong has its file, line, field and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from distill_dagster.core.errors import InputError, Problem

SECRET_FIELDS = {"api_base", "api_key_env"}
"""Fields that a key may stand in by mistake: no message repeats what was found there."""
MAX_NESTING = 100
"""Lists and mappings of YAML in each other."""
T = TypeVar("T")


@dataclass
class ParseResult(Generic[T]):
    """What a file says, as far as it can be read, and what is wrong with it."""

    value: T | None
    problems: list[Problem] = field(default_factory=list)


def require_value(result: ParseResult[T]) -> T:
    """What a file says.

    Raises:
        InputError: something is wrong with it that is more than a warning.
    """
    errors = [p for p in result.problems if p.severity == "error"]
    if errors or result.value is None:
        raise InputError(errors)
    return result.value


def read_text(path: Path, problems: list[Problem]) -> str:
    """The text of a file; empty where it cannot be read, with the reason added to `problems`."""
    if path.is_symlink():
        problems.append(make_link_problem(path))
        return ""
    content = b""
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        problems.append(Problem(path, "the file is missing.", "Add it; the README shows what belongs into it."))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        remedy = "Save the file as UTF-8."
        problems.append(Problem(path, f"invalid UTF-8 at byte {error.start}.", remedy, line=line))
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there."))
    return ""


def make_link_problem(path: Path) -> Problem:
    """What is said of a symbolic link, which might lead out of the folder."""
    return Problem(path, "symbolic links are not followed.", "Put the file itself into the task folder.")


class _UniqueKeys:
    """Safe loading, but a key that stands twice in one mapping is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        loader: Any = super()
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, which the safe loader itself resolves
                continue
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        found: dict[Any, Any] = loader.construct_mapping(node, deep)
        return found


class _StrictLoader(_UniqueKeys, yaml.SafeLoader):
    """It says best what is wrong."""


_LibYamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_UniqueKeys, _LibYamlLoader):
    """It takes a tenth of the time, and a task may have a thousand slices."""


def _load_yaml(text: str, kind: Any) -> tuple[Any, yaml.Node | None]:
    loader = kind(text)
    try:
        tree = loader.get_single_node()
        return (loader.construct_document(tree) if tree else None), tree
    finally:
        loader.dispose()


def _load_yaml_fast(text: str) -> tuple[Any, yaml.Node | None]:
    """Raises: RecursionError: it is nested too deep, on which libyaml might end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise RecursionError
    return _load_yaml(text, _FastLoader)


def read_yaml(path: Path, problems: list[Problem]) -> tuple[Any, yaml.Node | None]:
    """What a YAML file says, and its nodes, which know their lines; what is wrong is added to `problems`."""
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
        what = error.problem or "malformed YAML"
        remedy = "Mend the YAML; texts with `:` or `#` want quotation marks."
        problems.append(Problem(path, f"{what}.", remedy, line=mark.line + 1 if mark else None))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: `2024-02-30` without quotation marks
        what = str(error).splitlines()[0] if str(error) else "nested too deep"
        remedy = "Mend the YAML; put texts that look like dates or numbers into quotation marks."
        problems.append(Problem(path, f"malformed YAML: {what}.", remedy))
    return None, None


def find_line(tree: yaml.Node | None, location: Iterable[int | str]) -> int | None:
    """The line of the deepest node that a pydantic location leads to."""
    if tree is None:
        return None
    line, current = tree.start_mark.line + 1, tree
    for step in location:
        if isinstance(current, yaml.MappingNode):
            found = next(((k, v) for k, v in current.value if k.value == str(step)), None)
            if found is None:
                break
            line, current = found[0].start_mark.line + 1, found[1]
        elif isinstance(current, yaml.SequenceNode) and isinstance(step, int) and step < len(current.value):
            current = current.value[step]
            line = current.start_mark.line + 1
    return line


_REMEDIES = {
    "extra_forbidden": "Remove it, or mend its spelling.",
    "missing": "Add it.",
    "too_short": "Add at least one.",
    "string_too_short": "Write some text.",
    "string_pattern_mismatch": "Write some text.",
    "string_type": "Put texts that look like numbers, dates or yes and no into quotation marks.",
}


def convert_validation_error(
    path: Path,
    error: ValidationError,
    line: Callable[[tuple[int | str, ...]], int | None],
    block: tuple[str, ...] = (),
) -> list[Problem]:
    """Pydantic's errors as problems of the file at `path`.

    Args:
        line: returns the line of a location in the file.
        block: the location of the validated block in the file, where it is not the whole file.
    """
    problems = []
    for item in error.errors():
        location = (*block, *item["loc"])
        message = item["msg"].removeprefix("Value error, ").rstrip(".")
        message = {
            "extra_forbidden": "an unknown field",
            "string_pattern_mismatch": "the text is empty",
            "dict_type": "a mapping of fields is wanted",
            "model_type": "a mapping of fields is wanted",
            "model_attributes_type": "a mapping of fields is wanted",
        }.get(item["type"], message[:1].lower() + message[1:])
        quoted = item["type"] not in ("missing", "extra_forbidden") and not SECRET_FIELDS & set(item["loc"])
        if quoted and isinstance(item["input"], str | int | float | bool):
            message += f" (found {str(item['input'])[:60]!r})"
        name = ".".join(str(part) for part in location) or None
        remedy = _REMEDIES.get(item["type"], "Mend the value; the README lists the fields.")
        problems.append(Problem(path, f"{message}.", remedy, line=line(location), field=name))
    return problems
