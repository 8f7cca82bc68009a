"""Describe ``data`` of each notification for front ends: JSON Schema and TypeScript."""

from __future__ import annotations

from .catalog import Catalog, build_catalog, load
from .json_schema import to_json_schema
from .typescript import to_typescript

__all__ = ["Catalog", "build_catalog", "load", "to_json_schema", "to_typescript"]
