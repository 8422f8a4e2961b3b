"""Rows to values and outcomes to records. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aiworker.domain.errors import WorkerError
from aiworker.domain.job import ClaimedJob, Enqueued, JobStatus, JobView, Lease, QueueDepth
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Cancelled, Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.json_codec import storable

Row = Mapping[str, Any]


def claimed_job(row: Row) -> ClaimedJob:
    """A row of `claim_analyses`."""
    return ClaimedJob(
        lease=Lease(row["id"], row["lease_token"]),
        user_id=row["user_id"],
        type=row["type"],
        input=row["input"],
        attempt=row["attempts"],
        max_attempts=row["max_attempts"],
        deadline_in_s=row["deadline_in_s"],
        waited_s=row["waited_s"],
        cache_key=row["cache_key"],
    )


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
        oldest_pending_s=max((row["oldest_pending_s"] for row in rows), default=0.0),
        by_type={row["type"]: row["pending"] + row["processing"] + row["delayed"] for row in rows},
    )


def outcome_record(lease: Lease, outcome: Outcome) -> dict[str, Any]:
    """What `finalise_analyses` wants. A result that JSON cannot hold fails its own job, not the whole batch."""
    record: dict[str, Any] = {"id": str(lease.job_id), "token": str(lease.token), "kind": _KINDS[type(outcome)]}
    match outcome:
        case Completed(result, cache_ttl_s):
            try:
                record |= {"result": orjson.Fragment(storable(result)), "cache_ttl_s": cache_ttl_s}
            except TypeError:
                code = WorkerError.code
                return outcome_record(lease, Failed(sentence(code), code))
        case Retry(delay_s, error, error_code):
            record |= {"delay_s": delay_s, "error": error, "error_code": error_code}
        case Failed(error, error_code):
            record |= {"error": error, "error_code": error_code}
        case Cancelled() | Interrupted():
            pass
    return record


_KINDS: dict[type[Outcome], str] = {
    Completed: "completed",
    Retry: "retry",
    Failed: "failed",
    Cancelled: "cancelled",
    Interrupted: "interrupted",
}
