"""The line of requests that wait for a lane, most urgent first, and the suspicion against each. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace

from aiworker.inference.policy.choice import Waiting
from aiworker.inference.policy.supervision import Verdict, judge


class Line:
    """A request is known from `enter` to `forget`; meanwhile it waits or a lane has it."""

    def __init__(self) -> None:
        self._order: list[Waiting] = []
        self._known: dict[int, Waiting] = {}
        self._deaths: dict[int, int] = {}

    def __len__(self) -> int:
        """Requests that no lane has."""
        return len(self._order)

    @property
    def waiting(self) -> Sequence[Waiting]:
        """In order of (deadline, id)."""
        return self._order

    def known(self, item: int) -> Waiting | None:
        return self._known.get(item)

    def enter(self, request: Waiting) -> None:
        self._known[request.id] = request
        insort(self._order, request, key=_urgency)

    def take(self, item: int) -> None:
        """A lane has it now."""
        self._drop(self._known[item])

    def put_back(self, item: int) -> None:
        """The lane has it no more. Does nothing when nobody waits for it."""
        if (request := self._known.get(item)) is not None:
            insort(self._order, request, key=_urgency)

    def forget(self, item: int) -> bool:
        """Answered or given up. True when it was known and no lane had it."""
        self._deaths.pop(item, None)
        request = self._known.pop(item, None)
        return request is not None and self._drop(request)

    def late(self, now: float) -> list[int]:
        """Those whose deadline has come."""
        late = []
        for request in self._order:
            if request.deadline_at > now:
                break
            late.append(request.id)
        return late

    def suspect(self, item: int, *, was_alone: bool) -> Verdict | None:
        """A child died with it in work. None when nobody waits for it."""
        request = self._known.get(item)
        if request is None:
            return None
        self._deaths[item] = deaths = self._deaths.get(item, 0) + 1
        verdict = judge(deaths, was_alone=was_alone)
        if verdict is Verdict.RETRY_ALONE:
            self._known[item] = replace(request, alone=True)
        return verdict

    def _drop(self, request: Waiting) -> bool:
        at = bisect_left(self._order, _urgency(request), key=_urgency)
        if at < len(self._order) and self._order[at].id == request.id:
            del self._order[at]
            return True
        return False


def _urgency(request: Waiting) -> tuple[float, int]:
    return request.deadline_at, request.id
