from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import pkgutil
import time
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fakes.json_instance import instance_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, create_model

from aiworker import analyses
from aiworker.analyses.registry import ANALYSES
from aiworker.domain.completion import Completion, PromptRequest, Tool, ToolCall, Turn
from aiworker.llm.structured import (
    AnswerMistake,
    RawCall,
    Said,
    answer_text,
    parse_answer,
    parse_calls,
    repair_request,
    schema_of,
)


class Portion(BaseModel):
    grams: float = Field(gt=0, le=2000, description="visíveis")
    title: str = Field(min_length=2, max_length=80, pattern="^a")
    when: date | None = None


class Meal(BaseModel):
    """A meal."""

    kind: Literal["almoco"]
    foods: list[Portion] = Field(min_length=1, max_length=30)
    default: Portion
    pair: tuple[int, str] = (1, "a")
    by_name: dict[str, Portion] = {}
    either: Portion | int = Field(0, union_mode="left_to_right")


class Node(BaseModel):
    child: Node | None = None


ALLOWED = {"type", "description", "enum", "items", "prefixItems", "minItems", "maxItems", "anyOf", "properties"} | {
    "required",
    "additionalProperties",
    "format",
    "minimum",
    "maximum",
}


def keywords(schema: Any) -> set[str]:
    """Every keyword used in schema position; property names are not keywords."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for key, value in schema.items():
        if key == "properties":
            found |= keywords(list(value.values()))
        elif key in ("items", "additionalProperties", "anyOf", "prefixItems"):
            found |= keywords(value)
    return found


@pytest.mark.parametrize("dialect", ["ollama", "gemini"])
def test_schema_keeps_what_the_model_needs_and_nothing_else(dialect: Any) -> None:
    schema = schema_of(Meal, dialect)
    assert keywords(schema) <= ALLOWED
    assert set(schema["properties"]) == {"kind", "foods", "default", "pair", "by_name", "either"}
    assert schema["properties"]["kind"]["enum"] == ["almoco"]
    portion = schema["properties"]["foods"]["items"]
    assert set(portion["properties"]) == {"grams", "title", "when"}
    assert portion["properties"]["grams"] == {
        "type": "number",
        "description": "visíveis",
        "minimum": 0,
        "maximum": 2000,
    }
    assert schema["properties"]["default"] == portion
    assert schema["properties"]["by_name"]["additionalProperties"] == portion
    assert schema["properties"]["foods"]["minItems"] == 1


def test_dialects_differ_in_format() -> None:
    assert "format" in keywords(schema_of(Meal, "gemini"))
    assert "format" not in keywords(schema_of(Meal, "ollama"))


def test_gemini_is_told_only_the_formats_that_it_knows() -> None:
    model = create_model("Formats", when=(datetime, ...), day=(date, ...), who=(UUID, ...), name=(str, ...))
    formats = {name: field.get("format") for name, field in schema_of(model, "gemini")["properties"].items()}
    assert formats == {"when": "date-time", "day": "date", "who": None, "name": None}


def test_recursive_model_is_refused() -> None:
    with pytest.raises(ValueError, match="contains itself"):
        schema_of(Node, "ollama")


FIELDS = st.sampled_from([str, int, float, bool, list[str], Portion, list[Portion], Literal["a", "b"], int | None])
NAMES = st.sampled_from(["title", "type", "ref", "items", "default", "properties", "const", "nome"])


@given(st.dictionaries(NAMES, FIELDS, min_size=1))
@settings(deadline=None)
def test_any_model_survives_translation(fields: dict[str, Any]) -> None:
    model = create_model("Any_", **{name: (kind, ...) for name, kind in fields.items()})
    for dialect in ("ollama", "gemini"):
        schema = schema_of(model, dialect)
        assert keywords(schema) <= ALLOWED
        assert set(schema["properties"]) == set(fields)
        assert set(schema["required"]) == set(fields)


def project_models() -> list[type[BaseModel]]:
    """Every pydantic model of the analyses: inputs, what models must answer, results."""
    for module in pkgutil.iter_modules(analyses.__path__, "aiworker.analyses."):
        importlib.import_module(module.name)
    found: list[type[BaseModel]] = []
    todo = [BaseModel]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            if kind.__module__.startswith("aiworker.analyses."):
                found.append(kind)
    return found


ANSWERS = [prompt.answer for each in ANALYSES.values() for prompt in each.prompts if prompt.answer]


def test_every_answer_model_is_among_the_projects() -> None:
    assert len(ANSWERS) >= 2
    assert set(ANSWERS) <= set(project_models())


@pytest.mark.parametrize("model", project_models(), ids=lambda model: model.__name__)
@pytest.mark.parametrize("dialect", ["ollama", "gemini"])
def test_every_model_of_the_project_survives(model: type[BaseModel], dialect: Any) -> None:
    schema = schema_of(model, dialect)
    assert keywords(schema) <= ALLOWED
    assert parse_answer(model, json.dumps(instance_of(schema)))


class Answer(BaseModel):
    n: float = Field(le=10)


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1}',
        ' \n{"n": 1}\n\n  ',
        '```json\n{"n": 1}\n```',
        'Claro!\n```\n{"n": 1}\n```\nEspero ter ajudado.',
        '<think>{"n": 9}</think>{"n": 1}',
        '<thinking>\n{"n": 9}\n</thinking>\n```json\n{"n": 1}```',
        'Aqui está: {"n": 1}. Bom apetite!',
        '{"n": 1}\n\nBom apetite!',
        'O usuário quer n. {"n": 9}\n</think>\n\n{"n": 1}',
        '[THINK]{"n": 9}[/THINK]{"n": 1}',
        '◁think▷{"n": 9}◁/think▷{"n": 1}',
        '<thought>{"n": 9}</thought>{"n": 1}',
        '<THINKING>{"n": 9}</THINKING>{"n": 1}',
        '<reasoning>{"n": 9}</reasoning>{"n": 1}',
        '<seed:think>{"n": 9}</seed:think>{"n": 1}',
        '<|START_THINKING|>{"n": 9}<|END_THINKING|>{"n": 1}',
        '<|begin_of_thought|>{"n": 9}<|end_of_thought|>{"n": 1}',
        'Primeiro:\n```json\n{"n": 99}\n```\nNão, n é no máximo 10:\n```json\n{"n": 1}\n```',
        'O esquema:\n```\n{n}\n```\nA resposta:\n```json\n{"n": 1}\n```',
        '```json\n{"n": 1}\n```\nOu seja:\n```json\n{"n": 1.0}\n```',
    ],
)
def test_json_is_found_in_what_models_say(text: str) -> None:
    assert parse_answer(Answer, text) == Answer(n=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "não sei",
        '{"n": 1',
        '<think>{"n": 1}',
        '<reasoning>{"n": 1}',
        '{"n": NaN}',
        '{"n": 1} {"n": 2}',
        "[]",
        "null",
        '{"n": Infinity}',
        '```json\n{"n": 1}\n```\nou\n```json\n{"n": 2}\n```',
        'Aqui: [{"n": 1}, {"n": ',
    ],
)
def test_what_is_not_the_answer_is_a_mistake(text: str) -> None:
    with pytest.raises(AnswerMistake) as caught:
        parse_answer(Answer, text)
    assert caught.value.problems


def test_problems_name_the_field_and_quote_no_value() -> None:
    with pytest.raises(AnswerMistake) as caught:
        parse_answer(Answer, '{"n": 4242}')
    assert caught.value.problems == ("n: Input should be less than or equal to 10",)


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False, max_value=10))
@settings(deadline=None)
def test_thinking_never_hides_or_becomes_the_answer(thought: str, n: float) -> None:
    text = f"<think>{thought.replace('</think', '')}</think>{json.dumps({'n': n})}"
    assert parse_answer(Answer, text) == Answer(n=n)


class Note(BaseModel):
    note: str


@pytest.mark.parametrize(
    "note", ["</think>", "<think>hm</think>", "[/THINK] x", '```json\n{"note": "b"}\n```', 'chaves: {"note": "b"}']
)
def test_what_is_json_as_a_whole_is_taken_as_it_is(note: str) -> None:
    whole = json.dumps({"note": note})
    assert parse_answer(Note, whole) == Note(note=note)
    assert parse_answer(Note, f" {whole}\n") == Note(note=note)


@given(st.text())
@settings(deadline=None)
def test_whatever_is_said_is_an_answer_or_a_mistake(text: str) -> None:
    with contextlib.suppress(AnswerMistake):
        parse_answer(Answer, text)
    assert "<think>" not in answer_text(text)


def test_a_model_that_writes_newlines_only_does_not_hold_the_others_up() -> None:
    started = time.process_time()
    with pytest.raises(AnswerMistake):
        parse_answer(Note, "```json" + "\n" * 20_000 + "x")
    assert time.process_time() - started < 0.5


def test_no_answer_is_read_after_two_that_differ() -> None:
    read: list[int] = []

    def reading(n: int) -> int:
        read.append(n)
        return n

    numbered = create_model("Numbered", n=(Annotated[int, AfterValidator(reading)], ...))
    text = "Veja:\n" + "".join(f"```\n{json.dumps({'n': n})}\n```\n" for n in (1, 1, 2, 3, 4))
    with pytest.raises(AnswerMistake):
        parse_answer(numbered, text)
    assert read == [1, 1, 2]


def test_repair_shows_the_model_its_own_mistake() -> None:
    request = PromptRequest(
        "p", "system", "question", ("ollama",), history=(Turn("user", "a"),), images=(b"x",), answer=Answer
    )
    said = Said(Completion('<think>hm</think>{"n": 11}', "ollama", "m", "stop"))
    repaired = repair_request(request, said, AnswerMistake(("n: too large",)))
    assert repaired.history == (Turn("user", "a"), Turn("user", "question"), Turn("assistant", '{"n": 11}'))
    assert "n: too large" in repaired.prompt
    assert (repaired.system, repaired.images, repaired.answer) == ("system", (b"x",), Answer)


def test_calls_are_checked_against_their_tools() -> None:
    tools = (Tool("count", "Conta.", Answer),)
    assert parse_calls(tools, (RawCall("count", {"n": 3}, "x"),)) == (ToolCall("count", Answer(n=3), "x"),)
    for call, problem in (
        (RawCall("count", {"n": 11}), "n: Input should be less than or equal to 10"),
        (RawCall("rm", {}), "there is no such function; there are count"),
    ):
        with pytest.raises(AnswerMistake) as caught:
            parse_calls(tools, (call,))
        assert caught.value.problems == (problem,)


def test_repair_shows_a_wrong_call() -> None:
    request = PromptRequest("p", "s", "", ("ollama",), history=(Turn("user", "a"),))
    said = Said(Completion("", "ollama", "m", "stop"), (RawCall("rm", {"n": 1}),))
    repaired = repair_request(request, said, AnswerMistake(("there is no such function",)))
    assert repaired.history[1:] == (Turn("assistant", '[{"name":"rm","arguments":{"n":1}}]'),)
    assert "no such function" in repaired.prompt
    with_form = repair_request(dataclasses.replace(request, answer=Answer), said, AnswerMistake(("x",)))
    assert "JSON" not in with_form.prompt
