"""Every seam between deciding and doing. Gateway, scheduler and analyses know these and no adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.job import ClaimedJob, Enqueued, JobView, Lease, NewJob, QueueDepth, Renewal
from aiworker.domain.outcome import Outcome


class JobIntake(Protocol):
    """The gateway's side of the queue. Every method raises DatabaseUnavailable when the database does not answer."""

    async def enqueue(self, job: NewJob) -> Enqueued:
        """Raises TooManyActiveJobs, IdempotencyConflict, UnknownJobType, InputRejected."""
        ...

    async def status(self, job_id: UUID, user_id: UUID | None) -> JobView:
        """`user_id` None is the service and sees all. Raises JobNotFound, also for another user's job."""
        ...

    async def cancel(self, job_id: UUID, user_id: UUID | None) -> JobView:
        """It ends at once, and its worker stops. Raises JobNotFound, JobAlreadyFinished."""
        ...

    async def depth(self) -> QueueDepth: ...


class JobSource(Protocol):
    """The scheduler's side of the queue. Every method raises DatabaseUnavailable when the database does not answer."""

    async def claim(
        self, worker_id: str, limit: int, lease_s: float, types: Collection[str], suspects: bool = True
    ) -> list[ClaimedJob]:
        """One suspect (`apart`) where there is one and `suspects` lets it, else the most urgent of the others. The
        attempt is counted here."""
        ...

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Renewal: ...

    async def report(self, progress: Mapping[Lease, tuple[int, str]]) -> None:
        """Progress (0..100) and stage of running jobs, written only where the lease still holds."""
        ...

    async def finalise(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        """Writes each outcome where its lease still holds and returns the ids where it was gone."""
        ...

    async def rescue(self) -> int:
        """Puts jobs whose lease ran out back, or ends them when their attempts are used up; how many."""
        ...

    async def prune(self, keep_s: float, limit: int) -> int:
        """Removes at most `limit` jobs that ended longer than `keep_s` ago, and cache entries; how many in all."""
        ...

    async def depth(self) -> QueueDepth: ...


class WakeUps(Protocol):
    """Hints that there may be work or a cancel. Hints may be lost or spurious: the holder polls as well."""

    def listen(self) -> AsyncGenerator[str, None]:
        """Yields "work" or "cancel" until it is closed; reconnects by itself."""
        ...


class Detector(Protocol):
    async def detect(self, image: bytes, deadline: Deadline, model: str = "") -> Detections:
        """`image` is an encoded picture; `model` is one of those that the operator named beside the main one.

        Raises ImageUnreadable, MediaTooLarge, ImageKillsChild, DetectorUnknown, InferenceUnavailable, DeadlineExceeded.
        """
        ...


class TextModel(Protocol):
    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """Raises a ProviderError; NoProvider when nobody could be asked."""
        ...


class ImageSource(Protocol):
    async def fetch(self, url: str, deadline: Deadline) -> bytes:
        """The bytes of an http, https or data URL, checked to be a picture within the limits.

        Raises MediaUrlInvalid, MediaAddressForbidden, MediaTooLarge, MediaTypeUnsupported, MediaNotFound,
        ImageUnreadable, MediaUnavailable.
        """
        ...
