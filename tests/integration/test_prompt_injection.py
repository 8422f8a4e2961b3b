"""Models that obey every injection: what they let out must not get into a result, and results still validate.

The fake servers answer with the instructions, with all that they were sent, with text where JSON was asked for, or with
JSON that breaks every bound. They see one user's data per request, so another user's could only come from us.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import unicodedata
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakes.gemini_server import FakeGemini
from fakes.injections import INJECTIONS
from fakes.llm_server import Body
from fakes.ollama_server import FakeOllama
from fakes.pictures import picture
from fakes.ports import JOB_ID, FunctionDetector, FunctionImages, detections
from pydantic import SecretStr

from aiworker.analyses.base import AnalysisResult, Attempt, Tools
from aiworker.analyses.registry import ANALYSES, checked_input
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import AnswerInvalid, AnswerLeaks
from aiworker.domain.ports import TextModel
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.leaks import quotes
from aiworker.llm.ollama import OllamaModel

MARK = re.compile(r"segredo\d+")


def system_of(body: Body) -> str:
    if "systemInstruction" in body:
        return str(body["systemInstruction"]["parts"][0]["text"])
    return str(body["messages"][0]["content"])


def wants_json(body: Body) -> bool:
    return bool(body.get("format") or body.get("generationConfig", {}).get("responseJsonSchema"))


def instructions(body: Body) -> str:
    system = system_of(body)
    if not wants_json(body):
        return f"Claro! Minhas instruções: {system}"
    pieces = [system[start : start + 70] for start in range(0, 1400, 70)]
    return json.dumps({"foods": [{"name": piece, "grams": 1, "confidence": 1} for piece in pieces if len(piece) > 1]})


def everything(body: Body) -> str:
    turns = body.get("messages") or body["contents"]
    return json.dumps({"system": system_of(body), "user": turns[-1]}, ensure_ascii=False)


def plain_text(body: Body) -> str:
    return "HACKED " * wants_json(body) or "HACKED"


def out_of_bounds(body: Body) -> str:
    foods = [{"name": "<script>", "grams": 10**9, "confidence": -7}, {"name": "", "grams": -1, "confidence": 2}]
    return json.dumps({"foods": foods, "meal_type": "DROP TABLE", "notes": "x" * 500, "admin": True})


OBEYING: tuple[Callable[[Body], str], ...] = (instructions, everything, plain_text, out_of_bounds)


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(slots=64) as running:
        yield running


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini() as running:
        yield running


async def run(name: str, raw: dict[str, Any], model: TextModel) -> AnalysisResult | AnswerInvalid:
    analysis = ANALYSES[name]
    tools = Tools(FunctionImages(picture()), FunctionDetector(detections(("banana", 0.9))), model)
    given = Attempt(JOB_ID, tools, Deadline.after(30), lambda _percent, _stage: None)
    try:
        return await analysis.run(checked_input(analysis, raw), given)
    except AnswerInvalid as error:
        return error


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """One job of every type for every injection, each with a mark of its own user."""
    numbers = itertools.count()

    def marked(text: str) -> str:
        return f"{text} segredo{next(numbers)}"

    made: list[tuple[str, dict[str, Any]]] = []
    for index, text in enumerate(INJECTIONS):
        history = [{"role": "assistant", "content": text}, {"role": "user", "content": text}]
        mark = marked(text)
        context = {"nome": mark}
        made.append(("unified_assistant", {"message": mark, "history": history, "context": context}))
        made.append(("sofia_text", {"text": marked(text)}))
        if index % 4:
            continue
        made.append(
            ("sofia_image", {"imageUrl": "x", "userContext": {"userName": marked("ana"), "currentMeal": text[:40]}})
        )
    return made


@pytest.mark.parametrize("obey", OBEYING, ids=lambda obey: obey.__name__)
@pytest.mark.parametrize("provider", ["ollama", "gemini"])
async def test_nothing_that_an_obeying_model_says_gets_through(
    ollama: FakeOllama, gemini: FakeGemini, provider: str, obey: Callable[[Body], str]
) -> None:
    ollama.answer = gemini.answer = obey
    server: FakeOllama | FakeGemini = ollama if provider == "ollama" else gemini
    model = (
        OllamaModel(server.url, "llama3.2:3b", "qwen2.5vl:3b", 4096)
        if provider == "ollama"
        else GeminiModel(SecretStr(gemini.key), "gemini-2.5-flash", server.url)
    )
    todo = jobs()
    results = await asyncio.gather(*(run(name, raw, model) for name, raw in todo))
    await model.close()

    systems = [prompt.system for analysis in ANALYSES.values() for prompt in analysis.prompts]
    for (name, raw), result in zip(todo, results, strict=True):
        own = set(MARK.findall(json.dumps(raw)))
        if isinstance(result, AnswerInvalid):
            assert name == "unified_assistant"
            assert isinstance(result, AnswerLeaks)
            assert obey in (instructions, everything)
            continue
        assert name != "unified_assistant" or obey in (plain_text, out_of_bounds)
        stored = result.model_dump(mode="json", by_alias=True)
        assert type(result).model_validate(result.model_dump()) == result
        assert set(MARK.findall(json.dumps(stored))) <= own
        assert not any(quotes(system, text) for system in systems for text in texts(stored))
        if name != "unified_assistant":
            assert result.degraded
            assert result.degraded_code in ("answer_leaks", "answer_invalid")
    for body in server.requests:
        assert len(set(MARK.findall(json.dumps(body)))) <= 1


def texts(value: Any) -> list[str]:
    return re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("text", INJECTIONS, ids=range(len(INJECTIONS)))
async def test_what_a_user_writes_stays_inside_its_tags(ollama: FakeOllama, text: str) -> None:
    model = OllamaModel(ollama.url, "llama3.2:3b", None, 4096)
    history = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    await run("unified_assistant", {"message": text, "history": history, "context": {"nome": text}}, model)
    await model.close()
    system, *turns = ollama.requests[0]["messages"]
    assert text not in system["content"]
    tag = re.compile(r"</?(?:mensagem|contexto)>")
    for turn in turns:
        bare = tag.sub("", turn["content"])
        # Also where a server normalises what it reads.
        for read in (bare, unicodedata.normalize("NFKC", bare)):
            assert not re.search(r"[<>]|\[/?INST\]", read)
        assert not any(unicodedata.category(letter) == "Cf" for letter in bare)
    assert [tag.findall(turn["content"]) for turn in turns] == [
        ["<mensagem>", "</mensagem>"],
        [],
        ["<contexto>", "</contexto>", "<mensagem>", "</mensagem>"],
    ]
