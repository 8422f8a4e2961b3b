"""Which of our errors each of the database's becomes."""

from __future__ import annotations

import asyncpg
import pytest

from aiworker.domain.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    IdempotencyConflict,
    InputRejected,
    JobAlreadyFinished,
    JobNotFound,
    NotAllowed,
    QueueError,
    TooManyActiveJobs,
    UnknownJobType,
    WorkerError,
)
from aiworker.queue.errors import error_of, translated


def server_error(state: str) -> asyncpg.PostgresError:
    error = asyncpg.PostgresError("Key (text)=(segredo) already exists")
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (server_error("AW001"), TooManyActiveJobs),
        (server_error("AW002"), IdempotencyConflict),
        (server_error("AW003"), JobNotFound),
        (server_error("AW004"), JobAlreadyFinished),
        (server_error("AW005"), UnknownJobType),
        (server_error("AW006"), NotAllowed),
        (server_error("AW100"), ConfigurationError),
        (server_error("26000"), DatabaseUnavailable),
        (server_error("42P05"), DatabaseUnavailable),
        (server_error("42501"), ConfigurationError),
        (server_error("57P01"), DatabaseUnavailable),
        (server_error("57P03"), DatabaseUnavailable),
        (server_error("57014"), DatabaseUnavailable),
        (server_error("53300"), DatabaseUnavailable),
        (server_error("40P01"), DatabaseUnavailable),
        (server_error("08006"), DatabaseUnavailable),
        (server_error("22P05"), InputRejected),
        (server_error("23514"), InputRejected),
        (server_error("42P01"), ConfigurationError),
        (server_error("42883"), ConfigurationError),
        (server_error("28P01"), ConfigurationError),
        (server_error("3D000"), ConfigurationError),
        (server_error("23505"), QueueError),
        (server_error("XX000"), QueueError),
        (asyncpg.InterfaceError("connection is closed"), DatabaseUnavailable),
        (ConnectionRefusedError(111, "segredo"), DatabaseUnavailable),
        (TimeoutError(), DatabaseUnavailable),
    ],
    ids=lambda value: getattr(value, "sqlstate", None) or getattr(value, "__name__", None) or type(value).__name__,
)
def test_each_error_has_its_own_and_none_quotes_the_server(error: Exception, expected: type[WorkerError]) -> None:
    assert type(error_of(error)) is expected
    with pytest.raises(expected) as raised, translated():
        raise error
    assert "segredo" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_what_is_not_the_databases_passes() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        _ = 1 / 0
