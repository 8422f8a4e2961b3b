"""A small pool of connections, on which every call is one statement with a time limit."""

from __future__ import annotations

import asyncio
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


class Database:
    """Connects at the first call and again after every loss; opening it needs no server.

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
            async with asyncio.timeout(limit_s):
                connection = await pool.acquire()
                try:
                    rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
                    return rows
                finally:
                    await _give_back(pool, connection)
        except TimeoutError:
            # Whatever kept this connection from answering may have silenced the others too.
            await pool.expire_connections()
            raise


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
