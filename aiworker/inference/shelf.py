"""Several models at once within a cap of memory: each has a pool of its own, the one unused longest makes room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import DeadlineExceeded, InferenceOutOfMemory
from aiworker.inference.pool import InferencePool
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, in MiB; `used_at` is when it was last asked for, `busy` while somebody waits for it."""

    name: str
    mb: float
    used_at: float
    busy: bool


def evictions(loaded: Sequence[Loaded], needed_mb: float, cap_mb: float) -> tuple[str, ...] | None:
    """Which to drop so that `needed_mb` more fit, longest unused first; None when dropping all idle ones is not enough.

    Pure. Nothing is dropped in vain, and never one that is busy.
    """
    over_mb = sum(each.mb for each in loaded) + needed_mb - cap_mb
    dropped: list[str] = []
    for each in sorted((each for each in loaded if not each.busy), key=lambda each: each.used_at):
        if over_mb <= 0:
            break
        dropped.append(each.name)
        over_mb -= each.mb
    return tuple(dropped) if over_mb <= 0 else None


class _Place:
    def __init__(self, pool: InferencePool, expected_mb: float) -> None:
        self.pool = pool
        self.expected_mb = expected_mb
        self.used_at = 0.0
        self.users = 0

    @property
    def mb(self) -> float:
        return max(self.expected_mb, self.pool.memory_mb)


class ModelShelf:
    """`make` gives a pool, not started, for a model's name; `expected_mb` is what a pool needs before it is known."""

    def __init__(self, make: Callable[[str], InferencePool], cap_mb: float, expected_mb: float = 450.0) -> None:
        self._make = make
        self._cap_mb = cap_mb
        self._expected_mb = expected_mb
        self._places: dict[str, _Place] = {}
        self._sizes: dict[str, float] = {}
        self._changing = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def loaded(self) -> Sequence[Loaded]:
        """What is in memory or being loaded."""
        return [Loaded(name, place.mb, place.used_at, place.users > 0) for name, place in self._places.items()]

    async def detect(self, model: str, image: bytes, deadline: Deadline) -> Detections:
        """Loads `model` first where it is not in memory, which takes seconds.

        Raises what InferencePool.detect raises, InferenceOutOfMemory for a model over the cap by itself, and
        DeadlineExceeded when all others stay busy for too long.
        """
        async with self._using(model, deadline) as pool:
            return await pool.detect(image, deadline)

    async def stop(self) -> None:
        for place in self._places.values():
            await place.pool.stop()
        self._places.clear()

    @asynccontextmanager
    async def _using(self, model: str, deadline: Deadline) -> AsyncIterator[InferencePool]:
        try:
            async with asyncio.timeout(deadline.remaining()):
                place = self._places.get(model) or await self._load(model)
        except TimeoutError:
            raise DeadlineExceeded(f"no memory was free for {model} in time") from None
        place.users += 1
        place.used_at = time.monotonic()
        try:
            yield place.pool
        finally:
            place.users -= 1
            self._sizes[model] = place.mb
            self._freed.set()

    async def _load(self, model: str) -> _Place:
        """One at a time: two that load together would each believe that there is room."""
        needed_mb = self._sizes.get(model, self._expected_mb)
        if needed_mb > self._cap_mb:
            raise InferenceOutOfMemory(f"{model} needs {needed_mb:.0f} MB and {self._cap_mb:.0f} are allowed")
        async with self._changing:
            if (place := self._places.get(model)) is not None:
                return place
            while (names := evictions(self.loaded, needed_mb, self._cap_mb)) is None:
                self._freed.clear()
                await self._freed.wait()
            for name in names:
                _log.info("model put away", model=name, for_model=model)
                await self._places.pop(name).pool.stop()
            place = _Place(self._make(model), needed_mb)
            place.used_at = time.monotonic()
            await place.pool.start()
            self._places[model] = place
            return place
