"""Check JSON schemas that users write, and apply them without network access and in linear time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.patterns import find_pattern_problem

_FORBIDDEN_KEYWORDS = {
    "patternProperties": "name the properties",
    "$dynamicRef": "use $ref",
    "$id": "leave it out",
}


def find_schema_problem(schema: dict[str, Any]) -> str | None:
    """Return what is wrong with a JSON schema (draft 2020-12), or None."""
    import jsonschema

    for path, node in _walk_nodes(schema, ""):
        for name, remedy in _FORBIDDEN_KEYWORDS.items():
            if name in node and not path.endswith("/properties"):
                return f"{name} is not supported; {remedy}"
        target = node.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            return f"$ref {target!r} points outside the schema; put that part under $defs"
        pattern = node.get("pattern")
        if isinstance(pattern, str) and not path.endswith("/properties") and (why := find_pattern_problem(pattern)):
            return f"pattern {pattern[:60]!r} is {why}"
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(str(p) for p in error.absolute_path)
        return f"not a JSON schema{f' at {place}' if place else ''}: {error.message[:200]}"
    return None


def find_answer_problem(value: Any, schema: dict[str, Any]) -> str | None:
    """Return why a value does not fit a schema, or None. The schema must have passed `find_schema_problem`."""
    import jsonschema

    try:
        worst = jsonschema.exceptions.best_match(_make_validator(to_canonical_json(schema)).iter_errors(value))
    except Exception as error:  # a $ref without a target fails only here
        return f"the schema cannot be applied: {str(error)[:200]}"
    if worst is None:
        return None
    place = ".".join(str(part) for part in worst.absolute_path)
    return f"{f'{place}: ' if place else ''}{worst.message[:200]}"


@lru_cache(maxsize=64)
def _make_validator(text: str) -> Any:
    import jsonschema
    from referencing import Registry

    # The registry retrieves nothing, and `pattern` runs in linear time.
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _validate_pattern})
    return validator(json.loads(text), registry=Registry())


def _validate_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    import jsonschema
    from polars import Series

    if isinstance(instance, str) and not Series([instance]).str.contains(pattern)[0]:
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


def _walk_nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from _walk_nodes(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk_nodes(inner, f"{path}/{number}")


def is_strict_schema(schema: Any) -> bool:
    """Whether every object requires all its properties and allows no others, as providers' strict mode demands."""
    return all(
        node.get("additionalProperties") is False and set(node.get("required", [])) == set(node.get("properties", {}))
        for _, node in _walk_nodes(schema, "")
        if node.get("type") == "object"
    )
