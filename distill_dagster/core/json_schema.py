"""JSON schemas of users: checked once, and applied without the network and without endless regular expressions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from distill_dagster.core.hashing import to_canonical_json

_FORBIDDEN_KEYWORDS = {
    "patternProperties": "name the properties",
    "$dynamicRef": "use $ref",
    "$id": "leave it out",
}


def find_schema_problem(schema: dict[str, Any]) -> str | None:
    """What is wrong with a JSON schema (draft 2020-12), as a sentence, or None."""
    import jsonschema

    for path, node in _walk_nodes(schema, ""):
        for name, remedy in _FORBIDDEN_KEYWORDS.items():
            if name in node and not path.endswith("/properties"):
                return f"{name} is not taken; {remedy}"
        target = node.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            return f"$ref {target!r} leads out of the schema; put the part under $defs"
        pattern = node.get("pattern")
        if isinstance(pattern, str) and not path.endswith("/properties") and (why := _find_pattern_problem(pattern)):
            return why
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(str(p) for p in error.absolute_path)
        return f"not a JSON schema{f' at {place}' if place else ''}: {error.message[:200]}"
    return None


def find_answer_problem(value: Any, schema: dict[str, Any]) -> str | None:
    """Why a value does not fit a schema that `schema_problem` found nothing in, or None."""
    import jsonschema

    try:
        error = jsonschema.exceptions.best_match(_make_validator(to_canonical_json(schema)).iter_errors(value))
    except Exception as error_:  # a $ref to nowhere shows only here
        return f"the schema cannot be applied: {str(error_)[:200]}"
    if error is None:
        return None
    place = ".".join(str(p) for p in error.absolute_path)
    return f"{f'{place}: ' if place else ''}{error.message[:200]}"


@lru_cache(maxsize=64)
def _make_validator(text: str) -> Any:
    import json

    import jsonschema
    from referencing import Registry

    # The registry retrieves nothing; `pattern` runs in linear time.
    own = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _validate_pattern})
    return own(json.loads(text), registry=Registry())


def _validate_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    import jsonschema
    from polars import Series

    if isinstance(instance, str) and not Series([instance]).str.contains(pattern)[0]:
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


def _find_pattern_problem(pattern: str) -> str | None:
    from distill_dagster.core.patterns import find_pattern_problem

    why = find_pattern_problem(pattern)
    return f"pattern {pattern[:60]!r} is {why}" if why else None


def _walk_nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from _walk_nodes(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk_nodes(inner, f"{path}/{number}")


def is_strict_schema(schema: Any) -> bool:
    """Whether every object names all its properties as required and allows no other: what strict providers demand."""
    return all(
        node.get("additionalProperties") is False and set(node.get("required", [])) == set(node.get("properties", {}))
        for _, node in _walk_nodes(schema, "")
        if node.get("type") == "object"
    )
