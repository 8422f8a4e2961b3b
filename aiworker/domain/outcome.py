"""How an attempt may end, and the one decision that says how it did.

`label` is an outcome's name in the queue, in metrics and in logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aiworker.domain.errors import DeadlineExceeded, WorkerError
from aiworker.domain.job import JsonObject
from aiworker.domain.messages import sentence
from aiworker.domain.retry import RetryPolicy


# Not frozen: that makes each one, and there is one for every job, three times as dear.
@dataclass(slots=True)
class Completed:
    """`result` may be its JSON already; `cache_ttl_s` None keeps it out of the cache (chat, degraded results)."""

    label: ClassVar[str] = "completed"

    result: JsonObject | bytes
    cache_ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Back to pending, due in `delay_s`; the attempt stays counted."""

    label: ClassVar[str] = "retry"

    delay_s: float
    error: str
    error_code: str


@dataclass(frozen=True, slots=True)
class Failed:
    label: ClassVar[str] = "failed"

    error: str
    error_code: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker is shutting down: back to pending at once, the attempt is not counted."""

    label: ClassVar[str] = "interrupted"


Outcome = Completed | Retry | Failed | Interrupted


def outcome_of_error(
    error: BaseException, *, attempt: int, max_attempts: int, policy: RetryPolicy, random: float
) -> Retry | Failed:
    """Retry what may work soon while attempts are left; fail the rest at once.

    An exception that is not ours is a bug in an analysis. It is retried like a transient error, since the next
    release may be the fix, and stored under `internal_error` without its text, which might hold content.
    """
    known = error if isinstance(error, WorkerError) else _as_worker_error(error)
    retryable = known.retryable or known.code == WorkerError.code
    text = sentence(known.code)
    if retryable and attempt < max_attempts and policy.worth_waiting(known.retry_after):
        delay = policy.delay(attempt, random, known.retry_after)
        return Retry(delay_s=delay, error=text, error_code=known.code)
    return Failed(error=text, error_code=known.code)


def _as_worker_error(error: BaseException) -> WorkerError:
    if isinstance(error, TimeoutError):
        return DeadlineExceeded()
    return WorkerError(type(error).__name__)


def degraded(result: JsonObject) -> bool:
    """True for a result that was answered by rule because no model could be asked."""
    flag: Any = result.get("degraded", False)
    return bool(flag)
