"""Several worker processes on one PostgreSQL: does twice the workers do twice the work?

Each worker has the product's whole scheduler and 50 slots; an analysis waits for half a second, as for a model, and
does nothing. Then the same with analyses that take no time, which shows the ceiling of database and cores.

    python benchmarks/scale_out.py [--quick] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import uvloop
from queueing.ours import LEFT, PAUSE, RESUME, fill, opened, working
from queueing.server import database, durable_server
from rich.console import Console
from rich.table import Table

from aiworker.analyses.base import AnalysisResult, Attempt, JobInput
from aiworker.cli.serve import leave_imports_alone
from aiworker.queue.postgres import PostgresQueue
from aiworker.telemetry.logs import configure_logging

HERE = Path(__file__).parent
SLOTS = 50
WORK_S = 0.5
CROWDS = (1, 2, 4)
LINEAR = 0.9


async def serve(url: str, work_s: float) -> None:
    """One worker, from when it says that it is ready until it is sent a line."""

    async def work(_job: JobInput, _attempt: Attempt) -> AnalysisResult:
        await asyncio.sleep(work_s)
        return AnalysisResult()

    async with PostgresQueue(url) as queue, working(queue, url, SLOTS, work, worker_id=str(uuid4())):
        await queue.depth()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


async def rate_of(server: str, workers: int, jobs: int, work_s: float) -> float:
    """Jobs a second that `workers` processes do together, from the first claim to the last end."""
    async with database(server, "scale") as url:
        async with opened(url) as (_, connection):
            await connection.execute(PAUSE)
            await fill(connection, jobs)
            await connection.execute("vacuum analyze analysis_jobs")
            crowd = [await _worker(url, work_s) for _ in range(workers)]
            started = asyncio.get_running_loop().time()
            await connection.execute(RESUME)
            seconds = await _drained(connection, started)
            await asyncio.gather(*(worker.communicate(b"\n") for worker in crowd))
        return jobs / seconds


async def _worker(url: str, work_s: float) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__)), "--serve", url, str(work_s)),
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def _drained(connection: asyncpg.Connection[Any], started: float) -> float:
    while await connection.fetchval(LEFT):
        await asyncio.sleep(0.02)
    return asyncio.get_running_loop().time() - started


async def measure(server: str, rounds: int, console: Console) -> dict[str, float]:
    """Jobs a second by how many workers, waiting and not."""
    found = {}
    for workers in CROWDS:
        console.print(f"[dim]{workers} workers[/dim]")
        found[f"waiting, {workers}"] = await rate_of(server, workers, SLOTS * workers * rounds, WORK_S)
        found[f"no work, {workers}"] = await rate_of(server, workers, 4000 if rounds > 10 else 1500, 0.0)
    return found


def main() -> None:
    """Measures, prints, and with --check exits 1 when four workers do not do 90 % of four times the work of one."""
    if sys.argv[1:2] == ["--serve"]:
        configure_logging("WARNING", "bench")
        leave_imports_alone()
        uvloop.run(serve(sys.argv[2], float(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    console = Console(highlight=False)
    with durable_server() as server:
        found = asyncio.run(measure(server.start(), 8 if options.quick else 20, console))
    table = Table(title=f"workers on one PostgreSQL, {os.cpu_count()} cores, {SLOTS} slots each")
    for heading in ("workers", f"{WORK_S:g} s of waiting: jobs/s", "of ideal", "no work: jobs/s"):
        table.add_column(heading, justify="right")
    for workers in CROWDS:
        rate = found[f"waiting, {workers}"]
        ideal = workers * SLOTS / WORK_S
        table.add_row(str(workers), f"{rate:.0f}", f"{rate / ideal:.0%}", f"{found[f'no work, {workers}']:.0f}")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.check and found["waiting, 4"] < LINEAR * 4 * found["waiting, 1"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
