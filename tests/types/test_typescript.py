"""The TypeScript of each part of JSON Schema, and errors for the parts without one."""

from __future__ import annotations

from typing import Any

import pytest

from synap_realtime import InvalidArgumentError
from synap_realtime.jobs import JobType
from synap_realtime.types import build_catalog, to_typescript
from synap_realtime.types.typescript import Models

MODELS = Models({"Leaf": {"type": "string"}, "Box_int_": {"type": "object"}, "a.b-c": {}})
STRING, NULL, INTEGER = {"type": "string"}, {"type": "null"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "typescript"),
    [
        ({}, "unknown"),
        (True, "unknown"),
        (False, "never"),
        ({"title": "X", "default": 1, "x-own": 1}, "unknown"),
        ({"type": "string", "format": "date-time", "minLength": 1}, "string"),
        ({"type": "integer", "minimum": 1}, "number"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"$ref": "#/$defs/Leaf", "description": "Beside it."}, "Leaf"),
        ({"$ref": "#/$defs/a.b-c"}, "a_b_c"),
        ({"const": "a\n"}, '"a\\n"'),
        ({"enum": ["a", 1, None, True], "type": "string"}, '"a" | 1 | null | true'),
        ({"anyOf": [STRING, NULL, STRING]}, "string | null"),
        ({"anyOf": [{}, NULL]}, "unknown"),
        ({"oneOf": [STRING, INTEGER], "discriminator": {}}, "string | number"),
        ({"allOf": [{"$ref": "#/$defs/Leaf"}, {"anyOf": [STRING, NULL]}]},
         "Leaf & (string | null)"),
        ({"type": "array", "items": STRING}, "string[]"),
        ({"type": "array"}, "unknown[]"),
        ({"type": "array", "items": {"anyOf": [STRING, NULL]}}, "(string | null)[]"),
        ({"type": "array", "items": {"type": "array", "items": STRING}}, "string[][]"),
        ({"type": "array", "prefixItems": [STRING, INTEGER], "maxItems": 2, "minItems": 2},
         "[string, number]"),
        ({"type": "array", "prefixItems": [STRING], "items": INTEGER, "minItems": 1},
         "[string, ...number[]]"),
        ({"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 1},
         "[string, (number)?]"),
        ({"type": "array", "maxItems": 0}, "[]"),
        ({"type": "object"}, "{ [key: string]: unknown }"),
        ({"type": "object", "additionalProperties": False}, "{ [key: string]: never }"),
        ({"type": "object", "additionalProperties": INTEGER}, "{ [key: string]: number }"),
        ({"type": "object", "patternProperties": {"^a": INTEGER}}, "{ [key: string]: number }"),
        ({"type": "object", "additionalProperties": STRING, "propertyNames": {"enum": ["a", "b"]}},
         '{ [Key in "a" | "b"]?: string }'),
        ({"type": "object", "properties": {"a": STRING, "b c": {}}, "required": ["a"]},
         '{\n  a: string;\n  "b c"?: unknown;\n}'),
        ({"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
         "{\n  a?: string;\n} & { [key: string]: unknown }"),
    ],
)  # fmt: skip
def test_the_type_of(schema: object, typescript: str) -> None:
    assert MODELS.type_of(schema, "here") == typescript


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"not": STRING}, "a.b: TypeScript has no form for the JSON Schema keyword 'not'"),
        ({"if": {}, "then": {}}, "keyword 'if'"),
        ({"type": "array", "items": {"dependentRequired": {}}}, r"a.b\[\]: .* 'dependentRequired'"),
        ({"type": "object", "properties": {"c": {"not": {}}}}, "a.b.c: .* keyword 'not'"),
        ({"properties": {}}, "'properties' requires a 'type'"),
        ({"type": "date"}, "no such type in JSON: 'date'"),
        ({"const": [1]}, "no literal type"),
        ({"enum": [float("inf")]}, "no literal type"),
        ({"$ref": "#/$defs/Gone"}, "nothing is at '#/\\$defs/Gone'"),
        ("string", "expected a JSON Schema"),
    ],
)
def test_unrepresentable_type_is_an_error_with_its_location(schema: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        MODELS.type_of(schema, "a.b")


@pytest.mark.parametrize("name", ["NotificationData", "any", "MaybeTruncated"])
def test_duplicate_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is already used or reserved in TypeScript"):
        Models({name: {"type": "object"}})


def test_colliding_model_names_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"a-b: 'a_b' is already used"):
        Models({"a_b": {}, "a-b": {}})


def test_descriptions_become_comments() -> None:
    schema = {
        "description": "A ``Leaf``.\n\nTwo */ lines.",
        "type": "object",
        "properties": {
            "a": {"type": "string", "description": "One."},
            "b": {"type": "string", "format": "uuid", "deprecated": True},
        },
        "required": ["a"],
    }
    assert Models({"Leaf": schema}).declare("Leaf") == (
        "/**\n"
        " * A `Leaf`.\n"
        " *\n"
        " * Two *\\/ lines.\n"
        " */\n"
        "export interface Leaf {\n"
        "  /** One. */\n"
        "  a: string;\n"
        "  /**\n"
        "   * @format uuid\n"
        "   * @deprecated\n"
        "   */\n"
        "  b?: string;\n"
        "}"
    )


def test_non_object_types_become_aliases() -> None:
    assert Models({"L": {"enum": ["a"]}}).declare("L") == 'export type L = "a";'


def test_job_type_without_a_payload_accepts_any_object() -> None:
    types = to_typescript(build_catalog({"own": JobType("a.b")}), "How to\nregenerate it.")
    assert types.startswith("// How to\n// regenerate it.\n\n")
    assert '  "a.b.completed": { [key: string]: unknown };\n' in types
    assert '  "a.b.cancelled": JobCancelled;\n' in types
    assert '  "note.creation.completed": MaybeTruncated<NoteCreated>;\n' in types
    assert '  "conversation.response.delta": JobDelta;\n' in types
