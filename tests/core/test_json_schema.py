"""JSON schemas that users write: what is refused, and how values are checked."""

from __future__ import annotations

from distill_dagster.core.json_schema import find_answer_problem, find_schema_problem, is_strict_schema
from tests.support.kinds import SCHEMA


def test_user_schemas() -> None:
    assert find_schema_problem(SCHEMA) is None
    assert is_strict_schema(
        {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    )
    assert not is_strict_schema(SCHEMA), "`colours` may be left out"
    for schema, why in (
        ({"type": "objekt"}, "not a JSON schema at type"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}, "points outside the schema"),
        ({"type": "object", "patternProperties": {"(a+)+": {}}}, "patternProperties is not supported"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ):
        assert why in (find_schema_problem(schema) or ""), schema
    property_named_so = {"type": "object", "properties": {"pattern": {"type": "string"}, "$id": {"type": "string"}}}
    assert find_schema_problem(property_named_so) is None
    assert find_answer_problem("b", {"type": "string", "pattern": "^(a|aa)+$"}) is not None
    assert find_answer_problem("a" * 5000 + "b", {"type": "string", "pattern": "^(a|aa)+$"}) is not None, "at once"
    assert "cannot be applied" in (find_answer_problem(1, {"$ref": "#/$defs/none"}) or "")
