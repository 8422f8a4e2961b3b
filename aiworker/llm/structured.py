"""From a pydantic model to each provider's JSON schema, and from a model's text back to a value. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from aiworker.domain.completion import Completion, PromptRequest, Tool, ToolCall, Turn

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
# Of a string; Gemini refuses others.
_FORMATS = frozenset({"date-time", "date", "time"})
_SCHEMA_LISTS = frozenset({"anyOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties"})
_RENAMED = {"oneOf": "anyOf", "exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}

# As DeepSeek, Qwen, EXAONE, Seed, Claude (<think> and its kin), Magistral ([THINK]), Kimi (◁think▷) and Cohere mark it.
_THOUGHT = r"(?:\w+:)?(?:ant)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)"
_OPENS = rf"(?:<{_THOUGHT}>|(?-i:\[THINK\])|◁think▷|<\|(?:begin_of|start)_(?:thought|thinking)\|>)"
_CLOSES = rf"(?:</{_THOUGHT}>|(?-i:\[/THINK\])|◁/think▷|<\|end_(?:of_)?(?:thought|thinking)\|>)"
_THINKING = re.compile(rf"{_OPENS}.*?(?:{_CLOSES}|\Z)", re.DOTALL | re.IGNORECASE)
# Without any of these there is none of those.
_MARKS = ("<", "THINK]", "◁")
# Where the model's template opens the thinking itself, only its end is in the answer.
_THINKING_ENDS = re.compile(rf"\A.*{_CLOSES}", re.DOTALL | re.IGNORECASE)
# A model that writes newline after newline is read in one pass: `\s*` would begin anew at each of them.
_FENCE = re.compile(r"```[a-zA-Z]*[^\S\n]*\n(.*?)```", re.DOTALL)
_SHOWN_ANSWER = 4000
_SHOWN_PROBLEMS = 10


class AnswerMistake(Exception):
    """An answer that does not fit. `problems` is one line each, without values; meant for the model that made them."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RawCall:
    """A function that a model asks for, as it came."""

    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    opaque: str = field(default="", repr=False)
    id: str = ""


class Said(NamedTuple):
    """A provider's answer before anything of it is checked."""

    completion: Completion
    calls: tuple[RawCall, ...] = ()


@lru_cache(maxsize=256)
def schema_of(model: type[BaseModel], dialect: Dialect) -> Schema:
    """`model`'s JSON schema in `dialect`, without references; to be read only.

    Raises ValueError for a model that contains itself.
    """
    full = model.model_json_schema(by_alias=True, mode="validation")
    return _translated(full, full.get("$defs", {}), dialect, ())


def schema_hint(schema: Schema) -> str:
    """What a system prompt says of the schema, where the model does not see it or nothing enforces it."""
    return f"\n\nResponda só com JSON que siga este esquema:\n{orjson.dumps(schema).decode()}"


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
        if keyword == "format" and value not in _FORMATS:
            continue
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
    if not any(mark in text for mark in _MARKS):
        return text.strip()
    return _THINKING_ENDS.sub("", _THINKING.sub("", text)).strip()


def parse_answer(model: type[BaseModel], text: str) -> BaseModel:
    """The answer as a value of `model`; thinking, code fences and words around it are left out.

    Raises AnswerMistake, also where two answers are given. NaN and infinity are not JSON and are refused.
    """
    found: BaseModel | None = None
    problems: tuple[str, ...] = ()
    for raw in _json_texts(text):
        try:
            value = model.model_validate_json(raw)
        except ValidationError as error:
            problems = problems or _lines(error, "answer")
        else:
            if found is not None and value != found:
                raise AnswerMistake(("there are several answers, and one was asked for",))
            found = value
    if found is None:
        raise AnswerMistake(problems or ("the answer is not valid JSON",))
    return found


def _json_texts(text: str) -> list[str]:
    """What may be meant as the answer, all of it valid JSON: the whole, else what is fenced, else what is in braces."""
    # What looks like thinking or fences may be part of a string.
    if _is_json(text):
        return [text]
    bare = answer_text(text)
    if _is_json(bare):
        return [bare]
    if not bare.startswith(("{", "[")):
        fenced = [block for block in _FENCE.findall(bare) if _is_json(block)]
        if fenced:
            return fenced
    start, end = bare.find("{"), bare.rfind("}")
    in_braces = bare[start : end + 1]
    # The first of a list that was cut off is not the answer.
    alone = start >= 0 and not bare.startswith("[") and not bare[:start].rstrip().endswith("[")
    return [in_braces] if alone and _is_json(in_braces) else []


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def parse_calls(tools: tuple[Tool, ...], calls: tuple[RawCall, ...]) -> tuple[ToolCall, ...]:
    """The calls with their arguments as values of the tools' models. Raises AnswerMistake, also for an unknown name."""
    known = {tool.name: tool for tool in tools}
    parsed = []
    for call in calls:
        if call.name not in known:
            raise AnswerMistake((f"there is no such function; there are {', '.join(known)}",))
        try:
            arguments = known[call.name].arguments.model_validate(call.arguments)
        except ValidationError as error:
            raise AnswerMistake(_lines(error, call.name)) from None
        parsed.append(ToolCall(call.name, arguments, call.opaque, call.id))
    return tuple(parsed)


def _lines(error: ValidationError, whole: str) -> tuple[str, ...]:
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return tuple(f"{'.'.join(str(part) for part in item['loc']) or whole}: {item['msg']}" for item in found)


def repair_request(request: PromptRequest, said: Said, mistake: AnswerMistake) -> PromptRequest:
    """`request` again, after the model's own answer and what was wrong with it."""
    problems = "\n".join(f"- {problem}" for problem in mistake.problems[:_SHOWN_PROBLEMS])
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in said.calls]
    shown = answer_text(said.completion.text) or (orjson.dumps(calls).decode() if calls else "(vazio)")
    asked = (Turn("user", request.prompt),) if request.prompt else ()
    ending = "só com o JSON corrigido." if request.answer is not None and not calls else "sem esse erro."
    return dataclasses.replace(
        request,
        history=(*request.history, *asked, Turn("assistant", shown[:_SHOWN_ANSWER])),
        prompt=f"Sua resposta não serve:\n{problems}\nResponda de novo, {ending}",
    )
