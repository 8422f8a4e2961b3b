"""Databases of their own on a server that is there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg

LOGINS = """
do $$ begin
  if not exists (select from pg_roles where rolname = 'test_authenticator') then
    create role test_authenticator login noinherit password 'x';
    grant anon, authenticated, service_role to test_authenticator;
    create role test_worker login password 'x' in role aiworker;
    create role test_stranger login password 'x';
    create role test_owner login createdb createrole password 'x';
  end if;
end $$
"""


@contextmanager
def cloned_database(server: str, template: str) -> Iterator[str]:
    """URL of a copy of `template`, dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(execute(server, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield with_database(server, name)
    finally:
        asyncio.run(execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    """Over a connection of its own."""
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close()


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def as_login(url: str, login: str) -> str:
    """The same database for one of `LOGINS`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{login}:x@{parts.hostname}:{parts.port}"))
