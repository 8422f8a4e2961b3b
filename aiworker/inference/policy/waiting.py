"""The line of requests that wait for a lane, most urgent first, and what is held against each. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace

from aiworker.inference.policy.choice import Waiting
from aiworker.inference.policy.supervision import Verdict, judge

_REST_S, _LONGEST_REST_S = 0.25, 5.0


class Line:
    """A request is known from `enter` to `forget`; meanwhile it waits or a lane has it."""

    def __init__(self) -> None:
        self._order: list[Waiting] = []
        self._known: dict[int, Waiting] = {}
        self._deaths: dict[int, int] = {}
        self._rests: dict[int, int] = {}
        self._resting_until: dict[int, float] = {}

    def __len__(self) -> int:
        """Requests that no lane has."""
        return len(self._order) + len(self._resting_until)

    @property
    def waiting(self) -> Sequence[Waiting]:
        """In order of (deadline, id), those that rest left out."""
        return self._order

    def moments(self) -> list[float]:
        """When somebody's deadline comes, or its rest ends; not all of them, but the earliest."""
        deadlines = [self._known[item].deadline_at for item in self._resting_until]
        return [*(each.deadline_at for each in self._order[:1]), *deadlines, *self._resting_until.values()]

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

    def rest(self, item: int, now: float) -> None:
        """No lane has it: it found no memory even alone. It lets others go first, longer each time, since it may be the
        one that needs more than there is."""
        if item in self._known:
            rests = self._rests[item] = self._rests.get(item, 0) + 1
            self._resting_until[item] = now + min(_LONGEST_REST_S, _REST_S * 2 ** (rests - 1))

    def wake(self, now: float) -> None:
        """Those that have rested wait again."""
        for item in [item for item, until in self._resting_until.items() if until <= now]:
            del self._resting_until[item]
            self.put_back(item)

    def forget(self, item: int) -> bool:
        """Answered or given up. True when it was known and no lane had it."""
        self._deaths.pop(item, None)
        self._rests.pop(item, None)
        request = self._known.pop(item, None)
        rested = self._resting_until.pop(item, None) is not None
        return request is not None and (rested or self._drop(request))

    def late(self, now: float) -> list[int]:
        """Those whose deadline has come."""
        late = [item for item in self._resting_until if self._known[item].deadline_at <= now]
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
