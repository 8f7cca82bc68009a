"""The generated TypeScript: valid uses compile, and invalid uses do not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from typing_extensions import TypedDict

from synap_realtime.jobs import JobType
from synap_realtime.types import build_catalog, to_typescript
from synap_realtime.types.typescript import Models

from .conftest import Compile

pytestmark = pytest.mark.integration  # it runs the TypeScript compiler

USES = Path(__file__).parent.parent / "typescript"

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    ODD = 'a"b\\c*/'


class Leaf(BaseModel):
    kind: Literal["leaf"] = "leaf"
    value: int


class Fork(BaseModel):
    kind: Literal["fork"] = "fork"
    left: Tree
    right: Tree


class Tree(RootModel[Annotated[Leaf | Fork, Field(discriminator="kind")]]):
    """Grows."""


class Box(BaseModel, Generic[T]):
    content: T


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Plain:
    x: float | None = None


class Everything(BaseModel):
    """Ends a comment: */ and goes on.

    A second paragraph.
    """

    model_config = ConfigDict(extra="allow")
    text: str = Field(description="With ``code`` and */.", deprecated=True)
    when: datetime
    id: UUID
    price: Decimal
    colour: Colour
    tree: Tree
    numbers: Box[list[int]]
    pair: tuple[int, str | None]
    some: set[Literal["a", 1, None, True, -2]]
    counts: dict[str, int]
    by_colour: dict[Literal["red", "blue"], int]
    by_pattern: dict[Annotated[str, Field(pattern="^a")], bool]
    whatever: Any
    nothing: None
    nested: list[dict[str, Box[str] | None]]
    typed: Typed
    plain: Plain
    odd: int = Field(alias="not an-identifier")
    maybe: str | None = None


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    entity_id: str


class Empty(BaseModel):
    pass


class Truncated(BaseModel):
    """Named as one of ours, with a member of its name."""

    truncated: bool


Fork.model_rebuild()
Everything.model_rebuild()

EVERYTHING: dict[str, Any] = {
    "text": "é",
    "when": "2026-01-31T12:00:00Z",
    "id": "0198c0de-0000-7000-8000-000000000000",
    "price": "1.20",
    "colour": 'a"b\\c*/',
    "tree": {
        "kind": "fork",
        "left": {"kind": "leaf", "value": 1},
        "right": {"kind": "leaf", "value": 2},
    },
    "numbers": {"content": [1]},
    "pair": [1, None],
    "some": ["a", None, -2],
    "counts": {"x": 1},
    "by_colour": {"red": 1},
    "by_pattern": {"ab": True},
    "whatever": [1, {"a": None}],
    "nothing": None,
    "nested": [{"a": {"content": "c"}, "b": None}],
    "typed": {"a": 1},
    "plain": {"x": 1.5},
    "not an-identifier": 3,
    "more": "allowed",
}


def own() -> str:
    report = JobType("report.creation", payload=Everything)
    others = {"a.strict": Strict, "a.empty": Empty, "a.tree": Tree, "a.typed": Typed}
    cut = JobType("cut", payload=Truncated)
    return to_typescript(build_catalog({"own": [report, cut, others]}), "own")


def test_valid_front_end_code_compiles_and_invalid_code_does_not(
    errors_of: Compile,
) -> None:
    """In narrows.ts, each wrong line is marked: a mark without an error is an error."""
    types = to_typescript(build_catalog({}), "")
    assert errors_of(types=types, narrows=(USES / "narrows.ts").read_text()) == []
    (error,) = errors_of(wrong=(USES / "wrong_member.ts").read_text())
    assert "wrong.ts" in error
    assert "Property 'fileUrl' does not exist on type 'JobStarted'" in error


def test_types_of_pydantic_models_accept_their_output(
    errors_of: Compile,
) -> None:
    written = TypeAdapter(Everything).dump_json(
        Everything.model_validate(EVERYTHING), by_alias=True
    )
    uses = f"""
import type {{ Everything, SynapNotification }} from "./types";
const everything: Everything = {written.decode()};
everything.more;
const price: string = everything.price;
export const whole: SynapNotification<"cut.completed">["data"] = {{ truncated: false }};
// @ts-expect-error
everything.tree.left;
if (everything.tree.kind === "fork") everything.tree.left;
// @ts-expect-error
const colour: "red" = everything.colour;
// @ts-expect-error
everything.pair[2];
// @ts-expect-error
everything.by_colour.green;
// @ts-expect-error
everything.by_colour.red + 1;
export function of(notification: SynapNotification): number | undefined {{
  if (notification.type === "cut.completed") {{
    const truncated: boolean | undefined = notification.data.truncated;
    return "omitted" in notification.data ? notification.data.omitted.length : Number(truncated);
  }}
  if (notification.type === "a.typed") return notification.data.a;
  if (notification.type === "report.creation.completed" && !notification.data.truncated)
    return notification.data.numbers.content[0];
  return undefined;
}}
"""
    assert errors_of(types=own(), uses=uses) == []
    # The same uses, of a type that has lost its precision, fail.
    loose = own().replace("export type Colour = ", "export type Colour = any; type Unused = ")
    assert errors_of(types=loose, uses=uses) != []


def test_output_is_deterministic() -> None:
    assert own() == own()


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["*/", "a b", "/**", "``x``", "line\nline", "\u2028", "__proto__", "'", '"', "${x}"]
)
literals = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words


def described(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Pairs of a schema and a value that it describes, made from such pairs."""

    def object_of(members: Mapping[str, tuple[Any, Any]], doc: str) -> tuple[Any, Any]:
        schema = {
            "type": "object",
            "description": doc,
            "properties": {name: schema for name, (schema, _) in members.items()},
            "required": list(members)[1:],
        }
        return schema, {name: value for name, (_, value) in members.items()}

    def tuple_of(items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        prefix = [schema for schema, _ in items]
        size = {"minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": prefix, **size}, [value for _, value in items]

    return (
        st.builds(object_of, st.dictionaries(words, children, max_size=4), words)
        | st.lists(children, max_size=3).map(tuple_of)
        | children.map(lambda c: ({"type": "array", "items": c[0]}, [c[1], c[1]]))
        | children.map(lambda c: ({"anyOf": [c[0], {"type": "null"}]}, c[1]))
        | st.tuples(children, words).map(
            lambda c: ({"type": "object", "additionalProperties": c[0][0]}, {c[1]: c[0][1]})
        )
    )


pairs = st.recursive(
    st.sampled_from(
        [
            ({"type": "string"}, "x"),
            ({"type": "number"}, 1.5),
            ({"type": "boolean"}, True),
            ({}, [1]),
        ]
    )
    | literals.map(lambda value: ({"const": value}, value))
    | st.lists(literals, min_size=1, max_size=3).map(lambda v: ({"enum": v}, v[-1])),
    described,
    max_leaves=8,
)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(pairs, min_size=10, max_size=30))
def test_types_of_any_schema_accept_its_values(
    errors_of: Compile, several: list[tuple[Any, Any]]
) -> None:
    models = Models({f"M{n}": schema for n, (schema, _) in enumerate(several)})
    lines = [
        f"{models.declare(f'M{n}')}\nexport const m{n}: M{n} = {json.dumps(value)};"
        for n, (_, value) in enumerate(several)
    ]
    assert errors_of(any="\n".join(lines)) == []
