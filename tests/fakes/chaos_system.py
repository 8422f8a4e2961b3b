"""The whole system as processes that can be killed, with a ledger of every job that was accepted.

PostgreSQL is a server of its own, gateway and worker are processes on sockets that outlive them (a supervisor would
start them again on the same ports), Ollama and Gemini are the fakes. Children run the fake engine.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import psutil
from queueing.faults import Wire

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.cli.serve import address_of, listening_socket
from aiworker.queue.migrate import migrate
from fakes.fake_engine import picture
from fakes.gemini_server import FakeGemini
from fakes.ollama_server import FakeOllama

TESTS = Path(__file__).parent.parent
KEY = "chaos-service-key"
_PATIENCE_S = 100.0

# Written by the database itself in the transaction of the change: nothing that the worker believes counts.
LEDGER = """
create table moves (job_id uuid, was text, became text, at timestamptz default clock_timestamp());
create function note_move() returns trigger language plpgsql as $$
begin insert into moves (job_id, was, became) values (new.id, old.status, new.status); return null; end $$;
create trigger note_move after update of status on analysis_jobs for each row
  when (old.status is distinct from new.status) execute function note_move();
"""
_ENDED = "('completed', 'failed', 'cancelled')"
_TALLY = f"""
select count(*) filter (where status in {_ENDED}) as ended,
       count(*) filter (where status = 'completed') as completed,
       (select count(*) from analysis_jobs) as stored,
       (select count(*) from moves where was in {_ENDED}) as reopened,
       (select count(*) from (select job_id from moves where became in {_ENDED} group by job_id having count(*) > 1) t)
         as twice
  from analysis_jobs where id = any($1)"""


@dataclass(frozen=True)
class Tally:
    """Of the jobs that were accepted: `lost` have not ended, `twice` ended more than once. `doubled` are the rows that
    are stored beyond one for each request."""

    accepted: int
    completed: int
    lost: int
    twice: int
    doubled: int


@dataclass
class ChaosSystem:
    """`environment` is what processes that are started from now on see; `level_mb` the memory before any fault."""

    server: EmbeddedPostgres
    url: str
    wire: Wire
    gemini: FakeGemini
    ollama: FakeOllama
    session: aiohttp.ClientSession
    sockets: dict[str, Any]
    environment: dict[str, str]
    logs: Path
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    accepted: dict[str, UUID] = field(default_factory=dict)
    level_mb: float = 0.0
    _stored: int = 0
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self, name: str, **more: str) -> None:
        """Starts `gateway` or `worker` and returns when it is ready."""
        module = "fakes.fake_engine_worker" if name == "worker" else "aiworker.cli"
        descriptor = self.sockets[name].fileno()
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, name, "--fd", str(descriptor)),
                env=self.environment | more,
                pass_fds=(descriptor,),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        await self.ready(name)

    async def ready(self, name: str) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while not await self._is_ready(name):
                await asyncio.sleep(0.05)

    async def end(self, name: str, number: signal.Signals) -> int:
        """Its exit code."""
        process = self.processes[name]
        process.send_signal(number)
        async with asyncio.timeout(_PATIENCE_S):
            return await process.wait()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.processes["worker"].pid).children(recursive=True)

    def memory_mb(self) -> float:
        """Of worker and children."""
        worker = psutil.Process(self.processes["worker"].pid)
        return sum(each.memory_info().rss for each in (worker, *self.children())) / 1e6

    async def send(self, count: int, seconds: float, make: Callable[[int], dict[str, Any]] | None = None) -> None:
        """`count` jobs at a steady rate. What gets no answer is sent again, under the same idempotency key."""
        start, run = time.monotonic(), uuid4().hex

        async def one(number: int) -> None:
            await asyncio.sleep(max(0.0, start + seconds * number / count - time.monotonic()))
            await self._accept(f"{run}-{number}", (make or usual)(number))

        await asyncio.gather(*(one(number) for number in range(count)))

    async def reached(self, count: int) -> None:
        """Returns when `count` jobs have been accepted in all."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.accepted) >= count)

    async def settled(self) -> Tally:
        """Waits until every accepted job has ended, then counts. Forgets them after that."""
        ids = list(self.accepted.values())
        async with asyncio.timeout(_PATIENCE_S):
            while (row := await self._row(ids)) is None or row["ended"] < len(ids):
                await asyncio.sleep(0.1)
        keys = len(self.accepted)
        self.accepted.clear()
        lost = len(ids) - row["ended"]
        doubled, self._stored = row["stored"] - self._stored - keys, row["stored"]
        return Tally(len(ids), row["completed"], lost, row["twice"] + row["reopened"], doubled)

    async def codes(self, ids: list[UUID]) -> dict[UUID, str | None]:
        connection = await asyncpg.connect(self.url)
        rows = await connection.fetch("select id, error_code from analysis_jobs where id = any($1)", ids)
        await connection.close()
        return {row["id"]: row["error_code"] for row in rows}

    async def _row(self, ids: list[UUID]) -> Any:
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return None
        try:
            return await connection.fetchrow(_TALLY, ids)
        finally:
            await connection.close()

    async def _accept(self, key: str, order: dict[str, Any]) -> None:
        url = f"{address_of(self.sockets['gateway'])}/enqueue-analysis"
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": key}
        body = {"userId": str(uuid4()), "useCache": False} | order
        # The same body each time, the user included: another one would be another request.
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    async with self.session.post(url, json=body, headers=headers) as response:
                        if response.status == 202:
                            async with self._news:
                                self.accepted[key] = UUID((await response.json())["jobId"])
                                self._news.notify_all()
                            return
                        assert response.status >= 500, (response.status, await response.text())
                except (aiohttp.ClientError, TimeoutError):
                    pass  # sent again below
                await asyncio.sleep(0.1)

    async def _is_ready(self, name: str) -> bool:
        try:
            async with self.session.get(f"{address_of(self.sockets[name])}/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def usual(number: int) -> dict[str, Any]:
    """Mostly text, some photos, some chat."""
    match number % 5:
        case 0:
            return photo(20)
        case 1:
            return {"type": "unified_assistant", "input": {"message": f"monte um cardápio de {1500 + number} kcal"}}
        case _:
            return {"type": "sofia_text", "input": {"text": f"comi {number} g de arroz e um ovo frito"}}


def photo(height: int) -> dict[str, Any]:
    """What the fake engine does with it depends on its height."""
    content = base64.b64encode(picture(height)).decode()
    return {"type": "sofia_image", "input": {"imageUrl": f"data:image/png;base64,{content}"}}


@asynccontextmanager
async def chaos_system(folder: Path) -> AsyncIterator[ChaosSystem]:
    """Started, ready, and gone at the end."""
    folder.chmod(0o755)
    async with AsyncExitStack() as stack:
        server = EmbeddedPostgres(folder / "postgres", durable=True, outside=folder / "outside")
        url = await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        await migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute(LEDGER)
        await connection.close()
        wire = await stack.enter_async_context(Wire(url))
        gemini = await stack.enter_async_context(FakeGemini())
        ollama = await stack.enter_async_context(FakeOllama(slots=8))
        sockets = {name: stack.enter_context(listening_socket("127.0.0.1", 0, name)) for name in ("gateway", "worker")}
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), connector=aiohttp.TCPConnector(limit=0))
        )
        weights = folder / "none.pt"
        weights.touch()
        environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
            "PYTHONPATH": str(TESTS),
            "DATABASE_URL": wire.url,
            "DATABASE_TIMEOUT_S": "3",
            "SUPABASE_SERVICE_ROLE_KEY": KEY,
            "YOLO_MODEL": str(weights),
            "GEMINI_API_KEY": gemini.key,
            "GEMINI_URL": gemini.url,
            "GEMINI_SLOTS": "32",
            "OLLAMA_URL": ollama.url,
            "OLLAMA_SLOTS": "8",
            "INFERENCE_PROCESSES": "1",
            "WORKER_CONCURRENCY": "32",
            "WORKER_LEASE_MS": "3000",
            "WORKER_DRAIN_TIMEOUT_MS": "300",
            "LOG_LEVEL": "WARNING",
        }
        system = ChaosSystem(server, url, wire, gemini, ollama, session, sockets, environment, folder)
        stack.push_async_callback(_stop, system)
        await system.start("gateway")
        await system.start("worker")
        yield system


async def _stop(system: ChaosSystem) -> None:
    for name, process in system.processes.items():
        if process.returncode is None:
            await system.end(name, signal.SIGTERM)
