"""What the fake Ollama and the fake Gemini share: a real socket, a script, and a record of what was asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One scripted answer. The default answers well.

    `before`, `after_first` and `at_end` are awaited before the first token, after it, and when all is said: an event
    that nobody sets is a hang. After `cut_after` tokens the connection is aborted; `garbage_after` sends a line that is
    not JSON instead of a token, `rubbish_at_end` after the whole answer, `error_after` an error inside the stream;
    `calls` are the functions that it asks for, after its text. With `finish_always`, each of Gemini's events says
    how it ended, as they did in 2024. `status` other than 200 answers `body` at once.
    """

    text: str | None = None
    finish: str | None = None
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    before: asyncio.Event | None = None
    after_first: asyncio.Event | None = None
    at_end: asyncio.Event | None = None
    rubbish_at_end: bool = False
    cut_after: int | None = None
    garbage_after: int | None = None
    error_after: int | None = None
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    error: Any = "llama runner process has terminated"
    token_s: float = 0.0
    finish_always: bool = False


class FakeLlmServer:
    """`async with FakeOllama() as server: server.url`. Stopped and started again, it keeps its port.

    `requests` are the bodies of the calls for text so far; `hangs` counts calls that came to an event of
    their reply, `disconnects` clients that left before their end.
    """

    def __init__(self, *, answer: Callable[[Body], str] | None, slots: int) -> None:
        self.requests: list[Body] = []
        self.hangs = 0
        self.disconnects = 0
        self.answer = answer
        self.slots = asyncio.Semaphore(slots)
        self._script: deque[Reply] = deque()
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    def script(self, *replies: Reply) -> None:
        """The next calls for text get these, then the default again."""
        self._script.extend(replies)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        self.add_routes(app)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuses connections from here on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def received(self, count: int) -> None:
        """Returns when `count` calls for text have come in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)

    async def disconnected(self, count: int = 1) -> None:
        """Returns when `count` clients have left early in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.disconnects >= count)

    async def hung(self, count: int = 1) -> None:
        """Returns when `count` calls have come to an event of their reply in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.hangs >= count)

    def add_routes(self, app: web.Application) -> None:
        raise NotImplementedError

    async def _note(self, body: Body) -> Reply:
        async with self._changed:
            self.requests.append(body)
            self._changed.notify_all()
        return self._script.popleft() if self._script else Reply()

    async def _wait(self, event: asyncio.Event | None) -> None:
        if event is None:
            return
        async with self._changed:
            self.hangs += 1
            self._changed.notify_all()
        await event.wait()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            self.disconnects += 1
            async with self._changed:
                self._changed.notify_all()
            # aiohttp ends a cancelled handler quietly; a ConnectionError it would log as our failure.
            raise asyncio.CancelledError from None
