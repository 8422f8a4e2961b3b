"""Runs a gateway or a worker as a process: sockets, signals, health, and an orderly end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import uvloop
from aiohttp import web

from aiworker.domain.errors import ConfigurationError, WorkerError
from aiworker.telemetry.threads import full_pool

_PR_SET_PDEATHSIG = 1
_HTTP_SHUTDOWN_S = 5.0
_THREADS = 2


_GARBAGE_THRESHOLD = 20_000
_GARBAGE_EVERY_S = 10.0
_M_MMAP_THRESHOLD = -3
_BIG_BLOCK_BYTES = 128 * 1024

Part = TypeVar("Part")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` on uvloop to its end. A WorkerError that ended one of its services is raised for its sentence."""
    give_memory_back()
    leave_imports_alone()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_default_executor(full_pool(_THREADS, "aside"))
        try:
            runner.run(_collecting(main))
        except BaseExceptionGroup as group:
            raise _known(group) or group from None


async def _collecting(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main`, and the collector of cycles every few seconds, which takes milliseconds.

    A call that is cancelled leaves a circle in aiohttp with the request's pictures in it. Left to count objects, the
    collector lets hundreds of them gather, and on an idle worker it never comes.
    """

    async def collect() -> None:
        while True:
            await asyncio.sleep(_GARBAGE_EVERY_S)
            gc.collect()

    collector = asyncio.create_task(collect())
    try:
        await main
    finally:
        collector.cancel()


def _known(group: BaseExceptionGroup[BaseException]) -> WorkerError | None:
    """The first error of ours in it, however deep."""
    for error in group.exceptions:
        found = _known(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, WorkerError):
            return found
    return None


def leave_imports_alone() -> None:
    """Keeps the collector of cycles off what was imported, which never becomes garbage: looking through all of it again
    and again took a seventh of the time of a busy worker."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)


def give_memory_back() -> None:
    """Has glibc take big blocks from the system and give each back when it is freed; another C library is left alone.

    By itself it learns from the first freed picture to keep blocks of that size in its heap. What is small and stays
    then comes to lie between them, and the process keeps half as much again as it uses.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _BIG_BLOCK_BYTES)


def listening_socket(host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens on (host, port), 0 taking a free port.

    Raises ConfigurationError naming `variable` when the address cannot be had.
    """
    try:
        return socket.create_server((host, port), backlog=1024, family=_family(host))
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set {variable} to another port"
        ) from None


def address_of(listener: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def die_with_parent() -> None:
    """SIGTERM for this process when its parent is gone, however it went (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first, number)
    return stop


async def started(parts: AbstractAsyncContextManager[Part], stack: AsyncExitStack, stop: asyncio.Event) -> Part | None:
    """What `parts` gives, opened until `stack` closes; None when `stop` came first. A start can take half a minute, and
    has nothing to drain."""
    try:
        async with asyncio.timeout(None) as limit:
            stopping = asyncio.create_task(_ended_by(stop, limit))
            try:
                return await stack.enter_async_context(parts)
            finally:
                stopping.cancel()
    except TimeoutError:
        if limit.expired():
            return None
        raise


async def _ended_by(stop: asyncio.Event, limit: asyncio.Timeout) -> None:
    await stop.wait()
    limit.reschedule(asyncio.get_running_loop().time())


@asynccontextmanager
async def serving(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serves `app` on `listener`; at the end lets requests under way finish."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_HTTP_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=1024).start()
        yield
    finally:
        await runner.cleanup()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
