"""How a connection to PostgreSQL is opened: straight, or through a pooler that hands the server on after each
transaction (PgBouncer or Supavisor in transaction mode), which keeps neither settings nor prepared statements."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import asyncpg

Pooler = Literal["auto", "transaction", "none"]

_LOOKS = 6


class Connector:
    """Opens the connections of one process, all in the same way.

    Args:
        url: `postgresql://user:password@host:port/name`.
        timeout_s: limit of connecting; the server gives a statement up a little after that, so that nothing runs on
            for a client that is gone.
        application_name: shown in `pg_stat_activity`.
        pooler: "auto" looks, before the first connection.
    """

    def __init__(self, url: str, *, timeout_s: float, application_name: str, pooler: Pooler = "auto") -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._application_name = application_name
        self._through_pooler = None if pooler == "auto" else pooler == "transaction"
        self._looking = asyncio.Lock()

    async def __call__(self, *_: Any, **options: Any) -> Any:
        """A new connection; `options` go to asyncpg. Raises what asyncpg raises."""
        if await self.through_pooler():
            return await _connected(self._url, **(self._pooled() | options))
        connection = await _connected(self._url, **(self._plain() | options))
        try:
            # Not when it connects: a pooler in session mode refuses these there.
            await connection.execute(_session(self._timeout_s), timeout=self._timeout_s)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def through_pooler(self) -> bool:
        """Whether what belongs to a session is lost between two statements. Raises what asyncpg raises."""
        async with self._looking:
            if self._through_pooler is None:
                self._through_pooler = await self._look()
            return self._through_pooler

    async def _look(self) -> bool:
        """Two connections that are open at the same time have each a server process of their own, and keep it."""
        one = await _connected(self._url, **self._pooled())
        try:
            other = await _connected(self._url, **self._pooled())
            try:
                seen = [{await _server_of(connection) for _ in range(_LOOKS)} for connection in (one, other)]
                return len(seen[0]) > 1 or len(seen[1]) > 1 or seen[0] == seen[1]
            finally:
                other.terminate()
        finally:
            one.terminate()

    def _plain(self) -> dict[str, Any]:
        return {"timeout": self._timeout_s, "server_settings": {"application_name": self._application_name}}

    def _pooled(self) -> dict[str, Any]:
        return self._plain() | {"command_timeout": self._timeout_s, "statement_cache_size": 0}


async def _connected(url: str, **options: Any) -> Any:
    try:
        return await asyncpg.connect(url, **options)
    except asyncpg.ClientConfigurationError:
        raise
    except ValueError:
        # asyncpg trips over / ? or # in a password, and its text would show a piece of it.
        raise asyncpg.ClientConfigurationError("the address cannot be read") from None


def _session(timeout_s: float) -> str:
    limit_ms = int(timeout_s * 1000) + 500
    return (
        f"set statement_timeout = {limit_ms}; set idle_in_transaction_session_timeout = {limit_ms};"
        "set tcp_keepalives_idle = 15; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3; set jit = off;"
        # A database may have another one by default, in which nobody can count what others have enqueued meanwhile.
        "set default_transaction_isolation = 'read committed'"
    )


async def _server_of(connection: Any) -> int:
    server: int = await connection.fetchval("select pg_backend_pid()")
    return server
