"""Several models at once: the main one, whose pool stays, and further ones, which share a cap of memory.

Each has a pool of its own; of the further ones that nobody waits for, the one unused longest makes room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import DeadlineExceeded, DetectorUnknown, InferenceOutOfMemory, WorkerError
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


@dataclass(frozen=True, slots=True)
class Further:
    """Models beside the main one: by which `names` they may be asked for, how `make` gives a pool, not started, for one
    of them, and what they may use together. `expected_mb` is what one needs before that is known. All in MiB.
    """

    names: Collection[str]
    make: Callable[[str], Awaitable[InferencePool]]
    cap_mb: float
    expected_mb: float


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


@dataclass(slots=True)
class _Place:
    pool: InferencePool
    expected_mb: float
    used_at: float = field(default_factory=time.monotonic)
    users: int = 0

    @property
    def mb(self) -> float:
        return self.pool.memory_mb if self.pool.ready else max(self.expected_mb, self.pool.memory_mb)


class ModelShelf:
    """Implements the `Detector` port. Belongs to one event loop."""

    def __init__(self, main: InferencePool, further: Further | None = None) -> None:
        self.main = main
        self._further = further
        self._places: dict[str, _Place] = {}
        self._sizes: dict[str, float] = {}
        self._changing = asyncio.Lock()
        self._freed = asyncio.Event()
        self._warming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the main model's children and returns. Then loads each further model once, so that its export is
        written before anybody waits for it."""
        await self.main.start()
        if self._further is not None:
            self._warming = asyncio.create_task(self._warm(self._further), name="warming further models")

    async def stop(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait([self._warming])
        for place in self._places.values():
            await place.pool.stop()
        self._places.clear()
        await self.main.stop()

    @property
    def loaded(self) -> Sequence[Loaded]:
        """Which further models are in memory or being loaded."""
        return [Loaded(name, place.mb, place.used_at, place.users > 0) for name, place in self._places.items()]

    def models(self) -> list[dict[str, str | float | bool]]:
        """One entry for each further model, for health endpoints; in MiB."""
        now = {each.name: each for each in self.loaded}
        return [
            {
                "name": name,
                "state": self._places[name].pool.state if name in now else "put away",
                "mb": round(now[name].mb if name in now else 0.0, 1),
                "busy": name in now and now[name].busy,
            }
            for name in (self._further.names if self._further else ())
        ]

    def snapshot(self) -> list[dict[str, str | int | float | None]]:
        """As `InferencePool.snapshot`, of all models."""
        return [child for pool in self._pools() for child in pool.snapshot()]

    @property
    def waiting(self) -> int:
        """Requests that no child has yet."""
        return sum(pool.waiting for pool in self._pools())

    async def detect(self, image: bytes, deadline: Deadline, model: str = "") -> Detections:
        """A further `model` that is not in memory is loaded first, which takes seconds.

        Raises what InferencePool.detect raises, DetectorUnknown, WeightsUnavailable, InferenceOutOfMemory for a model
        over the cap by itself, and DeadlineExceeded when all others stay busy for too long.
        """
        if not model:
            return await self.main.detect(image, deadline)
        async with self._using(model, deadline) as pool:
            return await pool.detect(image, deadline)

    async def reload(self, model: str, weights: str) -> None:
        """Takes up another file of weights for `model` ("" is the main one), without losing a request.

        Raises InferenceUnavailable as InferencePool.reload does. A model that was put away takes its file up when it is
        asked for.
        """
        if not model:
            await self.main.reload(weights)
        elif (place := self._places.get(model)) is not None:
            with self._in_use(model, place):
                await place.pool.reload(weights)

    def _pools(self) -> list[InferencePool]:
        return [self.main, *(place.pool for place in self._places.values())]

    @asynccontextmanager
    async def _using(self, model: str, deadline: Deadline) -> AsyncIterator[InferencePool]:
        if self._further is None or model not in self._further.names:
            known = ", ".join(self._further.names) if self._further else "none"
            raise DetectorUnknown(f"YOLO_MORE_MODELS names no such model; it names: {known}")
        try:
            async with asyncio.timeout(deadline.remaining()):
                place = self._places.get(model) or await self._load(model, self._further)
        except TimeoutError:
            raise DeadlineExceeded(f"no memory was free for {model} in time") from None
        with self._in_use(model, place):
            yield place.pool

    @contextmanager
    def _in_use(self, model: str, place: _Place) -> Iterator[None]:
        place.users += 1
        place.used_at = time.monotonic()
        try:
            yield
        finally:
            place.users -= 1
            self._sizes[model] = place.mb
            self._freed.set()

    async def _load(self, model: str, further: Further) -> _Place:
        """One at a time: two that load together would each believe that there is room."""
        needed_mb = self._sizes.get(model, further.expected_mb)
        if needed_mb > further.cap_mb:
            raise InferenceOutOfMemory(f"{model} needs {needed_mb:.0f} MB and {further.cap_mb:.0f} are allowed")
        async with self._changing:
            if (place := self._places.get(model)) is not None:
                return place
            while (names := evictions(self.loaded, needed_mb, further.cap_mb)) is None:
                self._freed.clear()
                await self._freed.wait()
            # All at once, or the last could be asked for while the first stops; and to the end, whoever gives up then.
            gone = [self._places.pop(name) for name in names]
            _log.info("models put away", models=names, for_model=model)
            await asyncio.shield(asyncio.gather(*(place.pool.stop() for place in gone)))
            place = _Place(await further.make(model), needed_mb)
            await place.pool.start()
            self._places[model] = place
            return place

    async def _warm(self, further: Further) -> None:
        """The first named comes last, so that it is among those that stay."""
        try:
            await self.main.wait_ready()
        except WorkerError:
            return
        for model in reversed(list(further.names)):
            try:
                place = self._places.get(model) or await self._load(model, further)
                with self._in_use(model, place):
                    await place.pool.wait_ready()
            except WorkerError as error:
                _log.error("model does not load", model=model, reason=error.note)
