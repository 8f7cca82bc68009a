"""Convert the catalog to TypeScript, from the JSON Schema that pydantic generates.

An unsupported schema is an error, never a silent ``any``.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping

from ..errors import InvalidArgumentError
from .catalog import Catalog
from .json_schema import ALWAYS_THERE, MEMBERS, Schema, describe

_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")

_SCALARS = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}

# Keywords that TypeScript types cannot express, or that only inform the reader.
_PASSED_OVER = frozenset(
    """
    $comment contentEncoding contentMediaType contentSchema default deprecated description
    discriminator examples exclusiveMaximum exclusiveMinimum format maximum maxLength maxProperties
    minimum minLength minProperties multipleOf pattern readOnly title uniqueItems writeOnly
    """.split()  # noqa: SIM905 - many words
)
_OF_OBJECTS = frozenset(
    {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
)
_OF_ARRAYS = frozenset({"items", "prefixItems", "minItems", "maxItems"})
_COMBINING = frozenset({"$ref", "anyOf", "oneOf", "allOf"})
_KNOWN = _PASSED_OVER | _OF_OBJECTS | _OF_ARRAYS | _COMBINING | {"type", "enum", "const"}

_TAKEN = frozenset(
    """
    any unknown never void undefined null object string number boolean symbol bigint
    NotificationData NotificationType SynapNotification MaybeTruncated
    break case catch class const continue debugger default delete do else enum export extends false
    finally for function if implements import in instanceof interface let new package private
    protected public return static super switch this throw true try typeof var while with yield
    """.split()  # noqa: SIM905 - many words
)


def to_typescript(catalog: Catalog, comment: str) -> str:
    """Return a module of types only: the payloads, ``NotificationData`` and ``SynapNotification``.

    Raises:
        InvalidArgumentError: a payload has no schema (see ``describe``), or no TypeScript form.
    """
    described = describe(catalog)
    models = Models(described.models)
    part = models.type_of(described.truncated, "truncated")
    lines = []
    for type, schema in described.data.items():
        data = models.type_of(schema, type)
        if catalog[type].is_result and catalog[type].payload is not None:
            # A payload that declares such a member itself cannot be distinguished by it.
            own = described.declares(schema, "truncated")
            data = f"{data} | (Partial<{data}> & {part})" if own else f"MaybeTruncated<{data}>"
        lines.append(f"{json.dumps(type)}: {data};")
    envelope = {"properties": MEMBERS, "required": ALWAYS_THERE}
    members = models.members_of(envelope, "SynapNotification")
    return "\n".join(
        [
            *(f"// {line}".rstrip() for line in comment.splitlines()),
            "",
            *(models.declare(name) + "\n" for name in described.models),
            _DATA.format(part=part, members=textwrap.indent("\n".join(lines), "  ")),
            _NOTIFICATION.format(members=textwrap.indent(members, "    ")),
        ]
    )


_DATA = """\
/** A job's result: complete, unless `truncated` is set. */
export type MaybeTruncated<T> = (T & {{ truncated?: undefined }}) | (Partial<T> & {part});

/** The type of `data` for each notification `type`. */
export interface NotificationData {{
{members}
}}

/** The known notification types; a client may receive others. */
export type NotificationType = keyof NotificationData;
"""

_NOTIFICATION = """\
/**
 * A delivered notification. Checking its `type` narrows its `data`.
 * `SynapNotification<"note.creation.failed">` is of that type only.
 */
