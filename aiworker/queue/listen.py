"""Hints from PostgreSQL's NOTIFY, over one connection of their own that is watched and replaced."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiworker.domain.errors import WorkerError
from aiworker.queue.connect import Connector, Pooler
from aiworker.queue.errors import translated
from aiworker.telemetry.logs import get_logger

CHANNEL = "analysis_jobs"
_EVERY_HINT = ("work", "cancel")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0

_log = get_logger(__name__)


class Listener:
    """`WakeUps`. One per host is enough.

    Each (re)connection yields every hint once, since something may have been missed before it. A connection that is
    silent for `probe_s` seconds has to answer a probe within `timeout_s`, and to be still subscribed, or is replaced.
    """

    def __init__(
        self,
        database_url: str,
        *,
        timeout_s: float = 5.0,
        probe_s: float = 10.0,
        application_name: str = "aiworker listener",
        pooler: Pooler = "auto",
    ) -> None:
        self._connector = Connector(database_url, timeout_s=timeout_s, application_name=application_name, pooler=pooler)
        self._timeout_s = timeout_s
        self._probe_s = probe_s

    async def listen(self) -> AsyncGenerator[str, None]:
        """Hints for as long as it is iterated; a burst comes as one. Wrap it in `contextlib.aclosing`.

        Through a transaction pooler nobody can listen: its first hints are its last, and the holder polls.
        """
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with self._subscription() as subscription:
                    pause = _FIRST_PAUSE_S
                    if await self._connector.through_pooler():
                        break
                    while True:
                        for hint in await subscription.next_hints(self._probe_s, self._timeout_s):
                            yield hint
            except WorkerError as lost:
                _log.warning("listener_lost", code=lost.code, note=lost.note, retry_in_s=pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(_LONGEST_PAUSE_S, pause * 2)
        _log.warning("no_notifications", reason="transaction pooler", do="set DATABASE_URL to a direct connection")
        for hint in _EVERY_HINT:
            yield hint
        await asyncio.Future()

    @asynccontextmanager
    async def _subscription(self) -> AsyncIterator[_Subscription]:
        with translated():
            connection = await self._connector()
        try:
            subscription = _Subscription(connection)
            await subscription.begin(self._timeout_s)
            _log.info("listener_connected")
            yield subscription
        finally:
            # Not close(): a peer that has gone silent would not answer, and nothing is left to be said.
            connection.terminate()


class _Subscription:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._hints: set[str] = set()
        self._stirred = asyncio.Event()

    async def begin(self, timeout_s: float) -> None:
        self._connection.add_termination_listener(lambda _: self._stirred.set())
        with translated():
            async with asyncio.timeout(timeout_s):
                await self._connection.add_listener(CHANNEL, self._notified)
        # Only now: what is enqueued from here on notifies us, what came before is found by following the hint.
        self._hear(*_EVERY_HINT)

    def _notified(self, connection: Any, process: int, channel: str, payload: object) -> None:
        self._hear(*([str(payload)] if payload in _EVERY_HINT else _EVERY_HINT))

    def _hear(self, *hints: str) -> None:
        self._hints.update(hints)
        self._stirred.set()

    async def next_hints(self, probe_s: float, timeout_s: float) -> list[str]:
        """Empty after a probe that was answered. Raises DatabaseUnavailable when the connection is gone."""
        with translated():
            try:
                async with asyncio.timeout(probe_s):
                    await self._stirred.wait()
            except TimeoutError:
                await self._probe(timeout_s)
            # Cleared before the holder looks at the table: a hint that comes meanwhile is yielded next.
            self._stirred.clear()
            if self._connection.is_closed():
                raise ConnectionResetError
        hints, self._hints = sorted(self._hints, reverse=True), set()
        return hints

    async def _probe(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            subscribed = await self._connection.fetchval("select $1 in (select pg_listening_channels())", CHANNEL)
        if not subscribed:
            raise ConnectionResetError
