"""How fast the front door is: enqueue under load, pick-up when idle, and a warm `make demo`.

Starts the real system (PostgreSQL with durable settings unless DATABASE_URL is set, gateway, worker, YOLO) and drives
it over HTTP. Latency counts from the moment a request was meant to be sent, so a stalled client hides nothing. The
floor is the same enqueue as bare SQL on one connection, in turn with the HTTP one: what is above it is our cost.

    python benchmarks/front_door.py [--quick] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
from beside import Bar, percentile, table_of
from rich.console import Console

from aiworker.cli.client import GatewayClient, GatewayError, photo_url
from aiworker.cli.stack import running_stack
from aiworker.settings import load_settings

RATE = 100
TEXT = {"text": "comi 200 g de arroz e um ovo frito"}


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    load_s: float
    picks: int
    floors: int
    demos: int


FULL = Sizes(load_s=30, picks=300, floors=200, demos=5)
QUICK = Sizes(load_s=6, picks=50, floors=40, demos=1)


async def enqueue_under_load(client: GatewayClient, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each enqueue at RATE a second, with the worker kept busy with photos, and refusals."""
    photo = {"imageUrl": photo_url(str(files("aiworker.cli") / "data" / "fruits.jpg"))}
    taken: list[float] = []
    failed = 0

    async def one(due: float) -> None:
        nonlocal failed
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        try:
            await client.enqueue("sofia_text", TEXT, uuid4(), use_cache=False)
        except GatewayError:
            failed += 1
        taken.append(1000 * (time.perf_counter() - due))

    async def keep_busy() -> None:
        while True:
            jobs = [await client.enqueue("sofia_image", photo, uuid4(), use_cache=False) for _ in range(5)]
            for job in jobs:
                await ended(client, job["jobId"])

    busy = asyncio.create_task(keep_busy())
    await asyncio.sleep(2)
    start = time.perf_counter()
    await asyncio.gather(*(one(start + n / RATE) for n in range(int(seconds * RATE))))
    busy.cancel()
    return taken, failed


async def ended(client: GatewayClient, job_id: str) -> dict[str, Any]:
    """The job, once it has ended."""
    while (job := await client.status(job_id))["status"] in ("pending", "processing"):
        await asyncio.sleep(0.01)
    return job


async def pick_ups(client: GatewayClient, database: asyncpg.Connection, count: int) -> list[float]:
    """Milliseconds from created to started, one job at a time, on the database's clock."""
    taken = []
    for _ in range(count):
        job = await client.enqueue("sofia_text", TEXT, uuid4(), use_cache=False)
        await ended(client, job["jobId"])
        query = "SELECT extract(epoch FROM started_at - created_at) * 1000 FROM analysis_jobs WHERE id = $1::uuid"
        taken.append(float(await database.fetchval(query, job["jobId"])))
    return taken


async def floor_and_http(
    client: GatewayClient, database: asyncpg.Connection, count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of one enqueue as bare SQL and over HTTP, in turn."""
    statement = await database.prepare(
        "SELECT * FROM enqueue_analysis('sofia_text', $2::jsonb, $1, p_use_cache => false)"
    )
    body = json.dumps(TEXT)
    bare: list[float] = []
    http: list[float] = []

    async def timed(into: list[float], call: Callable[[], Awaitable[Any]]) -> None:
        started = time.perf_counter()
        await call()
        into.append(1000 * (time.perf_counter() - started))

    for _ in range(count):
        await timed(bare, lambda: statement.fetch(uuid4(), body))
        await timed(http, lambda: client.enqueue("sofia_text", TEXT, uuid4(), use_cache=False))
        await asyncio.sleep(0.02)
    return bare, http


def warm_demos(count: int) -> list[float]:
    """Seconds of whole `aiworker demo` processes, after one that warms the folder up."""
    taken = []
    with tempfile.TemporaryDirectory(prefix="aiworker-demo-") as folder:
        Path(folder).chmod(0o755)
        weights = str(load_settings().models_dir.resolve())
        environment = {**os.environ, "MODELS_DIR": weights}
        for number in range(count + 1):
            started = time.perf_counter()
            command = [sys.executable, "-m", "aiworker.cli", "demo"]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            if number:
                taken.append(time.perf_counter() - started)
    return taken


async def measure(sizes: Sizes, console: Console) -> list[Bar]:
    """All figures of a fresh system in a folder of its own."""
    settings = load_settings(port=0, worker_port=0, models_dir=load_settings().models_dir.resolve())
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="aiworker-bench-") as folder:
        Path(folder).chmod(0o755)
        os.chdir(folder)
        try:
            async with (
                running_stack(settings, console.print, log_dir=Path("logs")) as stack,
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
                ) as session,
            ):
                client = GatewayClient(stack.gateway_url, stack.keys.service_key or "", session)
                database = await asyncpg.connect(stack.database_url)
                try:
                    picked = await pick_ups(client, database, sizes.picks)
                    bare, http = await floor_and_http(client, database, sizes.floors)
                    console.print(f"enqueueing {RATE}/s for {sizes.load_s:.0f} s with the worker busy")
                    loaded, failed = await enqueue_under_load(client, sizes.load_s)
                finally:
                    await database.close()
        finally:
            os.chdir(home)
    console.print("warm demos")
    demos = warm_demos(sizes.demos)
    return [
        Bar("enqueue p50 at 100 req/s, worker busy", percentile(loaded, 0.50), "ms"),
        Bar("enqueue p95 at 100 req/s, worker busy", percentile(loaded, 0.95), "ms", 50),
        Bar("enqueue p99 at 100 req/s, worker busy", percentile(loaded, 0.99), "ms"),
        Bar("enqueues that failed", float(failed), "", 0),
        Bar("pick-up p50 (created to started)", percentile(picked, 0.50), "ms", 10),
        Bar("pick-up p99", percentile(picked, 0.99), "ms"),
        Bar("enqueue as bare SQL, p50 (the floor)", percentile(bare, 0.50), "ms"),
        Bar("enqueue over HTTP, p50, idle", percentile(http, 0.50), "ms"),
        Bar("HTTP / floor", percentile(http, 0.50) / percentile(bare, 0.50), "x"),
        Bar("demo, warm, median", statistics.median(demos), "s", 20),
    ]


def main() -> None:
    """Measures, prints, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    console = Console(highlight=False)
    bars = asyncio.run(measure(QUICK if options.quick else FULL, console))
    console.print(table_of(bars, "front door"))
    if options.json:
        figures = [{"name": b.name, "value": b.value, "unit": b.unit, "limit": b.limit, "met": b.met} for b in bars]
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