export type SynapNotification<Type extends NotificationType = NotificationType> = {{
  [T in Type]: {{
    type: T;
    data: NotificationData[T];
{members}
  }};
}}[Type];
"""


class Models:
    """Named schemas, the ``$defs`` of a document, and the TypeScript of their references."""

    def __init__(self, models: Mapping[str, Schema]) -> None:
        self._models = models
        self._names: dict[str, str] = {}
        for model in models:
            name = re.sub(r"\W", "_", model, flags=re.ASCII)
            if name in _TAKEN or name in self._names.values():
                raise InvalidArgumentError(
                    model, f"{name!r} is already used or reserved in TypeScript; rename it"
                )
            self._names[model] = name

    def declare(self, model: str) -> str:
        """Return the exported declaration of one of the models."""
        schema, name = self._models[model], self._names[model]
        doc = _doc(schema)
        body = self.type_of(schema, name)
        is_plain = not _COMBINING & schema.keys()
        if is_plain and body.startswith("{\n") and body.endswith("\n}"):
            return f"{doc}export interface {name} {body}"
        return f"{doc}export type {name} = {body};"

    def type_of(self, schema: object, path: str) -> str:
        """Return the TypeScript type of a schema."""
        if schema is True or schema == {}:
            return "unknown"
        if schema is False:
            return "never"
        if not isinstance(schema, Mapping):
            raise InvalidArgumentError(path, f"expected a JSON Schema, got {schema!r}")
        for keyword in schema:
            if keyword not in _KNOWN and not keyword.startswith("x-"):
                raise InvalidArgumentError(
                    path, f"TypeScript has no form for the JSON Schema keyword {keyword!r}"
                )
        return _joined(" & ", self._parts_of(schema, path), "unknown")

    def _parts_of(self, schema: Schema, path: str) -> Iterable[str]:
        """Return the parts of an intersection."""
        if "$ref" in schema:
            yield self._referred(schema["$ref"], path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield _union(self.type_of(option, path) for option in schema[keyword])
        for part in schema.get("allOf", ()):
            yield self.type_of(part, path)
        if "const" in schema:
            yield _literal(schema["const"], path)
        elif "enum" in schema:
            yield _union(_literal(value, path) for value in schema["enum"])
        elif "type" in schema:
            kinds = schema["type"]
            kinds = [kinds] if isinstance(kinds, str) else kinds
            yield _union(self._kind(kind, schema, path) for kind in kinds)
        elif keywords := (_OF_OBJECTS | _OF_ARRAYS) & schema.keys():
            raise InvalidArgumentError(
                path, f"{min(keywords)!r} requires a 'type' in the same schema"
            )

    def _referred(self, reference: str, path: str) -> str:
        model = reference.removeprefix("#/$defs/")
        if model not in self._names:
            raise InvalidArgumentError(path, f"nothing is at {reference!r}")
        return self._names[model]

    def _kind(self, kind: str, schema: Schema, path: str) -> str:
        if kind == "object":
            return self._object(schema, path)
        if kind == "array":
            return self._array(schema, path)
        if kind not in _SCALARS:
            raise InvalidArgumentError(path, f"no such type in JSON: {kind!r}")
        return _SCALARS[kind]

    def _object(self, schema: Schema, path: str) -> str:
        parts = []
        if schema.get("properties"):
            parts.append("{\n" + textwrap.indent(self.members_of(schema, path), "  ") + "\n}")
        others = list(schema.get("patternProperties", {}).values())
        # JSON Schema allows additional members by default. They are typed only if declared.
        rest = schema.get("additionalProperties", not parts and not others)
        if rest is not False or not (parts or others):
            others.append(rest)
        if others:
            value = _union(self.type_of(other, f"{path}[key]") for other in others)
            keys = self.type_of(schema.get("propertyNames", True), f"{path}[key]")
            if keys in ("string", "unknown"):
                parts.append(f"{{ [key: string]: {value} }}")
            else:
                parts.append(f"{{ [Key in {keys}]?: {value} }}")
        return _joined(" & ", parts, "never")

    def members_of(self, schema: Schema, path: str) -> str:
        """Return the members of an object, one per line, with their descriptions."""
        lines = []
        for name, member in schema["properties"].items():
            key = name if _IDENTIFIER.fullmatch(name) else json.dumps(name)
            optional = "" if name in schema.get("required", ()) else "?"
            lines.append(
                f"{_doc(member)}{key}{optional}: {self.type_of(member, f'{path}.{name}')};"
            )
        return "\n".join(lines)

    def _array(self, schema: Schema, path: str) -> str:
        prefix = schema.get("prefixItems", ())
        first = [self.type_of(item, f"{path}[{n}]") for n, item in enumerate(prefix)]
        rest = self.type_of(schema.get("items", True), f"{path}[]")
        if not first and schema.get("maxItems") != 0:
            return _element(rest)
        needed = schema.get("minItems", 0)
        items = [item if n < needed else f"({item})?" for n, item in enumerate(first)]
        if rest != "never" and schema.get("maxItems", len(first) + 1) > len(first):
            items.append(f"...{_element(rest)}")
        return f"[{', '.join(items)}]"


def _element(item: str) -> str:
    return f"{item}[]" if re.fullmatch(r"[\w$]+(\[\])*", item) else f"({item})[]"


def _union(options: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(options))
    if "unknown" in distinct:
        return "unknown"
    return _joined(" | ", [o for o in distinct if o != "never"], "never")


def _joined(operator: str, parts: Iterable[str], if_none: str) -> str:
    several = list(dict.fromkeys(parts))
    if len(several) < 2:
        return several[0] if several else if_none
    return operator.join(f"({p})" if operator == " & " and " | " in p else p for p in several)


def _literal(value: object, path: str) -> str:
    if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise InvalidArgumentError(path, f"TypeScript has no literal type for {value!r}")


def _doc(schema: object) -> str:
    """Return a comment that ends with a newline; empty without a description."""
    if not isinstance(schema, Mapping):
        return ""
    # Docstrings are reStructuredText; comments in TypeScript are Markdown.
    text = str(schema.get("description", "")).replace("``", "`").replace("*/", "*\\/")
    lines = text.strip().splitlines()
    if "format" in schema:
        lines.append(f"@format {schema['format']}")
    if schema.get("deprecated"):
        lines.append("@deprecated")
    if not lines:
        return ""
    if len(lines) == 1:
        return f"/** {lines[0]} */\n"
    return "\n".join(["/**", *(f" * {line}".rstrip() for line in lines), " */"]) + "\n"
