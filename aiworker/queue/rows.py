"""Rows to values and outcomes to columns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any
from uuid import UUID

import orjson

from aiworker.domain.errors import WorkerError
from aiworker.domain.job import ClaimedJob, Enqueued, JobStatus, JobView, Lease, QueueDepth
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Completed, Failed, Outcome, Retry
from aiworker.queue.json_codec import storable

Row = Mapping[str, Any]

# What a named tuple's own constructor calls.
_new = tuple.__new__
_COMPLETED = "completed"
_NO_RESULT = b"null"


def claimed_jobs(rows: Iterable[Sequence[Any]], token: UUID) -> list[ClaimedJob]:
    """Rows of the claim. The last columns, place and moment, are not of the job; a row without an id holds no job."""
    return [
        _new(
            ClaimedJob,
            (_new(Lease, (job_id, token)), user_id, kind, body, attempt, max_attempts, deadline_in_s, waited_s, apart),
        )
        for job_id, user_id, kind, body, attempt, max_attempts, deadline_in_s, waited_s, apart, _, _ in rows
        if job_id is not None
    ]


def enqueued(row: Row) -> Enqueued:
    """The row of `enqueue_analysis`."""
    return Enqueued(row["job_id"], JobStatus(row["status"]), row["cached_result"])


def job_view(row: Row) -> JobView:
    """A row of `get_analysis_status` or `cancel_analysis`."""
    return JobView(**{**row, "status": JobStatus(row["status"])})


def queue_depth(rows: Sequence[Row]) -> QueueDepth:
    """One row per type."""
    return QueueDepth(
        pending=sum(row["pending"] for row in rows),
        processing=sum(row["processing"] for row in rows),
        delayed=sum(row["delayed"] for row in rows),
        following=sum(row["following"] for row in rows),
        oldest_pending_s=max((row["oldest_pending_s"] for row in rows), default=0.0),
        by_type={row["type"]: unfinished for row in rows if (unfinished := _unfinished(row))},
        paused=tuple(sorted(row["type"] for row in rows if row["paused"])),
    )


def _unfinished(row: Row) -> int:
    total: int = row["pending"] + row["processing"] + row["delayed"] + row["following"]
    return total


def in_lock_order(leases: Iterable[Lease]) -> list[Lease]:
    """By id: every function of the queue locks the rows that it is given in that order, so none waits in a ring."""
    return sorted(leases)


def lease_columns(leases: Sequence[Lease]) -> tuple[str, str]:
    """Ids and tokens, in the order given, as literals of arrays."""
    return array_literal([lease.job_id for lease in leases]), array_literal([lease.token for lease in leases])


def array_literal(ids: Iterable[UUID]) -> str:
    """An array as PostgreSQL writes it. Of a list, asyncpg asks each element what it is, which takes it longer than to
    write one."""
    return f"{{{','.join(map(str, ids))}}}"


def number_literal(numbers: Sequence[float]) -> str:
    """The same of numbers. Not by `str`, which looks for the fewest digits and takes thirty times as long."""
    return f"{{{orjson.dumps(numbers).decode()[1:-1]}}}"


def outcome_columns(outcomes: Iterable[tuple[Lease, Outcome]]) -> tuple[Any, ...]:
    """The arguments of `finalise_analyses`: ids, tokens, kinds, results, cache_ttls_s, delays_s, errors, error_codes.
    Ids and tokens are literals of arrays, results is the JSON of one.

    A column that nobody uses is None, and kinds where all have completed. A result that JSON cannot hold fails its own
    job, not the whole batch.
    """
    # As in_lock_order has them.
    ordered = sorted(outcomes, key=itemgetter(0))
    ids, tokens = lease_columns([lease for lease, _ in ordered])
    kinds, results, *others = zip(*[_outcome_row(outcome) for _, outcome in ordered], strict=True)
    used = (None if column.count(None) == len(column) else column for column in others)
    completed = kinds.count(_COMPLETED)
    return (
        ids,
        tokens,
        None if completed == len(kinds) else kinds,
        b"[%b]" % b",".join(results) if completed else None,
        *used,
    )


def _outcome_row(outcome: Outcome) -> tuple[Any, ...]:
    """kind, result as JSON, cache_ttl_s, delay_s, error, error_code"""
    match outcome:
        # Read by name: a pattern that takes them by place costs every job as much as encoding its result.
        case Completed():
            try:
                return _COMPLETED, storable(outcome.result), outcome.cache_ttl_s, None, None, None
            except TypeError:
                code = WorkerError.code
                return _outcome_row(Failed(sentence(code), code))
        case Retry(delay_s, error, error_code):
            return "retry", _NO_RESULT, None, delay_s, error, error_code
        case Failed(error, error_code):
            return "failed", _NO_RESULT, None, None, error, error_code
        case _:
            return outcome.label, _NO_RESULT, None, None, None, None
