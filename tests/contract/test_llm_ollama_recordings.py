"""The fake Ollama answers every recorded request as the real one did: status, type, and the shape of every line."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
import ollama
import pytest
from fakes.llm_server import Reply
from fakes.ollama_server import RECORDINGS, FakeOllama

REQUESTS = sorted(path.stem for path in RECORDINGS.glob("*.json") if path.stem != "overload")
SHORT, LONG = "Oi!", "palavra " * 200


def load(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def request_body(recorded: Any) -> bytes | None:
    if recorded is None:
        return None
    if isinstance(recorded, str):
        return recorded.encode()
    text = json.dumps(recorded)
    return text.replace("<base64 of a 63 kB JPEG>", base64.b64encode(b"\xff\xd8\xff" * 99).decode()).encode()


def shape(line: str) -> Any:
    """Keys and types at every depth; the values that decide what a client does are kept."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: value[key] for key in ("done", "done_reason", "status") if key in value}
            return {key: kept.get(key, of(item)) for key, item in value.items()}
        return [of(value[0])] if isinstance(value, list) and value else type(value).__name__

    try:
        return of(json.loads(line))
    except json.JSONDecodeError:
        return line


def answer_like(lines: list[dict[str, Any]]) -> Any:
    cut = '"done_reason":"length"' in lines[-1]["line"]
    return lambda body: LONG if cut else SHORT


@pytest.mark.parametrize("name", REQUESTS)
async def test_fake_answers_as_recorded(name: str) -> None:
    recorded = load(name)
    asked = recorded["request"]
    text_only = {"smollm2:135m": ("completion",)}
    async with FakeOllama(text_only, answer=answer_like(recorded["lines"])) as server, aiohttp.ClientSession() as http:
        if name.startswith("ps_") and name != "ps_before":
            server.loaded["smollm2:135m"] = 2048
        async with http.request(asked["method"], server.url + asked["path"], data=request_body(asked["body"])) as reply:
            lines = (await reply.text()).splitlines()
            assert reply.status == recorded["status"]
            assert reply.headers["Content-Type"] == recorded["headers"]["Content-Type"]
            assert ("Transfer-Encoding" in reply.headers) == (
                "Transfer-Encoding" in recorded["headers"] and name != "show"
            )
    wanted = [item["line"] for item in recorded["lines"]]
    if name == "show":
        assert shape(lines[0])["capabilities"] == shape(wanted[0])["capabilities"]
        return
    assert shape(lines[0]) == shape(wanted[0])
    assert shape(lines[-1]) == shape(wanted[-1])
    assert len(lines) == len(wanted)


async def test_fake_refuses_overload_as_recorded() -> None:
    recorded = load("overload")["responses"]
    gate = asyncio.Event()
    body = {"model": "m", "messages": [{"role": "user", "content": "oi"}], "stream": False}
    async with FakeOllama({"m": ("completion",)}, slots=1, max_waiting=1) as server, aiohttp.ClientSession() as http:
        server.script(*[Reply(before=gate)] * len(recorded))

        async def ask() -> tuple[int, str]:
            async with http.post(f"{server.url}/api/chat", json=body) as reply:
                return reply.status, await reply.text()

        calls = [asyncio.create_task(ask()) for _ in recorded]
        await server.received(len(recorded))
        gate.set()
        answers = await asyncio.gather(*calls)
    assert sorted(status for status, _ in answers) == sorted(item["status"] for item in recorded)
    busy = {item["body"] for item in recorded if item["status"] == 503}
    assert {json.dumps(json.loads(text), separators=(",", ":")) for status, text in answers if status == 503} == busy


async def test_the_official_client_understands_the_fake() -> None:
    async with FakeOllama() as server, ollama.AsyncClient(host=server.url) as client:
        assert {model.model for model in (await client.list()).models} == set(server.models)
        assert (await client.show("qwen2.5vl:3b")).capabilities == ["completion", "vision"]
        stream = await client.chat("llama3.2:3b", [{"role": "user", "content": "oi"}], stream=True)
        parts = [part async for part in stream]
        assert "".join(part.message.content or "" for part in parts) == "Oi! Tudo bem?"
        assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", len(parts) - 1)
        assert [model.model for model in (await client.ps()).models] == ["llama3.2:3b"]
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.chat("nope", [{"role": "user", "content": "oi"}])
