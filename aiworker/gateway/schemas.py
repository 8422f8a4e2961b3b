"""Request and reply bodies, as the clients of the old functions know them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from aiworker.domain.job import JobStatus, JobView


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class EnqueueRequest(_Body):
    """`user_id` counts only with the service key; with a user's token it is the token's. `unlimited` is the service's
    way past the limit of active jobs; `delay_seconds` puts the job off, by 30 days at most."""

    type: str = Field(min_length=1, max_length=64)
    input: dict[str, Any]
    priority: int = Field(default=5, ge=1, le=10)
    use_cache: bool = True
    delay_seconds: float = Field(default=0.0, ge=0, le=2_592_000)
    unlimited: bool = False
    user_id: UUID | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)


class JobReference(_Body):
    job_id: UUID


def job_reply(job: JobView, estimate_s: int, error: str | None) -> dict[str, Any]:
    """`get-analysis-status`. `processingTime` in milliseconds, `estimatedDuration` in seconds."""
    reply: dict[str, Any] = {
        "jobId": str(job.id),
        "status": job.status.value,
        "type": job.type,
        "createdAt": _iso(job.created_at),
        "updatedAt": _iso(job.updated_at),
        "estimatedDuration": estimate_s,
        "progress": 100 if job.status is JobStatus.COMPLETED else job.progress,
        "stage": job.stage,
        "attempts": job.attempts,
        "maxAttempts": job.max_attempts,
    }
    if job.started_at:
        reply |= {"startedAt": _iso(job.started_at), "workerId": job.worker_id}
    match job.status:
        case JobStatus.PENDING:
            reply["priority"] = job.priority
        case JobStatus.COMPLETED:
            reply["result"] = job.result
        case JobStatus.FAILED:
            reply |= {"error": error, "code": job.error_code}
        case JobStatus.PROCESSING | JobStatus.CANCELLED:
            pass
    if job.completed_at:
        reply |= {"completedAt": _iso(job.completed_at), "processingTime": job.processing_time_ms}
    return reply


def _iso(moment: datetime) -> str:
    return moment.isoformat()
