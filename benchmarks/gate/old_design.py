"""The design that this project replaces, without its bugs, as the baseline: one poll a second, five slots, each photo a
call of its own to a YOLO service over HTTP, no batching, nothing that wakes anybody.

It claims properly and never runs a job twice, which the original did; its YOLO service uses our engine with the one
thread that the stock call gets. What is left is the design.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import asyncpg
from aiohttp import web

from gate.mix import Kind
from gate.plan import Phase, arrivals
from gate.stand_ins import Addresses

POLL_S = 1.0
SLOTS = 5
_TABLE = """
create table if not exists old_jobs (id bigserial primary key, type text not null, input jsonb not null,
  status text not null default 'queued', created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz, completed_at timestamptz)"""
_CLAIM = """
update old_jobs set status = 'processing', started_at = clock_timestamp() where id in
  (select id from old_jobs where status = 'queued' order by created_at limit $1) returning id, type, input"""


@dataclass
class OldRun:
    """Seconds. `rate` is jobs a second once the slots are full; `failed` jobs say that the baseline is none."""

    pickup_s: list[float] = field(default_factory=list)
    end_to_end_s: list[float] = field(default_factory=list)
    rate: float = 0.0
    failed: int = 0


class OldWorker:
    """`yolo_url` is the detection service."""

    def __init__(
        self, database: asyncpg.Pool[Any], session: aiohttp.ClientSession, places: Addresses, yolo_url: str
    ) -> None:
        self._database = database
        self._session = session
        self._places = places
        self._yolo_url = yolo_url
        self._active: set[asyncio.Task[None]] = set()
        self.failed = 0

    async def run(self) -> None:
        """Until cancelled; then the jobs under way are dropped, as the original did."""
        try:
            while True:
                if free := SLOTS - len(self._active):
                    for row in await self._database.fetch(_CLAIM, free):
                        task = asyncio.create_task(self._job(row))
                        self._active.add(task)
                        task.add_done_callback(self._ended)
                await asyncio.sleep(POLL_S)
        finally:
            for task in self._active:
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        if not task.cancelled() and task.exception():
            self.failed += 1

    async def _job(self, row: Any) -> None:
        body = json.loads(row["input"])
        if row["type"] == "sofia_image":
            await self._asked(f"{self._yolo_url}/detect", {"image_url": body["imageUrl"]})
        url = f"{self._places.gemini_url}/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        await self._asked(url, prompt(row["type"], body))
        await self._database.execute(
            "update old_jobs set status = 'completed', completed_at = clock_timestamp() where id = $1", row["id"]
        )

    async def _asked(self, url: str, body: dict[str, Any]) -> None:
        headers = {"x-goog-api-key": self._places.gemini_key}
        async with self._session.post(url, json=body, headers=headers) as answer:
            await answer.read()
            # A refusal comes at once: jobs that end by it would make the baseline faster than it is.
            answer.raise_for_status()


def prompt(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """What Gemini is asked for a job."""
    parts: list[dict[str, Any]] = [{"text": json.dumps(body)}]
    schemas = {
        "sofia_image": {"type": "object", "properties": {"confidence": {"type": "number"}}},
        "sofia_text": {"type": "object", "properties": {"foods": {"type": "string"}}},
    }
    if kind == "sofia_image":
        parts.append({"inlineData": {"mimeType": "image/jpeg", "data": ""}})
    config = {"generationConfig": {"responseJsonSchema": schemas[kind]}} if kind in schemas else {}
    return {"contents": [{"role": "user", "parts": parts}]} | config


async def measure(
    database_url: str, places: Addresses, weights: Path, kinds: Sequence[Kind], phases: Sequence[Phase], rng: Random
) -> dict[str, OldRun]:
    """One run for each phase, on an empty table each. Jobs that wait at the end are dropped."""
    command = [sys.executable, "-m", "gate.old_design", str(weights)]
    yolo = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )
    assert yolo.stdout is not None
    assert yolo.stdin is not None
    try:
        yolo_url = (await yolo.stdout.readline()).decode().strip()
        async with (
            asyncpg.create_pool(database_url, min_size=2, max_size=10) as database,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as session,
        ):
            await database.execute(_TABLE)
            return {
                phase.name: await _run(
                    database, OldWorker(database, session, places, yolo_url), places, phase, kinds, rng
                )
                for phase in phases
            }
    finally:
        yolo.stdin.close()
        await yolo.wait()


async def _run(
    database: asyncpg.Pool[Any],
    worker: OldWorker,
    places: Addresses,
    phase: Phase,
    kinds: Sequence[Kind],
    rng: Random,
) -> OldRun:
    await database.execute("truncate old_jobs")
    running = asyncio.create_task(worker.run())
    start = time.time()
    for each in arrivals(phase, kinds, rng):
        await asyncio.sleep(max(0.0, start + each.at - time.time()))
        body = json.dumps(each.kind.make(rng, rng.choice(places.photos)))
        await database.execute("insert into old_jobs (type, input) values ($1, $2)", each.kind.name, body)
    await asyncio.sleep(max(0.0, start + phase.seconds - time.time()))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    rows = await database.fetch(
        "select extract(epoch from started_at - created_at)::float8 as pickup_s,"
        " extract(epoch from completed_at - created_at)::float8 as end_to_end_s,"
        " extract(epoch from completed_at)::float8 as completed from old_jobs where started_at is not null"
    )
    done = sorted(row["completed"] for row in rows if row["completed"] is not None)
    window = start + phase.seconds - done[0] if done else 0.0
    return OldRun(
        [row["pickup_s"] for row in rows],
        [row["end_to_end_s"] for row in rows if row["end_to_end_s"] is not None],
        (len(done) - 1) / window if window > 0 else 0.0,
        worker.failed,
    )


def serve_yolo(weights: str) -> None:
    """Blocks the loop while it downloads and detects, one photo after the other, as the original service did."""
    from aiworker.inference.child.decode import decode  # noqa: PLC0415
    from aiworker.inference.engines.torch_engine import TorchEngine  # noqa: PLC0415
    from aiworker.inference.messages import ChildSpec  # noqa: PLC0415

    engine = TorchEngine(ChildSpec(weights=weights, device="cpu", threads=1, confidence=0.35, max_pixels=50_000_000))
    engine.load()
    engine.warm_up()

    async def detect(request: web.Request) -> web.Response:
        url = (await request.json())["image_url"]
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            content = await answer.read()
        found = engine.detect([engine.prepare(decode(content, 50_000_000))])
        return web.json_response({"objects": [list(box) for box in found[0]]})

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/detect", detect)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(serve())


if __name__ == "__main__":
    serve_yolo(sys.argv[1])
