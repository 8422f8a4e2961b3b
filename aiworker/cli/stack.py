"""Everything at once for `up` and `demo`: PostgreSQL, migrations, weights, gateway and worker."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import aiohttp
from pydantic import SecretStr

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.cli.keys import Keys, keys_for
from aiworker.cli.serve import address_of, listening_socket
from aiworker.domain.errors import ConfigurationError, WeightsUnavailable
from aiworker.inference.weights import pull_weights, resolve_weights
from aiworker.queue.migrate import migrate
from aiworker.settings import Settings

Say = Callable[[str], None]

STATE_DIR = Path(".aiworker")

_READY_TIMEOUT_S = 180.0
_POLL_S = 0.05
_LOG_TAIL = 1200


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs. `ended` completes when a process of it dies by itself."""

    gateway_url: str
    worker_url: str
    database_url: str = field(repr=False)
    keys: Keys
    processes: Mapping[str, asyncio.subprocess.Process]

    async def ended(self) -> str:
        """Waits for the first process to die, and names it."""
        waits = {asyncio.create_task(process.wait(), name=name) for name, process in self.processes.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().get_name()
        finally:
            for task in waits:
                task.cancel()


@asynccontextmanager
async def running_stack(settings: Settings, say: Say, *, log_dir: Path | None = None) -> AsyncIterator[Stack]:
    """Starts all, yields when both `/ready` say so, and stops what it started, in reverse.

    With `log_dir` the processes' logs go to files there, else to this process's stderr.
    Raises ConfigurationError with what to do when a part does not start.
    """
    async with AsyncExitStack() as cleanup:
        keys = keys_for(settings, STATE_DIR)
        gateway_socket = cleanup.enter_context(listening_socket(settings.host, settings.port, "PORT"))
        worker_socket = cleanup.enter_context(
            listening_socket(settings.worker_host, settings.worker_port, "WORKER_PORT")
        )
        weights = await asyncio.to_thread(_weights, settings, say)
        database_url = await _database(settings, cleanup, say)
        applied = await migrate(database_url)
        say(f"migrations: {len(applied)} applied" if applied else "migrations: up to date")
        ours = {
            "DATABASE_URL": database_url,
            "YOLO_MODEL": str(weights),
            "INFERENCE_ENGINE": settings.inference_engine,
        }
        environment = os.environ | keys.environment() | ours
        processes = {}
        for name, listener in (("worker", worker_socket), ("gateway", gateway_socket)):
            processes[name] = await cleanup.enter_async_context(
                _process(name, listener, environment, log_dir, settings.worker_drain_timeout_ms / 1000)
            )
        stack = Stack(address_of(gateway_socket), address_of(worker_socket), database_url, keys, processes)
        await _until_ready(stack, log_dir, say)
        yield stack


def _weights(settings: Settings, say: Say) -> Path:
    try:
        return resolve_weights(settings.yolo_model, settings.models_dir).resolve()
    except WeightsUnavailable:
        say(f"weights: getting {settings.yolo_model}")
        return pull_weights(settings.yolo_model, settings.models_dir).resolve()


@asynccontextmanager
async def with_database(settings: Settings) -> AsyncIterator[Settings]:
    """`settings` with the database that `up` keeps in this folder, where none is configured and there is one."""
    data = STATE_DIR / "postgres"
    if settings.database_url is not None or not await asyncio.to_thread(data.exists):
        yield settings
        return
    server = EmbeddedPostgres(data)
    url = await asyncio.to_thread(server.start)
    try:
        yield settings.model_copy(update={"database_url": SecretStr(url)})
    finally:
        await asyncio.to_thread(server.stop)


async def _database(settings: Settings, cleanup: AsyncExitStack, say: Say) -> str:
    if settings.database_url is not None:
        say("database: DATABASE_URL")
        return settings.database_url.get_secret_value()
    server = EmbeddedPostgres(STATE_DIR / "postgres")
    url = await asyncio.to_thread(server.start)
    cleanup.push_async_callback(asyncio.to_thread, server.stop)
    say("database: embedded PostgreSQL")
    return url


@asynccontextmanager
async def _process(
    name: str, listener: socket.socket, environment: Mapping[str, str], log_dir: Path | None, drain_s: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    log = _opened_log(log_dir, name)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiworker.cli", name, "--fd", str(listener.fileno()), "--die-with-parent"),
        env=dict(environment),
        pass_fds=(listener.fileno(),),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=log,
        # Ctrl-C in a terminal reaches the whole group; these are stopped by us, in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _stopped(process, drain_s + 15)
        if log is not None:
            log.close()


def _opened_log(log_dir: Path | None, name: str) -> IO[bytes] | None:
    if log_dir is None:
        return None
    log_dir.mkdir(parents=True, exist_ok=True)
    return (log_dir / f"{name}.log").open("wb")


async def _stopped(process: asyncio.subprocess.Process, patience_s: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _until_ready(stack: Stack, log_dir: Path | None, say: Say) -> None:
    ended = asyncio.create_task(stack.ended())
    ready = asyncio.create_task(_both_ready(stack))
    try:
        await asyncio.wait({ended, ready}, timeout=_READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            say("gateway and worker: ready")
            return
        failed = ended.result() if ended.done() else "worker"
        raise ConfigurationError(f"the {failed} did not get ready{_tail(log_dir, failed)}")
    finally:
        for task in (ended, ready):
            task.cancel()


async def _both_ready(stack: Stack) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for url in (stack.gateway_url, stack.worker_url):
            while not await _is_ready(session, url):  # noqa: ASYNC110 - another process has no event of ours
                await asyncio.sleep(_POLL_S)


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _tail(log_dir: Path | None, name: str) -> str:
    if log_dir is None:
        return ": its log is above"
    log = log_dir / f"{name}.log"
    return f": the end of {log} says\n{log.read_text(errors='replace')[-_LOG_TAIL:]}"
