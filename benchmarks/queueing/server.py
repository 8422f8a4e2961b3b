"""One PostgreSQL for everybody, with durable settings."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from aiworker.cli.embedded_postgres import EmbeddedPostgres

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "jit": "off",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "autovacuum": "on",
    "max_connections": "200",
}


@contextmanager
def durable_server() -> Iterator[EmbeddedPostgres]:
    """A fresh server that is removed at the end; `start()` gives its URL, `stop()` and `start()` restart it."""
    with tempfile.TemporaryDirectory(prefix="aiworker-bench-") as name:
        directory = Path(name)
        # As root the server runs as another account, which must be able to enter.
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory / "data", outside=directory / "outside")
        try:
            asyncio.run(_configure(server.start()))
            server.stop()
            server.start()
            yield server
        finally:
            server.stop()


async def _configure(url: str) -> None:
    for name, value in SETTINGS.items():
        await _execute(url, f"alter system set {name} = '{value}'")


@asynccontextmanager
async def database(server: str, name: str) -> AsyncIterator[str]:
    """URL of an empty database, dropped at the end."""
    # A connection for each statement: the server may be restarted in between.
    await _execute(server, f"drop database if exists {name} with (force)")
    await _execute(server, f"create database {name} template template0")
    yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    await _execute(server, f"drop database if exists {name} with (force)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
