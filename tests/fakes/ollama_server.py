"""A fake Ollama on a real socket. It answers as the recordings of a real 0.13.5 do (`recordings/ollama`)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from fakes.json_instance import instance_of
from fakes.llm_server import Body, FakeLlmServer, Reply

RECORDINGS = Path(__file__).parent / "recordings" / "ollama"
_STARTED = "2026-11-23T15:11:26.845958759Z"
_BUSY = "server busy, please try again.  maximum pending requests exceeded"
# As a 0.13.5 says it; llama.cpp's own server, which newer ones use, says "exceeds the available context size".
_TOO_LONG = "the input length exceeds the context length"
_INTEGER_OPTIONS = ("num_predict", "num_ctx", "seed", "top_k")


class FakeOllama(FakeLlmServer):
    """`models` maps names to capabilities, `library` those that can be pulled. `answer(body)` gives the text of
    unscripted answers.

    Without `answer`, a schema-bound call gets a small valid instance, any other a short sentence. With `max_waiting`
    set, a call beyond the slots and that many waiting gets the recorded 503. `pull_breaks` is how a pull ends early.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[str, ...]] | None = None,
        *,
        answer: Callable[[Body], str] | None = None,
        slots: int = 1,
        max_waiting: int | None = None,
        version: str = "0.13.5",
    ) -> None:
        super().__init__(answer=answer, slots=slots)
        self.models = dict(models or {"llama3.2:3b": ("completion", "tools"), "qwen2.5vl:3b": ("completion", "vision")})
        self.library: dict[str, tuple[str, ...]] = {}
        self.remote: set[str] = set()
        self.loaded: dict[str, int] = {}
        self.version = version
        self.max_in_flight = None if max_waiting is None else slots + max_waiting
        self.in_flight = 0
        self.pull_breaks: Literal["", "end", "abort"] = ""

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/tags", self._tags)
        app.router.add_get("/api/ps", self._ps)
        app.router.add_post("/api/show", self._show)
        app.router.add_post("/api/chat", self._chat)
        app.router.add_post("/api/pull", self._pull)
        app.router.add_route("*", "/{path:.*}", _nowhere)

    async def _version(self, request: web.Request) -> web.Response:
        return _json(200, {"version": self.version})

    async def _tags(self, request: web.Request) -> web.Response:
        return _json(200, {"models": [_tag(name) for name in self.models]})

    async def _ps(self, request: web.Request) -> web.Response:
        more = {"expires_at": _STARTED, "size_vram": 0}
        models = [
            {key: value for key, value in _tag(name).items() if key != "modified_at"}
            | more
            | {"context_length": context}
            for name, context in self.loaded.items()
        ]
        return _json(200, {"models": models})

    async def _show(self, request: web.Request) -> web.Response:
        name = str((await request.json()).get("model"))
        if name not in self.models:
            return _error(404, f"model '{name}' not found")
        recorded = json.loads(json.loads((RECORDINGS / "show.json").read_text())["lines"][0]["line"])
        cloud = {"remote_host": "https://ollama.com:443", "remote_model": name} if name in self.remote else {}
        return _json(200, recorded | {"capabilities": list(self.models[name])} | cloud)

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name = str((await request.json()).get("model"))
        response = await _stream(request)
        await response.write(_line({"status": "pulling manifest"}))
        if name not in self.models and name not in self.library:
            await response.write(_line({"error": "pull model manifest: file does not exist"}))
            return response
        digest = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        for completed in (0, 60_000_000, 143_762_688):
            if completed and self.pull_breaks:
                if self.pull_breaks == "abort" and request.transport:
                    request.transport.abort()
                return response
            layer = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": 143_762_688}
            await response.write(_line(layer | ({"completed": completed} if completed else {})))
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            await response.write(_line({"status": status}))
        self.models.setdefault(name, self.library.get(name, ("completion",)))
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.text())
        except json.JSONDecodeError:
            return _error(400, "invalid character 'n' looking for beginning of object key string")
        refusal = self._refusal(body)
        if refusal:
            return refusal
        if not body.get("messages"):
            return self._load(body)
        if _words_of(body) > body.get("options", {}).get("num_ctx", 4096) and body.get("truncate") is False:
            return _error(400, _TOO_LONG)
        reply = await self._note(body)
        if reply.status != 200:
            return _json(reply.status, reply.body, reply.headers)
        if self.max_in_flight is not None and self.in_flight >= self.max_in_flight:
            return _error(503, _BUSY)
        self.in_flight += 1
        try:
            async with self._watched(), self.slots:
                return await self._answer(request, body, reply)
        finally:
            self.in_flight -= 1

    def _refusal(self, body: Body) -> web.Response | None:
        name = body.get("model")
        if not name:
            return _error(400, "model is required")
        images = [image for message in body.get("messages", []) for image in message.get("images", [])]
        if not all(_is_base64(image) for image in images):
            return _error(
                400,
                "json: cannot unmarshal string into Alias.images.0 of type api.ImageData: "
                "illegal base64 data at input byte 0",
            )
        if name not in self.models:
            return _error(404, f"model '{name}' not found")
        if body.get("tools") and "tools" not in self.models[name]:
            return _error(400, f"registry.ollama.ai/library/{name} does not support tools")
        if body.get("think") and "thinking" not in self.models[name]:
            return _error(400, f'"{name}" does not support thinking')
        for option in _INTEGER_OPTIONS:
            if not isinstance(body.get("options", {}).get(option, 0), int):
                return _error(500, f'option "{option}" must be of type integer')
        wanted = body.get("format") or "json"
        if wanted != "json" and not isinstance(wanted, dict):
            quoted = json.dumps(json.dumps(wanted))
            return _error(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
        return None

    def _load(self, body: Body) -> web.Response:
        unload = body.get("keep_alive") == 0
        if unload:
            self.loaded.pop(body["model"], None)
        else:
            self.loaded[body["model"]] = body.get("options", {}).get("num_ctx", 4096)
        return _json(200, _item(body, "") | {"done": True, "done_reason": "unload" if unload else "load"})

    async def _answer(self, request: web.Request, body: Body, reply: Reply) -> web.StreamResponse:
        self.loaded[body["model"]] = body.get("options", {}).get("num_ctx", 4096)
        await self._wait(reply.before)
        tokens, finish = self._tokens(body, reply)
        end = {"done": True, "done_reason": finish, **_timings(_words_of(body), len(tokens))}
        if body.get("stream") is False:
            return _json(200, _item(body, "".join(tokens)) | end)
        response = await _stream(request)
        for index, token in enumerate(tokens):
            if not await _disturb(request, response, reply, index):
                return response
            await response.write(_line(_item(body, token) | {"done": False}))
            await asyncio.sleep(reply.token_s)
            if index == 0:
                await self._wait(reply.after_first)
        if reply.calls:
            # A 0.12.10 was the first to name them.
            calls = [
                {"id": f"call_{number}", "function": {"index": number, "name": name, "arguments": arguments}}
                for number, (name, arguments) in enumerate(reply.calls)
            ]
            item = _item(body, "") | {"done": False}
            item["message"] |= {"tool_calls": calls}
            await response.write(_line(item))
        if await _disturb(request, response, reply, len(tokens)):
            await response.write(_line(_item(body, "") | end))
        if reply.rubbish_at_end:
            await response.write(b"<html>not json\n")
        await self._wait(reply.at_end)
        return response

    def _tokens(self, body: Body, reply: Reply) -> tuple[list[str], str]:
        text = reply.text if reply.text is not None else "" if reply.calls else self._text(body)
        tokens = re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)
        options = body.get("options", {})
        limit = options.get("num_predict", -1)
        if body.get("shift") is False:
            room = max(0, options.get("num_ctx", 4096) - _words_of(body))
            limit = room if limit < 0 else min(limit, room)
        cut = 0 <= limit < len(tokens)
        return (tokens[:limit] if cut else tokens), reply.finish or ("length" if cut else "stop")

    def _text(self, body: Body) -> str:
        if self.answer:
            return self.answer(body)
        if isinstance(body.get("format"), dict):
            return json.dumps(instance_of(body["format"]), ensure_ascii=False)
        return "{}" if body.get("format") == "json" else "Oi! Tudo bem?"


