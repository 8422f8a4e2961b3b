"""A small pool of connections, on which every call is one statement with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import asyncpg

from aiworker.domain.errors import DatabaseUnavailable
from aiworker.queue.errors import translated
from aiworker.queue.json_codec import decode_jsonb, encode_jsonb


def connect_options(timeout_s: float, application_name: str) -> dict[str, Any]:
    """Arguments of asyncpg for every connection of ours.

    The server gives up a little after we do, so that nothing runs on for a client that is gone.
    """
    return {
        "timeout": timeout_s,
        "server_settings": {
            "application_name": application_name,
            "statement_timeout": str(int(timeout_s * 1000) + 500),
            "idle_in_transaction_session_timeout": str(int(timeout_s * 1000) + 500),
            "tcp_keepalives_idle": "15",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "jit": "off",
        },
    }


class Database:
    """Connects at the first call and again after every loss; opening it needs no server.

    Args:
        url: `postgresql://user:password@host:port/name`.
        timeout_s: limit of every call, waiting for a free connection included.
        application_name: shown in `pg_stat_activity`.
    """

    def __init__(self, url: str, *, timeout_s: float, application_name: str, connections: int = 4) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._application_name = application_name
        self._connections = connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def __aenter__(self) -> Self:
        with translated():
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._connections,
                init=_set_up,
                # Calls leave no session state behind, so the round trip of asyncpg's reset is saved.
                reset=_nothing_to_reset,
                **connect_options(self._timeout_s, self._application_name),
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

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of one statement, in one round trip. Raises what `translated` raises."""
        async with self._connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._pool is None:
            raise DatabaseUnavailable("used before it was opened or after it was closed")
        with translated():
            async with asyncio.timeout(self._timeout_s):
                async with self._pool.acquire(timeout=self._timeout_s) as connection:
                    yield connection


async def _set_up(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=encode_jsonb, decoder=decode_jsonb, format="binary"
    )


async def _nothing_to_reset(connection: Any) -> None:
    """asyncpg still drops listeners and open transactions itself."""
