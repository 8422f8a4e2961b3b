"""A worker at a steady rate while its database is restarted, killed, silenced, slow, or stops to notify.

Every job is in a ledger: a trigger notes each end that is committed, so that a job which ends twice, or never, is seen.
Each fault begins when a third of the jobs has been sent. None of them restarts the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from aiworker.analyses.base import AnalysisResult, Attempt, JobInput, Tools
from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.domain.errors import DatabaseUnavailable
from aiworker.domain.job import NewJob
from aiworker.queue.listen import Listener
from aiworker.queue.postgres import PostgresQueue
from aiworker.scheduler.worker import Worker
from aiworker.telemetry.metrics import Metrics
from queueing.ours import DONE, KIND, analysis, limits, opened
from queueing.server import database

WORK_S = 0.02
SLOTS = 20
BACK = 0.9
PATIENCE_S = 120.0
AFTER_S = 17.0
WINDOW_S = 2.0

LEDGER = """
create table ends (job_id uuid, status text, at timestamptz default clock_timestamp());
create function note_end() returns trigger language plpgsql as $$
begin insert into ends (job_id, status) values (new.id, new.status); return null; end $$;
create trigger note_end after update of status on analysis_jobs for each row
  when (new.status in ('completed', 'failed', 'cancelled')) execute function note_end();
"""
KILL_ALL = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid()"""
ENDS = "select extract(epoch from at)::float8 from ends order by at"
TALLY = """
select $1 - (select count(*) from analysis_jobs where status = 'completed') as unfinished,
       (select count(*) from (select job_id from ends group by job_id having count(*) > 1) twice) as twice"""


class Wire:
    """A TCP proxy to the database whose connections can go silent, or slow, for a while."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: set[int] = set()
        self._generation = 0
        self.delay_s = 0.0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        credentials = self._target.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """Whatever is open now stays open, and nothing passes on it any more. New connections work."""
        self._silent.add(self._generation)
        self._generation += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, generation))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int) -> None:
        try:
            while data := await source.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s / 2)
                if generation in self._silent:
                    await asyncio.Future()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()


@dataclass(frozen=True)
class Scene:
    """What a fault may lay hands on."""

    server: EmbeddedPostgres
    url: str
    wire: Wire
    listener_wire: Wire
    seconds: float


Fault = Callable[[Scene], Awaitable[None]]


async def restart(scene: Scene) -> None:
    """The server goes down at once and comes back."""
    await asyncio.to_thread(scene.server.stop)
    await asyncio.sleep(min(scene.seconds, 5.0))
    await asyncio.to_thread(scene.server.start)


async def terminate(scene: Scene) -> None:
    """Every connection is killed, twice a second."""
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        connection = await asyncpg.connect(scene.url)
        await connection.fetchval(KILL_ALL)
        connection.terminate()
        await asyncio.sleep(0.5)


async def half_open(scene: Scene) -> None:
    """Every connection of the worker goes silent and stays open."""
    scene.wire.silence()
    scene.listener_wire.silence()


async def slow(scene: Scene) -> None:
    """Each statement takes two seconds."""
    scene.wire.delay_s = 2.0
    await asyncio.sleep(scene.seconds)
    scene.wire.delay_s = 0.0


async def deaf(scene: Scene) -> None:
    """The listener's connection dies without a word."""
    scene.listener_wire.silence()
    await asyncio.sleep(scene.seconds)


FAULTS: dict[str, tuple[Fault, float]] = {
    "PostgreSQL restarted": (restart, 5.0),
    "all connections killed twice a second": (terminate, 30.0),
    "half-open connections": (half_open, 0.0),
    "every statement takes 2 s": (slow, 15.0),
    "deaf listener": (deaf, 10.0),
}


async def survive(
    server: EmbeddedPostgres, name: str, jobs: int, scale: float = 1.0, after_s: float = AFTER_S
) -> dict[str, float]:
    """What became of `jobs` jobs during a fault: lost, twice, back_s (seconds from its end to the old rate).

    `scale` shortens the fault; a third is sent before it, and jobs are sent for `after_s` seconds when it has ended.
    """
    fault, full_s = FAULTS[name]
    seconds = full_s * scale
    rate = jobs / (1.5 * (seconds + after_s))
    async with AsyncExitStack() as stack:
        # Joining a server that runs gives its URL.
        url = await stack.enter_async_context(database(await asyncio.to_thread(server.start), "faults"))
        async with opened(url) as (_, connection):
            await connection.execute(LEDGER)
        wire = await stack.enter_async_context(Wire(url))
        listener_wire = await stack.enter_async_context(Wire(url))
        await stack.enter_async_context(_worker(wire.url, listener_wire.url))
        sending = asyncio.create_task(_send(url, jobs, rate))
        await asyncio.sleep(jobs / rate / 3)
        await fault(Scene(server, url, wire, listener_wire, seconds))
        fault_ended = time.time()
        await sending
        await _until_all_ended(url, jobs)
        connection = await _patient(lambda: asyncpg.connect(url))
        tally = await connection.fetchrow(TALLY, jobs)
        ends = [row[0] for row in await connection.fetch(ENDS)]
        await connection.close()
    return {"lost": tally["unfinished"], "twice": tally["twice"], "back_s": back_after(ends, fault_ended, rate)}


@asynccontextmanager
async def _worker(url: str, listener_url: str) -> AsyncIterator[None]:
    async def work(_job: JobInput, _attempt: Attempt) -> AnalysisResult:
        await asyncio.sleep(WORK_S)
        return DONE

    stop = asyncio.Event()
    async with PostgresQueue(url, timeout_s=5.0) as queue:
        tools = Tools(None, None, None)  # type: ignore[arg-type]
        worker = Worker(queue, Listener(listener_url), tools, Metrics(), limits(SLOTS), analyses={KIND: analysis(work)})
        task = asyncio.create_task(worker.run(stop))
        yield
        stop.set()
        await task


async def _send(url: str, jobs: int, rate: float) -> None:
    """At a steady rate; a request that fails is sent again under its idempotency key."""
    start = time.monotonic()
    async with PostgresQueue(url, timeout_s=5.0) as client:

        async def one(number: int) -> None:
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            job = NewJob(uuid4(), KIND, {"n": number}, idempotency_key=str(number))
            await _patient(lambda: client.enqueue(job))

        await asyncio.gather(*(one(number) for number in range(jobs)))


async def _until_all_ended(url: str, jobs: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            connection = await _patient(lambda: asyncpg.connect(url))
            if await connection.fetchval("select count(*) from ends") >= jobs:
                await connection.close()
                return
            await connection.close()
            await asyncio.sleep(0.2)


async def _patient(call: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await call()
            except (DatabaseUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.1)


def back_after(ends: list[float], fault_ended: float, rate: float) -> float:
    """Seconds from the fault's end until as much is done again as is sent, over WINDOW_S seconds."""
    for end in [fault_ended, *(end for end in ends if end > fault_ended)]:
        done = sum(end <= other < end + WINDOW_S for other in ends)
        if done >= BACK * rate * WINDOW_S:
            return end - fault_ended
    return float("inf")
