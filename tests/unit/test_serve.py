"""How a process ends when a service of it does, and what memory it keeps while it runs."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NoReturn

import aiohttp
import pytest
from aiohttp import web

from aiworker.cli import processes, serve
from aiworker.cli.serve import address_of, listening_socket, run, serving, started
from aiworker.domain.errors import ConfigurationError
from aiworker.settings import Settings, load_settings
from aiworker.telemetry.metrics import Metrics


async def _services(error: Exception) -> None:
    async def fails() -> None:
        raise error

    async with asyncio.TaskGroup() as outer:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fails())
        outer.create_task(asyncio.sleep(0))


def test_an_error_of_ours_is_raised_by_itself_for_its_sentence() -> None:
    with pytest.raises(ConfigurationError, match="aiworker migrate"):
        run(_services(ConfigurationError("run `aiworker migrate`")))


def test_a_bug_keeps_its_whole_trace() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(_services(ZeroDivisionError()))
    assert caught.group_contains(ZeroDivisionError)


@asynccontextmanager
async def _part(opens: asyncio.Event, seen: list[str]) -> AsyncIterator[str]:
    try:
        await opens.wait()
        yield "open"
    finally:
        seen.append("closed")


async def test_a_start_is_given_up_when_told_to_stop_and_what_was_opened_is_not() -> None:
    opens, stop, seen = asyncio.Event(), asyncio.Event(), list[str]()
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(started(_part(opens, seen), stack, stop))
        await asyncio.sleep(0)
        stop.set()
        assert await opening is None
        assert seen == ["closed"]
        opens.set()
        assert await started(_part(opens, seen), stack, asyncio.Event()) == "open"
        assert seen == ["closed"]
    assert seen == ["closed", "closed"]


async def test_a_start_that_times_out_by_itself_has_not_been_stopped() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        raise TimeoutError
        yield

    async with AsyncExitStack() as stack:
        with pytest.raises(TimeoutError):
            await started(slow(), stack, asyncio.Event())


class _Circle:
    def __init__(self) -> None:
        self.itself = self


def test_circles_go_while_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_GARBAGE_EVERY_S", 0.01)

    async def main() -> None:
        gone = asyncio.Event()
        weakref.finalize(_Circle(), gone.set)
        async with asyncio.timeout(20):
            await gone.wait()

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


# Pictures come and go between things that stay. Prints the MB that the heap keeps of those that are gone.
_PICTURES = """
import ctypes
from aiworker.cli.serve import give_memory_back
give_memory_back()
stay = []
for _ in range(2):
    pictures = []
    for _ in range(100):
        pictures.append(bytearray(1 << 20))
        stay.append(bytearray(2000))
    del pictures
class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo
print(libc.mallinfo2().fordblks >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or newer")
def test_pictures_that_are_gone_take_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _PICTURES], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 10


async def test_a_hangup_while_a_worker_starts_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[object] = []

    def parts(settings: Settings, metrics: Metrics) -> NoReturn:
        during.append(signal.getsignal(signal.SIGHUP))
        raise ConfigurationError("no further")

    monkeypatch.setattr(processes, "worker_parts", parts)
    before = signal.getsignal(signal.SIGHUP)
    try:
        with socket.socket() as listener, pytest.raises(ConfigurationError):
            await processes.run_worker(load_settings(), listener)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert during == [signal.SIG_IGN]


async def test_who_asks_between_two_servers_of_one_socket_is_answered_by_the_second() -> None:
    def app(name: str) -> web.Application:
        async def answer(_request: web.Request) -> web.Response:
            return web.Response(text=name)

        application = web.Application()
        application.router.add_get("/", answer)
        return application

    listener = listening_socket("127.0.0.1", 0, "PORT")
    async with aiohttp.ClientSession() as session:

        async def ask() -> str:
            async with session.get(address_of(listener), timeout=aiohttp.ClientTimeout(total=60)) as answer:
                return await answer.text()

        async with serving(app("first"), listener.dup()):
            assert await ask() == "first"
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with serving(app("second"), listener):
            assert (await reader.read()).endswith(b"second")
            assert await ask() == "second"
        writer.close()
