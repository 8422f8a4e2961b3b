"""Ollama, Gemini and a server of photos, in one process of their own.

They speak the real protocols and take as long as the real ones are said to; `python -m gate.stand_ins
FOLDER` prints their addresses as one line of JSON and runs until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from aiohttp import web

from gate.mix import OLLAMA, model_latency

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from fakes.gemini_server import FakeGemini
from fakes.llm_server import Body, Reply
from fakes.ollama_server import FakeOllama

OLLAMA_PARALLEL = 4


@dataclass(frozen=True, slots=True)
class Addresses:
    """What the driver has to know."""

    ollama_url: str
    gemini_url: str
    gemini_key: str
    media_url: str
    photos: list[str]


class SlowGemini(FakeGemini):
    """Takes the time of the function that asks, told by what is in the prompt."""

    def __init__(self, seed: int) -> None:
        super().__init__(slots=10_000)
        self._rng = Random(seed)

    async def _note(self, body: Body) -> Reply:
        return Reply()

    async def _answer(self, request: web.Request, body: Body, reply: Reply) -> web.StreamResponse:
        await asyncio.sleep(model_latency(purpose_of(body), self._rng))
        return await super()._answer(request, body, reply)


class SlowOllama(FakeOllama):
    """Answers as many at the same time as OLLAMA_NUM_PARALLEL would let it."""

    def __init__(self, seed: int) -> None:
        super().__init__(slots=OLLAMA_PARALLEL)
        self._rng = Random(seed)

    async def _note(self, body: Body) -> Reply:
        return Reply()

    async def _answer(self, request: web.Request, body: Body, reply: Reply) -> web.StreamResponse:
        await asyncio.sleep(OLLAMA.at(self._rng.random()))
        return await super()._answer(request, body, reply)


def purpose_of(body: Body) -> str:
    """Which job type asks: pictures come from photos of meals or exams, a schema without one from a meal in words."""
    config = body.get("generationConfig", {})
    schema = json.dumps(config.get("responseJsonSchema") or {})
    parts = [part for content in body.get("contents", []) for part in content.get("parts", [])]
    if any("inlineData" in part for part in parts):
        return "sofia_image" if "confidence" in schema else "medical_exam"
    if "insights" in schema:
        return "google_fit"
    return "sofia_text" if "foods" in schema else "unified_assistant"


async def serve(folder: Path, seed: int = 1) -> None:
    """Until standard input is closed."""
    photos = {path.name: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}

    async def photo(request: web.Request) -> web.Response:
        body = photos.get(request.match_info["name"])
        return web.Response(body=body, content_type="image/jpeg") if body else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{name}", photo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with SlowGemini(seed) as gemini, SlowOllama(seed + 1) as ollama:
        media = f"http://127.0.0.1:{runner.addresses[0][1]}"
        found = Addresses(ollama.url, gemini.url, gemini.key, media, [f"{media}/{name}" for name in photos])
        print(json.dumps(asdict(found)), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    asyncio.run(serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
