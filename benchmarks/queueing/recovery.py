"""What happens to a job whose worker dies, and to the write of a worker that comes back too late."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from uuid import uuid4

import uvloop

from aiworker.analyses.base import AnalysisResult, Attempt, JobInput
from aiworker.domain.job import NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.postgres import PostgresQueue
from aiworker.telemetry.logs import configure_logging
from queueing.ours import KIND, opened, working

PATIENCE_S = 60.0


async def restart_after_kill(url: str) -> float:
    """Seconds from the SIGKILL of a worker to the start of its job in another one, with default settings."""
    async with opened(url) as (queue, _):
        await queue.enqueue(NewJob(uuid4(), KIND, {}))
        first = await _holder(url)
        await _begun(first)
        second = await _holder(url)
        await _up(second)
        os.kill(first.pid, signal.SIGKILL)
        killed = time.time()
        began = await _begun(second)
        for process in (first, second):
            if process.returncode is None:
                process.kill()
            await process.wait()
        return began - killed


async def stale_writes_refused(url: str, writes: int) -> float:
    """The share of late outcomes, each of another lost attempt, that the queue refused."""
    async with opened(url) as (queue, connection):
        refused = 0
        for _ in range(writes // 50):
            await connection.execute("truncate analysis_jobs")
            for _ in range(50):
                await queue.enqueue(NewJob(uuid4(), KIND, {}))
            late = await queue.claim("late", 50, 6.0, [KIND])
            await connection.execute("update analysis_jobs set lease_expires_at = now() - interval '1 s'")
            await queue.rescue()
            now = await queue.claim("now", 50, 6.0, [KIND])
            lost = await queue.finalise([(job.lease, Completed({"by": "late"})) for job in late])
            await queue.finalise([(job.lease, Completed({"by": "now"})) for job in now])
            by_now = await connection.fetchval("select count(*) from analysis_jobs where result ->> 'by' = 'now'")
            refused += min(len(lost), by_now)
        return refused / (writes // 50 * 50)


async def _holder(url: str) -> asyncio.subprocess.Process:
    """A worker in a process of its own that says when it is up and when a job begins, and holds it for ever."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "queueing.recovery", url),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )


async def _up(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while await process.stdout.readline() != b"up\n":
            continue


async def _begun(process: asyncio.subprocess.Process) -> float:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while not (line := await process.stdout.readline()).startswith(b"began "):
            continue
    return float(line.split()[1])


async def _hold(url: str) -> None:
    async def hang(_job: JobInput, _attempt: Attempt) -> AnalysisResult:
        print("began", time.time(), flush=True)
        await asyncio.Future()
        raise AssertionError

    async with PostgresQueue(url) as queue, working(queue, url, 5, hang, worker_id=str(os.getpid())):
        await queue.depth()
        print("up", flush=True)
        await asyncio.Future()


def main() -> None:
    """The worker that is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    configure_logging("ERROR", "bench")
    uvloop.run(_hold(parser.parse_args().url))


if __name__ == "__main__":
    main()
