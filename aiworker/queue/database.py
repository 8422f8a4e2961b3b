"""A small pool of connections, on which every call is one statement with a time limit."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import asyncpg

from aiworker.domain.errors import ConfigurationError, DatabaseUnavailable
from aiworker.queue.connect import Connector
from aiworker.queue.errors import translated
from aiworker.queue.json_codec import decode_jsonb, encode_jsonb
from aiworker.telemetry.logs import get_logger

_log = get_logger("aiworker.queue.database")

# A statement that was given up is cancelled in the server too; a connection that has gone silent never says so.
_CANCEL_PATIENCE_S = 1.0

# A connection that nobody used for so long is closed: a router on the way may have forgotten it.
_IDLE_S = 300.0


class Database:
    """Connects at the first call and again after every loss; opening it needs no server.

    Between two calls a connection is kept unless somebody waits for one: asyncpg's pool, which opens, counts and closes
    them, starts a task for each that is given back, and that took a busy worker an eighth of its time.

    Args:
        connector: opens the connections.
        timeout_s: limit of every call, waiting for a free connection included.
        connections: most that are open at the same time.
    """

    def __init__(self, connector: Connector, *, timeout_s: float, connections: int) -> None:
        self._connector = connector
        self._timeout_s = timeout_s
        self._connections = connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        # With the moment of its last call, the one that has waited longest first.
        self._kept: deque[tuple[Any, float]] = deque()
        self._waiting = 0
        self._has_answered = False

    async def __aenter__(self) -> Self:
        with translated():
            self._pool = await asyncpg.create_pool(
                min_size=0,
                max_size=self._connections,
                connect=self._connector,
                init=_set_up,
                # Calls leave no session state behind, so the round trip of asyncpg's reset is saved.
                reset=_nothing_to_reset,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._kept:
                    await _give_back(pool, self._kept.pop()[0])
                await pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()

    async def fetch(self, statement: str, *arguments: Any, within_s: float | None = None) -> list[asyncpg.Record]:
        """The rows of one statement, in one round trip; `within_s` is a limit below that of every call. Raises what
        `translated` raises."""
        limit_s = self._timeout_s if within_s is None else min(within_s, self._timeout_s)
        try:
            with translated():
                rows = await self._fetch(statement, arguments, limit_s)
        except ConfigurationError as error:
            if self._has_answered:
                # It was right before: a password or a migration is on its way, and nobody has to restart for it.
                raise DatabaseUnavailable(error.note) from None
            raise
        self._has_answered = True
        return rows

    async def _fetch(self, statement: str, arguments: tuple[Any, ...], limit_s: float) -> list[asyncpg.Record]:
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable("used before it was opened or after it was closed")
        try:
            # Ours and not asyncpg's own, which leaves out some of what it does, such as closing an outdated statement.
            async with asyncio.timeout(limit_s):
                connection = self._kept_one() or await self._acquired(pool)
                try:
                    rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
                except BaseException:
                    await _give_back(pool, connection)
                    raise
        except TimeoutError:
            # Whatever kept this connection from answering may have silenced the others too.
            self._drop_kept()
            await pool.expire_connections()
            raise
        if self._waiting or self._pool is not pool:
            await _give_back(pool, connection)
        else:
            self._kept.append((connection, time.monotonic()))
        return rows

    def _kept_one(self) -> Any:
        """None where there is none that is open."""
        while self._kept and self._kept[0][1] < time.monotonic() - _IDLE_S:
            _drop(self._kept.popleft()[0])
        while self._kept:
            connection, _ = self._kept.pop()
            if _is_open(connection):
                return connection
            _drop(connection)
        return None

    async def _acquired(self, pool: asyncpg.Pool[asyncpg.Record]) -> Any:
        self._waiting += 1
        try:
            return await pool.acquire()
        finally:
            self._waiting -= 1

    def _drop_kept(self) -> None:
        while self._kept:
            _drop(self._kept.pop()[0])


def _is_open(connection: Any) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # The pool has seen it close and taken it back.
        return False


def _drop(connection: Any) -> None:
    """Closes it without a word to the server, which may be gone; the pool hears of it."""
    try:
        connection.terminate()
    except asyncpg.InterfaceError:
        _log.debug("a connection was gone before it was dropped")


async def _give_back(pool: asyncpg.Pool[asyncpg.Record], connection: Any) -> None:
    try:
        await pool.release(connection, timeout=_CANCEL_PATIENCE_S)
    except TimeoutError:
        _log.debug("a connection that did not answer was closed")


async def _set_up(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=encode_jsonb, decoder=decode_jsonb, format="binary"
    )


async def _nothing_to_reset(connection: Any) -> None:
    """asyncpg still drops listeners and open transactions itself."""
