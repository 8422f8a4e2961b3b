"""What the scheduler decides and reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aiworker.inference.policy.choice import Release


class Cause(StrEnum):
    """Why a request was taken out of the line."""

    DEADLINE_PASSED = "deadline_passed"
    CANNOT_MAKE_IT = "cannot_make_it"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send these requests to this lane as one batch."""

    lane: int
    batch: int
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Tell the callers that these cannot be answered in time."""

    items: tuple[int, ...]
    cause: Cause


Action = Dispatch | TakeOut


@dataclass(frozen=True, slots=True)
class BatchReport:
    """`seconds` is how long the batch took the lane up, `expected_s` how long it should have by what was learned.

    `slack_s` is what the most urgent request of it had left at dispatch, by the cautious prediction.
    """

    lane: int
    size: int
    release: Release
    expected_s: float
    seconds: float
    slack_s: float
