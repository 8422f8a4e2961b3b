"""Writes docs/api.md from the OpenAPI document and the error codes: `python scripts/build_api_reference.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiworker.domain.messages import CODES, sentence
from aiworker.gateway.openapi import document

TARGET = Path(__file__).parent.parent / "docs" / "api.md"

_HEAD = """# API reference
Written by `scripts/build_api_reference.py` from the models that check requests; do not edit. The same as OpenAPI 3.1:
`GET /openapi.json` of the gateway.

Send `Authorization: Bearer <token>`: a user's Supabase JWT, or the service key (also as `apikey`), which names the user
in `userId`. Paths also work without `/functions/v1`. A request sent again with its `Idempotency-Key` is one job.

```sh
curl -X POST $GATEWAY/functions/v1/enqueue-analysis -H "Authorization: Bearer $TOKEN" \\
     -H 'Content-Type: application/json' -d '{"type": "sofia_text", "input": {"text": "comi 200 g de arroz"}}'
curl "$GATEWAY/functions/v1/get-analysis-status?jobId=$JOB" -H "Authorization: Bearer $TOKEN"
```
"""


def page() -> str:
    """The file's content."""
    api = document()
    schemas = api["components"]["schemas"]
    parts = [_HEAD, "## Paths", _paths(api), "## Bodies"]
    for name in ("EnqueueRequest", "JobReference", "Accepted", "FromCache", "Job", "Error", "Health"):
        parts += [f"### {name}", _text(schemas[name]), _fields(schemas[name])]
    parts += ["## Inputs and results by type"]
    for name in sorted(schemas):
        if name.endswith(("Input", "Result")):
            parts += [f"### {name}", _text(schemas[name]), _fields(schemas[name])]
    parts += ["## Error codes", "`code` is stable; the sentence is for people and may change.", _codes()]
    return "\n".join(part for part in parts if part) + "\n"


def _paths(api: dict[str, Any]) -> str:
    rows = ["| | path | what | answers |", "|---|---|---|---|"]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            rows.append(
                f"| {method.upper()} | `{path}` | {operation['summary']} | {', '.join(operation['responses'])} |"
            )
    return "\n".join(rows)


def _text(schema: dict[str, Any]) -> str:
    return " ".join(schema.get("description", "").split())


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        must = "required" if name in required else _default(field)
        rows.append(f"| `{name}` | {_type(field)} | {must} |")
    return "\n".join(rows)


def _default(field: dict[str, Any]) -> str:
    return f"default `{field['default']}`" if field.get("default") is not None else ""


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    limits = {"minimum": "≥", "maximum": "≤", "maxLength": "length ≤"}
    told = [f"{sign} {field[key]:g}" for key, sign in limits.items() if key in field]
    kind = str(field.get("format") or field.get("type") or "any")
    return f"{kind} ({', '.join(told)})" if told else kind


def _codes() -> str:
    rows = ["| code | sentence |", "|---|---|"]
    rows += [f"| `{code}` | {sentence(code, 'en')} |" for code in sorted(CODES)]
    return "\n".join(rows)


if __name__ == "__main__":
    TARGET.write_text(page())
