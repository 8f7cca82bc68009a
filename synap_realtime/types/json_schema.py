"""Convert the catalog to JSON Schema 2020-12. pydantic describes the payloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ..errors import InvalidArgumentError
from ..protocol.job_state import EVENTS
from ..protocol.notification import Status
from ..protocol.payloads import Truncated
from .catalog import Catalog

Schema = Mapping[str, Any]

MEMBERS: dict[str, Schema] = {
    "id": {
        "type": "string",
        "description": "Identifies the notification. Repeats have the same id.",
    },
    "requestId": {
        "type": "string",
        "description": "The request that this notification belongs to.",
    },
    "status": {
        "enum": list(get_args(Status)),
        "description": "The state of the job. Progress and retries are pending.",
    },
    "timestamp": {
        "type": "string",
        "format": "date-time",
        "description": "RFC 3339, in UTC with milliseconds.",
    },
    "fold": {
        "type": "object",
        "description": "What the log folds the notification into. See PROTOCOL.md, Folding.",
        "properties": {
            "key": {"type": "string"},
            "mode": {"enum": ["append", "replace"]},
            "attempt": {"type": "integer", "minimum": 0},
            "offset": {
                "type": "integer",
                "minimum": 0,
                "description": "How many code points of the text come before this piece.",
            },
            "final": {"type": "boolean"},
        },
        "required": ["key", "mode"],
    },
    "job": {
        "type": "object",
        "description": "The event of a job's run. See PROTOCOL.md, Job state.",
        "properties": {
            "event": {"enum": list(EVENTS)},
            "name": {"type": "string", "description": "The name of the job type."},
            "runId": {"type": "string"},
            "userId": {"type": "string"},
            "attempt": {"type": "integer", "minimum": 0},
        },
        "required": ["event", "name", "runId"],
    },
    "room": {"type": "string", "description": "The room that it was published to."},
    "cursor": {"type": "string", "description": "Its position in the room. Resume after it."},
}
"""Members of a delivered notification, besides ``type`` and ``data``. See PROTOCOL.md,
"Notification".
"""

ALWAYS_THERE = ("id", "timestamp", "room", "cursor")

_TRUNCATED = ""  # no notification has this type
_MODE: Final = "serialization"


@dataclass(frozen=True, slots=True)
class SchemaSet:
    """The catalog's payloads as schemas."""

    data: Mapping[str, Schema]
    truncated: Schema
    models: Mapping[str, Schema]

    def declares(self, schema: Schema, member: str) -> bool:
        """Return whether an object of this schema declares a member with this name."""
        return any(member in one.get("properties", {}) for one in _choices(schema, self.models))


def describe(catalog: Catalog) -> SchemaSet:
    """Generate the schemas in one call, so that models of the same name get different names."""
    adapters = {type: _adapter(type, data.payload) for type, data in catalog.items()}
    adapters[_TRUNCATED] = TypeAdapter(Truncated)
    schemas, document = TypeAdapter.json_schemas(
        [(type, _MODE, adapter) for type, adapter in adapters.items()]
    )
    return SchemaSet(
        data={type: schemas[type, _MODE] for type in catalog},
        truncated=schemas[_TRUNCATED, _MODE],
        models=document["$defs"],
    )


def _adapter(type: str, payload: Any) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(dict[str, Any] if payload is None else payload)
        schema = adapter.json_schema(mode=_MODE)
    except (
        PydanticUserError,
        PydanticSchemaGenerationError,
        PydanticUndefinedAnnotation,
    ) as error:
        raise InvalidArgumentError(type, str(error).splitlines()[0]) from error
    if any(one.get("type") != "object" for one in _choices(schema, schema.get("$defs", {}))):
        raise InvalidArgumentError(type, f"data must be a JSON object, and {payload!r} is not")
    return adapter


def _choices(schema: Schema, models: Mapping[str, Schema]) -> Iterator[Schema]:
    """Return the schemas of which one must match, without references."""
    if "$ref" in schema:
        yield from _choices(models[schema["$ref"].removeprefix("#/$defs/")], models)
    elif options := schema.get("oneOf", schema.get("anyOf")):
        for option in options:
            yield from _choices(option, models)
    else:
        yield schema


def to_json_schema(catalog: Catalog, comment: str) -> dict[str, Any]:
    """Return one document: a delivered notification of any of these types."""
    described = describe(catalog)

    def data(type: str, schema: Schema) -> Schema:
        whole_or_part = {"anyOf": [schema, described.truncated]}
        return whole_or_part if catalog[type].is_result else schema

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": comment,
        "title": "SynapNotification",
        "description": "A delivered notification.",
        "type": "object",
        "properties": MEMBERS,
        "required": list(ALWAYS_THERE),
        "oneOf": [
            {
                "properties": {"type": {"const": type}, "data": data(type, schema)},
                "required": ["type", "data"],
            }
            for type, schema in described.data.items()
        ],
        "$defs": described.models,
    }
