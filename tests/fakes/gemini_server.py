"""A fake Gemini on a real socket: `streamGenerateContent?alt=sse` with the bodies that the API reference gives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web

from fakes.json_instance import instance_of
from fakes.llm_server import Body, FakeLlmServer, Reply


class FakeGemini(FakeLlmServer):
    """Unscripted answers are `answer(body)`, or a small valid instance of the call's schema, or a short sentence."""

    def __init__(
        self,
        *,
        key: str = "AIza-right-key",
        models: tuple[str, ...] = ("gemini-2.5-flash", "gemini-3.5-flash-lite"),
        answer: Callable[[Body], str] | None = None,
        slots: int = 64,
    ) -> None:
        super().__init__(answer=answer, slots=slots)
        self.key = key
        self.models = models

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1beta/models/{model}:streamGenerateContent", self._generate)
        app.router.add_get("/v1beta/models/{model}", self._model)

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        return self._refusal(request) or web.json_response({"name": f"models/{name}", "inputTokenLimit": 1_048_576})

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("x-goog-api-key") != self.key:
            return error_response(400, "INVALID_ARGUMENT", bad_key_details())
        if request.match_info["model"] not in self.models:
            return error_response(404, "NOT_FOUND")
        return None

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal:
            return refusal
        if request.query.get("alt") != "sse":
            return error_response(400, "INVALID_ARGUMENT")
        body = await request.json()
        parts = [part for content in body["contents"] for part in content["parts"]]
        if {"text": ""} in parts or not all(content["parts"] for content in body["contents"]):
            no_data = "parts[0].data: required oneof field 'data' must have one initialized field"
            return web.json_response(error_body(400, "INVALID_ARGUMENT", message=no_data), status=400)
        if body["contents"][0]["role"] != "user":
            order = "Please ensure that multiturn requests alternate between user and model."
            return web.json_response(error_body(400, "INVALID_ARGUMENT", message=order), status=400)
        kinds = [{"functionResponse" in part for part in content["parts"]} for content in body["contents"]]
        if {True, False} in kinds:
            model_last = "Requests ending with a model turn are not supported."
            return web.json_response(error_body(400, "INVALID_ARGUMENT", message=model_last), status=400)
        calls, results = (
            [part[kind].get("id") for part in parts if kind in part] for kind in ("functionCall", "functionResponse")
        )
        firsts = [
            next((part for part in content["parts"] if "functionCall" in part), None) for content in body["contents"]
        ]
        unsigned = any(first and not first.get("thoughtSignature") for first in firsts)
        if calls != results or (unsigned and request.match_info["model"].startswith("gemini-3")):
            return error_response(400, "INVALID_ARGUMENT")
        reply = await self._note(body)
        if reply.status != 200:
            return web.json_response(reply.body, status=reply.status, headers=reply.headers)
        async with self._watched(), self.slots:
            return await self._answer(request, body, reply)

    async def _answer(self, request: web.Request, body: Body, reply: Reply) -> web.StreamResponse:
        await self._wait(reply.before)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if reply.body is not None:
            await response.write(_event(reply.body))
            await self._wait(reply.at_end)
            return response
        for number, (name, arguments) in enumerate(reply.calls):
            call = {"name": name, "args": arguments, "id": f"call-{number}"}
            part = {"functionCall": call, "thoughtSignature": "c2lnbmVk"}
            await response.write(_event({"candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}]}))
        pieces, finish = self._pieces(body, reply)
        for index, piece in enumerate(pieces):
            if index == reply.cut_after and request.transport:
                request.transport.abort()
                return response
            if index == reply.garbage_after:
                await response.write(b"data: {broken\r\n\r\n")
            if index == reply.error_after:
                await response.write(_event({"error": {"code": 503, "status": "UNAVAILABLE", "message": "overloaded"}}))
                return response
            ends = reply.finish_always or index == len(pieces) - 1
            await response.write(_event(_piece(piece, finish if ends else None, index + 1)))
            await asyncio.sleep(reply.token_s)
            if index == 0:
                await self._wait(reply.after_first)
        if reply.rubbish_at_end:
            await response.write(b"data: {broken\r\n\r\n")
        await self._wait(reply.at_end)
        return response

    def _pieces(self, body: Body, reply: Reply) -> tuple[list[str], str]:
        text = reply.text if reply.text is not None else "" if reply.calls else self._text(body)
        pieces = re.findall(r".{1,12}", text, re.DOTALL) or [""]
        limit = body.get("generationConfig", {}).get("maxOutputTokens", len(pieces))
        cut = limit < len(pieces)
        return (pieces[:limit] if cut else pieces), reply.finish or ("MAX_TOKENS" if cut else "STOP")

    def _text(self, body: Body) -> str:
        if self.answer:
            return self.answer(body)
        schema = body.get("generationConfig", {}).get("responseJsonSchema")
        return json.dumps(instance_of(schema), ensure_ascii=False) if schema else "Oi! Tudo bem?"


def error_body(status: int, name: str, details: list[Any] | None = None, message: str = "no") -> dict[str, Any]:
    error: dict[str, Any] = {"code": status, "message": message, "status": name}
    return {"error": error | ({"details": details} if details is not None else {})}


def error_response(status: int, name: str, details: list[Any] | None = None) -> web.Response:
    return web.json_response(error_body(status, name, details), status=status)


def bad_key_details() -> list[Any]:
    return [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]


def quota_details(quota_id: str, retry_delay: str | None) -> list[Any]:
    failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]}
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay}
    return [failure, info] if retry_delay else [failure]


def _piece(text: str, finish: str | None, tokens: int) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 12, "candidatesTokenCount": tokens, "totalTokenCount": 12 + tokens}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}


def _event(item: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(item, ensure_ascii=False).encode() + b"\r\n\r\n"
