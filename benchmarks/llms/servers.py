"""Ollama and Gemini for every scenario, on loopback, in a process of their own.

`python -m llms.servers --scale S` prints one line of JSON: the ports by scenario and the control port. POST /begin
starts anew; GET /counts says by scenario how many calls came, how many of them could not be answered in time, and how
many good ones their caller gave up. The prompt carries the deadline (`deadline=SECONDS` of CLOCK_MONOTONIC).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from typing import Any

import uvloop
from aiohttp import web

from llms.faults import OLLAMA_SLOTS, STEADY_S, Behaviour, Fate, scenarios

_DEADLINE = re.compile(rb"deadline=([0-9.]+)")
_TOKENS = 50


class Place:
    """One provider of one scenario."""

    def __init__(self, scenario: str, provider: str, scale: float, slots: int | None) -> None:
        self.scenario = scenario
        self.provider = provider
        self._scale = scale
        self._size = slots
        self.begin(lambda _: Fate("hang", 1e9))

    def begin(self, behave: Behaviour) -> None:
        """Forgets everything."""
        self._behave = behave
        self._began = time.monotonic()
        self._slots = asyncio.Semaphore(self._size) if self._size else None
        self.counts: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call for text, by its fate."""
        raw = await request.read()
        found = _DEADLINE.search(raw)
        deadline = float(found.group(1)) if found else float("inf")
        counts = self.counts
        if self.provider == "ollama" and not json.loads(raw).get("messages"):
            return await self._load()
        counts["calls"] += 1
        begun = False
        try:
            async with self._slots or contextlib.nullcontext():
                fate = self._fate()
                begun = True
                late = time.monotonic() + fate.seconds > deadline
                if fate.kind != "answer" or late:
                    counts["wasted"] += 1
                    counts["wasted_late" if fate.kind == "answer" else f"wasted_{fate.kind}"] += 1
                return await self._answer(request, json.loads(raw), fate)
        except (asyncio.CancelledError, ConnectionError):
            counts["wasted" if not begun else "left"] += 1
            if not begun:
                counts["wasted_in_line"] += 1
            raise asyncio.CancelledError from None

    async def _load(self) -> web.Response:
        """Who only wants the model loaded takes no slot and is answered at once, unless the server hangs."""
        if self._fate().kind == "hang":
            await asyncio.Event().wait()
        return web.json_response({"done": True, "done_reason": "load", "message": {"role": "assistant", "content": ""}})

    def _fate(self) -> Fate:
        fate = self._behave((time.monotonic() - self._began) / self._scale)
        return Fate(fate.kind, fate.seconds * self._scale, fate.retry_s * self._scale)

    async def _answer(self, request: web.Request, body: dict[str, Any], fate: Fate) -> web.StreamResponse:
        if fate.kind == "hang":
            await asyncio.Event().wait()
        if fate.kind in ("fail", "limited"):
            await asyncio.sleep(fate.seconds)
            return self._error(fate)
        streams = "stream" in request.path or body.get("stream", self.provider == "ollama" and True)
        if not streams or fate.kind == "cut":
            await asyncio.sleep(fate.seconds)
        if fate.kind == "cut":
            if request.transport:
                request.transport.abort()
            raise ConnectionError
        if not streams:
            return web.json_response(self._whole(body, fate))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(fate.seconds / 4)
        await response.write(self._line(self._first(body)))
        await asyncio.sleep(3 * fate.seconds / 4)
        await response.write(self._line(self._whole(body, fate)))
        return response

    def _line(self, item: dict[str, Any]) -> bytes:
        text = json.dumps(item).encode()
        return text + b"\n" if self.provider == "ollama" else b"data: " + text + b"\r\n\r\n"

    def _first(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.provider == "ollama":
            return {"model": body["model"], "message": {"role": "assistant", "content": ""}, "done": False}
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": ""}]}, "index": 0}]}

    def _whole(self, body: dict[str, Any], fate: Fate) -> dict[str, Any]:
        if self.provider == "ollama":
            ns = int(fate.seconds * 1e9)
            return {
                "model": body["model"],
                "created_at": "2026-01-01T00:00:00Z",
                "message": {"role": "assistant", "content": "ok"},
                "done": True,
                "done_reason": "stop",
                "total_duration": ns,
                "load_duration": 0,
                "prompt_eval_count": 20,
                "prompt_eval_duration": ns // 4,
                "eval_count": _TOKENS,
                "eval_duration": 3 * ns // 4,
            }
        candidate = {"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": 20, "candidatesTokenCount": _TOKENS, "totalTokenCount": 20 + _TOKENS}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}

    def _error(self, fate: Fate) -> web.Response:
        if self.provider == "ollama":
            return web.json_response({"error": "llama runner process has terminated"}, status=500)
        if fate.kind == "fail":
            error: dict[str, Any] = {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}
            return web.json_response({"error": error}, status=503)
        delay = f"{fate.retry_s:.3f}s"
        details = [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
        ]
        error = {
            "code": 429,
            "status": "RESOURCE_EXHAUSTED",
            "message": f"You exceeded your current quota. Please retry in {delay}.",
            "details": details,
        }
        return web.json_response({"error": error}, status=429)


async def show(_request: web.Request) -> web.Response:
    """What Ollama says of a model."""
    return web.json_response({"capabilities": ["completion"], "model_info": {}, "details": {}, "template": ""})


async def listen(handler: Any) -> int:
    """Serves `handler` on a free port."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/api/show", show)
    app.router.add_post("/{path:.*}", handler)
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def serve(scale: float) -> None:
    """Until the process is ended."""
    places: dict[str, dict[str, Place]] = {}
    ports: dict[str, dict[str, int]] = {}
    for name, scenario in scenarios(0).items():
        places[name] = {"gemini": Place(name, "gemini", scale, None)}
        if scenario.ollama is not None:
            places[name]["ollama"] = Place(name, "ollama", scale, OLLAMA_SLOTS)
        ports[name] = {provider: await listen(place.handle) for provider, place in places[name].items()}
        # A port where nobody listens: bound and closed again.
        ports[name].setdefault("ollama", 9)
    steady = Place("steady", "gemini", 1.0, None)
    steady.begin(lambda _: Fate("answer", STEADY_S))

    async def control(request: web.Request) -> web.Response:
        if request.path == "/begin":
            for name, scenario in scenarios(int(request.query["seed"])).items():
                for provider, place in places[name].items():
                    behave = scenario.gemini if provider == "gemini" else scenario.ollama
                    assert behave is not None
                    place.begin(behave)
        return web.json_response({name: {p: x.counts for p, x in both.items()} for name, both in places.items()})

    steady_port, control_port = await listen(steady.handle), await listen(control)
    print(json.dumps({"ports": ports, "steady": steady_port, "control": control_port}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    uvloop.run(serve(parser.parse_args().scale))