def _words_of(body: Body) -> int:
    """What stands in for the tokens of a prompt."""
    return sum(len(str(message.get("content")).split()) for message in body["messages"])


async def _disturb(request: web.Request, response: web.StreamResponse, reply: Reply, index: int) -> bool:
    """Does what `reply` asks for at this token; False when the stream is over by it."""
    if index == reply.cut_after:
        if request.transport:
            request.transport.abort()
        return False
    if index == reply.garbage_after:
        await response.write(b"<html>not json\n")
    if index == reply.error_after:
        await response.write(_line({"error": reply.error}))
        return False
    return True


async def _nowhere(request: web.Request) -> web.Response:
    return web.Response(status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"})


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


def _item(body: Body, content: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": body["model"], "created_at": _STARTED, "message": message}


def _timings(prompt: int, tokens: int) -> dict[str, int]:
    """Nanoseconds: 100 ms load, 200 ms prompt, 10 ms per token, 50 ms in line."""
    load, reading, answer = 100_000_000, 200_000_000, 10_000_000 * tokens
    return {
        "total_duration": load + reading + answer + 50_000_000,
        "load_duration": load,
        "prompt_eval_count": prompt,
        "prompt_eval_duration": reading,
        "eval_count": tokens,
        "eval_duration": answer,
    }


def _tag(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": _STARTED,
        "size": 143_762_688,
        "digest": "079f0fd93cbb2a0d6a00ba6ee2231764d521568549119c3c59882ab5fb8e3ebd",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "134.52M",
            "quantization_level": "Q4_1",
        },
    }


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


def _line(item: dict[str, Any]) -> bytes:
    return json.dumps(item, ensure_ascii=False).encode() + b"\n"


def _error(status: int, text: str) -> web.Response:
    return _json(status, {"error": text})


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return web.Response(
        status=status, body=json.dumps(value, ensure_ascii=False).encode(), headers={**kind, **(headers or {})}
    )
