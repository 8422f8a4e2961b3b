"""From a pydantic model to each provider's JSON schema, and from a model's text back to a value. Pure."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ValidationError

from aiworker.domain.completion import PromptRequest, Turn

Dialect = Literal["ollama", "gemini"]
Schema = dict[str, Any]

_COMMON = frozenset(
    [
        "type",
        "description",
        "enum",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "anyOf",
        "properties",
        "required",
        "additionalProperties",
    ]
)
# Gemini: the list under `responseJsonSchema` in its API reference; what is not on it may be a 400. Ollama turns the
# schema into a grammar, where lengths and patterns unfold into thousands of rules: validation checks those afterwards.
_KEYWORDS: dict[Dialect, frozenset[str]] = {
    "gemini": _COMMON | {"format", "minimum", "maximum"},
    "ollama": _COMMON | {"minimum", "maximum"},
}
_SCHEMA_LISTS = frozenset({"anyOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties"})
_RENAMED = {"oneOf": "anyOf", "exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_SHOWN_ANSWER = 4000
_SHOWN_PROBLEMS = 10


class AnswerMistake(Exception):
    """An answer that does not fit. `problems` is one line each, without values; meant for the model that made them."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def schema_of(model: type[BaseModel], dialect: Dialect) -> Schema:
    """`model`'s JSON schema in `dialect`, without references. Raises ValueError for a model that contains itself."""
    full = model.model_json_schema(by_alias=True, mode="validation")
    return _translated(full, full.get("$defs", {}), dialect, ())


def _translated(schema: Schema, defs: Schema, dialect: Dialect, inside: tuple[str, ...]) -> Schema:
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        if name in inside:
            raise ValueError(f"{name} contains itself, which no provider's schema dialect can say")
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _translated({**defs[name], **beside}, defs, dialect, (*inside, name))
    if len(schema.get("allOf", ())) == 1:
        beside = {key: value for key, value in schema.items() if key != "allOf"}
        return _translated({**schema["allOf"][0], **beside}, defs, dialect, inside)
    out: Schema = {"enum": [schema["const"]]} if "const" in schema else {}
    for key, value in schema.items():
        keyword = _RENAMED.get(key, key)
        if keyword in _KEYWORDS[dialect]:
            out[keyword] = _translated_value(keyword, value, defs, dialect, inside)
    return out


def _translated_value(keyword: str, value: Any, defs: Schema, dialect: Dialect, inside: tuple[str, ...]) -> Any:
    if keyword == "properties":
        return {name: _translated(schema, defs, dialect, inside) for name, schema in value.items()}
    if keyword in _SCHEMA_LISTS:
        return [_translated(schema, defs, dialect, inside) for schema in value]
    if keyword in _SCHEMAS and isinstance(value, dict):
        return _translated(value, defs, dialect, inside)
    return value


def answer_text(text: str) -> str:
    """`text` without thinking blocks."""
    return _THINKING.sub("", text).strip()


def json_text(text: str) -> str:
    """The JSON in a model's answer: thinking, code fences and words around it are left out."""
    text = answer_text(text)
    if text.startswith(("{", "[")):
        return text
    fenced = _FENCE.search(text)
    if fenced:
        return fenced.group(1).strip()
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def parse_answer(model: type[BaseModel], text: str) -> BaseModel:
    """The answer as a value of `model`. Raises AnswerMistake; NaN and infinity are not JSON and are refused."""
    raw = json_text(text)
    try:
        orjson.loads(raw)
        return model.model_validate_json(raw)
    except orjson.JSONDecodeError:
        raise AnswerMistake(("the answer is not valid JSON",)) from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        lines = (f"{'.'.join(str(part) for part in item['loc']) or 'answer'}: {item['msg']}" for item in found)
        raise AnswerMistake(tuple(lines)) from None


def repair_request(request: PromptRequest, answer: str, mistake: AnswerMistake) -> PromptRequest:
    """`request` again, after the model's own answer and what was wrong with it."""
    problems = "\n".join(f"- {problem}" for problem in mistake.problems[:_SHOWN_PROBLEMS])
    said = answer_text(answer)[:_SHOWN_ANSWER] or "(vazio)"
    return dataclasses.replace(
        request,
        history=(*request.history, Turn("user", request.prompt), Turn("assistant", said)),
        prompt=f"Sua resposta não segue o formato pedido:\n{problems}\nResponda de novo, só com o JSON corrigido.",
    )
