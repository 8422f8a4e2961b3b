"""A small valid instance of a JSON schema, of the kind that pydantic makes."""

from __future__ import annotations

from typing import Any


def instance_of(schema: dict[str, Any]) -> Any:
    """Smallest numbers allowed, one item per array, the first of several choices."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return instance_of(schema["anyOf"][0])
    kind = schema.get("type")
    if kind == "object":
        return {name: instance_of(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        if "prefixItems" in schema:
            return [instance_of(part) for part in schema["prefixItems"]]
        return [instance_of(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
    if kind in ("number", "integer"):
        return _number(schema)
    return {"boolean": True, "null": None}.get(str(kind), "arroz branco")


def _number(schema: dict[str, Any]) -> float:
    least, most = schema.get("minimum", 0), schema.get("maximum", 100)
    middle = (least + most) / 2
    return int(middle) if schema.get("type") == "integer" else middle
