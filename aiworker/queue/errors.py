"""The one place where a database error becomes one of ours. Texts of the server never pass: they may quote a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from aiworker.domain.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    IdempotencyConflict,
    InputRejected,
    InputTooLarge,
    JobAlreadyFinished,
    JobNotFound,
    NotAllowed,
    QueueError,
    TooManyActiveJobs,
    UnknownJobType,
    WorkerError,
)

# Raised by the functions in migrations/.
_OURS: dict[str, type[WorkerError]] = {
    "AW001": TooManyActiveJobs,
    "AW002": IdempotencyConflict,
    "AW003": JobNotFound,
    "AW004": JobAlreadyFinished,
    "AW005": UnknownJobType,
    "AW006": NotAllowed,
    "AW007": InputTooLarge,
}
_ANOTHER_SHAPE = "AW100"

# Connection, read-only after a failover or with a full disk, statement lost in a pooler, transaction rollback,
# insufficient resources, lock not available, operator intervention, system error.
_MAY_WORK_LATER = ("08", "25", "26", "40", "42P05", "53", "55", "57", "58")
_UNREADABLE_VALUE = ("22", "23514", "54")
_NOT_LET_IN = ("28", "3D")
_NOT_MIGRATED = ("42P01", "42883", "42703")
_NOT_GRANTED = "42501"


def error_of(error: Exception) -> WorkerError:
    """Our error for one of asyncpg's or of the socket below it; only the SQLSTATE is kept."""
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return ConfigurationError(
            "DATABASE_URL is not a PostgreSQL address: postgresql://user:password@host:5432/name, with / ? # @ : of "
            "the password as %2F %3F %23 %40 %3A"
        )
    if not isinstance(error, asyncpg.PostgresError):
        return DatabaseUnavailable(type(error).__name__)
    state = error.sqlstate or ""
    note = f"SQLSTATE {state}"
    if state in _OURS:
        return _OURS[state]()
    if state == _ANOTHER_SHAPE:
        return ConfigurationError(
            "the database has a table analysis_jobs or analysis_cache of another shape: see `aiworker adopt --dry-run`"
        )
    if state in _NOT_MIGRATED:
        return ConfigurationError(f"the database lacks tables or functions ({note}): run `aiworker migrate`")
    if state == _NOT_GRANTED:
        return ConfigurationError(f"the database user lacks rights ({note}): run `grant aiworker to <user>`")
    if state.startswith(_NOT_LET_IN):
        return ConfigurationError(f"the database does not let us in ({note}): correct user or name in DATABASE_URL")
    if state.startswith(_UNREADABLE_VALUE):
        return InputRejected(f"the database cannot store a value ({note})")
    if state.startswith(_MAY_WORK_LATER):
        return DatabaseUnavailable(note)
    return QueueError(note)


@contextmanager
def translated() -> Iterator[None]:
    """Within, every error of the database or its socket comes out as one of ours, without its text."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise error_of(error) from None
