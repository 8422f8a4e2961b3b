"""Applies the numbered SQL files in migrations/, each once, each in a transaction of its own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import asyncpg

from aiworker.domain.errors import ConfigurationError, DatabaseUnavailable
from aiworker.queue.connect import Connector
from aiworker.queue.errors import error_of, translated

_CONNECT_TIMEOUT_S = 10.0
_FILE_TIMEOUT_S = 300.0

_PATIENCE = f"set local statement_timeout = {int(_FILE_TIMEOUT_S * 1000)}"
_LOCK = "select pg_advisory_xact_lock(hashtextextended('aiworker.migrate', 0))"
_LEDGER = """
create table if not exists public.aiworker_migrations (
  name text primary key,
  checksum text not null,
  applied_at timestamptz not null default now()
)"""
_LEDGER_EXISTS = "select to_regclass('public.aiworker_migrations') is not null"
_APPLIED = "select name, checksum from public.aiworker_migrations"
_FORGET = "delete from public.aiworker_migrations"
_RECORD = "insert into public.aiworker_migrations (name, checksum) values ($1, $2)"


@dataclass(frozen=True, slots=True)
class Migration:
    """`name` is the file's name; files are applied in the order of their names."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped() -> list[Migration]:
    """The migrations of this release, in order."""
    folder = files("aiworker.queue") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    # Universal newlines: a checkout with CRLF must have the same checksum.
    return [Migration(name, (folder / name).read_text("utf-8")) for name in names]


async def migrate(database_url: str) -> list[str]:
    """Applies what is pending and returns the names, in order. Several may run at the same time.

    Raises ConfigurationError when an applied file has changed or the database cannot be used, DatabaseUnavailable.
    """
    return await apply(database_url, shipped())


async def pending(database_url: str) -> list[str]:
    """The names that `migrate` would apply. Changes nothing; raises as `migrate` does."""
    async with connected(database_url) as connection:
        applied = dict(await connection.fetch(_APPLIED)) if await connection.fetchval(_LEDGER_EXISTS) else {}
        return [migration.name for migration in _missing(shipped(), applied)]


async def apply(database_url: str, migrations: list[Migration]) -> list[str]:
    """`migrate` with the files given."""
    done: list[str] = []
    async with connected(database_url) as connection:
        async with exclusive(connection):
            await connection.execute(_LEDGER)
            missing = _missing(migrations, dict(await connection.fetch(_APPLIED)))
        for migration in missing:
            async with exclusive(connection):
                # Another migrator may have been faster.
                if _missing([migration], dict(await connection.fetch(_APPLIED))):
                    await run(connection, migration)
                    done.append(migration.name)
    return done


async def start_over(connection: Any) -> None:
    """Forgets what was applied, and applies everything, inside the transaction that is open."""
    await connection.execute(_LEDGER)
    await connection.execute(_FORGET)
    for migration in shipped():
        await run(connection, migration)


async def run(connection: Any, migration: Migration) -> None:
    """Applies and records one file. Raises ConfigurationError for a statement that this database refuses."""
    await _apply(connection, migration)
    await connection.execute(_RECORD, migration.name, migration.checksum)


async def _apply(connection: Any, migration: Migration) -> None:
    try:
        await connection.execute(migration.sql)
    except asyncpg.PostgresError as error:
        ours = error_of(error)
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise ConfigurationError(
                f"the database user may not do what {migration.name} does: run `aiworker migrate` once as the owner,"
                " who may create roles, and let gateway and worker use a login that is `in role aiworker`"
            ) from None
        # What a file misses is a table of another shape in the way of ours: to migrate would not help.
        if isinstance(ours, DatabaseUnavailable | ConfigurationError) and not isinstance(
            error, asyncpg.SyntaxOrAccessError
        ):
            raise ours from None
        reason = f"{type(error).__name__}, SQLSTATE {error.sqlstate}"
        raise ConfigurationError(f"{migration.name} was refused ({reason}): run it with psql to see why") from None


def _missing(migrations: list[Migration], applied: dict[str, str]) -> list[Migration]:
    changed = [m.name for m in migrations if applied.get(m.name, m.checksum) != m.checksum]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)} changed after it was applied: restore the file and put the change into a new one"
        )
    return [m for m in migrations if m.name not in applied]


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[Any]:
    """A connection whose errors come out as ours."""
    connector = Connector(database_url, timeout_s=_CONNECT_TIMEOUT_S, application_name="aiworker migrate")
    with translated():
        connection = await connector(command_timeout=_FILE_TIMEOUT_S)
        try:
            yield connection
        finally:
            await _close(connection)


@asynccontextmanager
async def exclusive(connection: Any) -> AsyncIterator[None]:
    """A transaction in which nobody else migrates."""
    async with connection.transaction():
        await connection.execute(_PATIENCE)
        await connection.execute(_LOCK)
        yield


async def _close(connection: Any) -> None:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await connection.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
