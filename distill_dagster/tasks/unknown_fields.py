"""Suggest the field that a person meant where a file has an unknown one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

REFERENCE = "docs/task-yaml.md"
"""The page that lists every field; `pipeline.task_reference` writes it."""
MAX_LISTED = 12
"""A block with more fields is not listed in a message."""


_PLAIN_BLOCKS: dict[tuple[type[BaseModel], str], type[BaseModel]] = {}


def declare_block(owner: type[BaseModel], field: str, content: type[BaseModel]) -> None:
    """Name the model behind a field that `owner` keeps as plain data, such as `curation.filters`."""
    _PLAIN_BLOCKS[owner, field] = content


def suggest_field(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What to do about an unknown field of a file that `root` describes.

    A slip in the name counts most, then a field of this name in a block below, then one with a similar name.

    Args:
        location: pydantic's location of the unknown field, with its name last.
    """
    *block, last = location
    name = str(last)
    types = _find_types(root, tuple(block))
    known = [field for one in types if _is_model(one) for field in one.model_fields]
    below = [path for one in types for path in list_paths(one) if path.endswith(f".{name}")]
    if close := find_close_name(name, known, least=0.85):
        return f"Did you mean {close!r}?"
    if below:
        return _suggest_paths([".".join([*map(str, block), path]) for path in below])
    if close := find_close_name(name, known):
        return f"Did you mean {close!r}?"
    if known and len(known) <= MAX_LISTED:
        return f"Remove it, or use one of: {', '.join(known)}."
    paths = list_paths(root)
    if meant := find_close_name(name, [path.rpartition(".")[2] for path in paths], least=0.85):
        return _suggest_paths([path for path in paths if path.rpartition(".")[2] == meant])
    return f"Remove it, or fix its spelling; {REFERENCE} lists all fields."


def _suggest_paths(paths: list[str]) -> str:
    nearest = sorted(paths, key=lambda path: (path.count("."), "<name>" in path))[:3]
    return f"Did you mean {' or '.join(map(repr, nearest))}? {REFERENCE} lists all fields."


def find_close_name(name: str, known: list[str], least: float = 0.7) -> str | None:
    """The known name that is most like `name`, apart from capitals and hyphens, if at least `least` of it is alike."""
    plain = {_simplify(candidate): candidate for candidate in reversed(known)}
    found = get_close_matches(_simplify(name), plain, n=1, cutoff=least)
    return plain[found[0]] if found else None


def _find_types(root: type[BaseModel], block: tuple[int | str, ...]) -> list[Any]:
    """What the block at a location of pydantic may be."""
    types: list[Any] = [root]
    for step in block:
        inner = [part for one in types for part in _enter(one, step)] or _choose_by_kind(types, step)
        types = inner or types  # pydantic also names the member of a union or a validator, which is no step in the file
    return types


def drop_union_choices(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without the `kind` that pydantic adds where a field may be one of several models."""
    types: list[Any] = [root]
    kept: list[int | str] = []
    for step in location:
        inner = [part for one in types for part in _enter(one, step)]
        chosen = [] if inner else _choose_by_kind(types, step)
        types = inner or chosen or types
        kept += [] if chosen else [step]
    return tuple(kept)


def _choose_by_kind(types: list[Any], kind: int | str) -> list[Any]:
    """The models among `types` whose field `kind` has this value only."""
    fields = [(one, one.model_fields.get("kind")) for one in types if _is_model(one)]
    return [one for one, field in fields if field is not None and get_args(field.annotation) == (kind,)]


def _get_annotation(model: type[BaseModel], field: str) -> Any:
    return _PLAIN_BLOCKS.get((model, field), model.model_fields[field].annotation)


def list_paths(root: Any, prefix: str = "", seen: tuple[Any, ...] = ()) -> list[str]:
    """The dotted paths of all fields, those of outer blocks first. A name of the user's choice is `<name>`."""
    here: list[str] = []
    below: list[str] = []
    for one in _split(root):
        if get_origin(one) is dict:
            below += list_paths(get_args(one)[1], f"{prefix}<name>.", seen)
        elif get_origin(one) in (list, tuple):
            below += list_paths(get_args(one)[0], prefix, seen)
        elif _is_model(one) and one not in seen:
            for name in one.model_fields:
                here.append(f"{prefix}{name}")
                below += list_paths(_get_annotation(one, name), f"{prefix}{name}.", (*seen, one))
    return list(dict.fromkeys([*here, *below]))


def _simplify(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _is_model(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, BaseModel)


def _enter(one: Any, step: int | str) -> Iterator[Any]:
    """The types of what is at `step` inside a value of type `one`."""
    if _is_model(one) and step in one.model_fields:
        yield from _split(_get_annotation(one, str(step)))
    elif get_origin(one) is dict:
        yield from _split(get_args(one)[1])
    elif get_origin(one) in (list, tuple) and isinstance(step, int):
        yield from _split(get_args(one)[0])


def _split(annotation: Any) -> Iterator[Any]:
    """The members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        yield from _split(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _split(member)
    else:
        yield annotation
