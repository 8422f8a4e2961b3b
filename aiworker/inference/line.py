"""The line of requests that lanes take from. A request stays here, with its bytes, until its answer is back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detection, Detections
from aiworker.domain.errors import (
    DeadlineExceeded,
    ImageKillsChild,
    ImageUnreadable,
    InferenceOutOfMemory,
    InferenceUnavailable,
    MediaTooLarge,
    WorkerError,
)
from aiworker.inference.batching import Waiting, choose_batch
from aiworker.inference.messages import MAX_IMAGE_BYTES, ItemDetected, ItemFailed, Ready
from aiworker.inference.supervision import Verdict, judge

_ERRORS: dict[str, type[WorkerError]] = {
    error.code: error for error in (ImageUnreadable, MediaTooLarge, InferenceOutOfMemory)
}


@dataclass(slots=True, eq=False)
class Request:
    """One picture until its answer is back. `deaths` counts the children that died with it in them."""

    id: int
    image: bytes
    deadline: Deadline
    answer: asyncio.Future[Detections]
    deaths: int = 0
    alone: bool = False

    def reject(self, error: WorkerError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class RequestLine:
    """Nothing here waits but `ask`. `on_work` is called whenever there is something to take."""

    def __init__(self, model: str, max_batch: int, on_work: Callable[[], None]) -> None:
        self._model = model
        self._max_batch = max_batch
        self._on_work = on_work
        self._ids = itertools.count(1)
        self._open: set[Request] = set()
        self._waiting: dict[int, Request] = {}

    def __len__(self) -> int:
        """Requests that no child has."""
        return len(self._waiting)

    async def ask(self, image: bytes, deadline: Deadline) -> Detections:
        """Waits in line and for the answer. Raises what `InferencePool.detect` raises."""
        if len(image) > MAX_IMAGE_BYTES:
            raise MediaTooLarge("picture over the limit of a frame", bytes=len(image), limit_bytes=MAX_IMAGE_BYTES)
        request = Request(next(self._ids), image, deadline, asyncio.get_running_loop().create_future())
        self._open.add(request)
        self._enqueue(request)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await request.answer
        except TimeoutError:
            raise DeadlineExceeded("no detection in time") from None
        finally:
            self._open.discard(request)
            self._waiting.pop(request.id, None)

    def take(self, idle_lanes: int) -> Sequence[Request]:
        """What an idle lane should run now; they are its own until it answers them or gives them back."""
        line = [Waiting(each.id, each.deadline.at, alone=each.alone) for each in self._waiting.values()]
        choice = choose_batch(line, time.monotonic(), self._max_batch, idle_lanes)
        for late in choice.late:
            self._waiting.pop(late).reject(DeadlineExceeded("no child was free in time"))
        return [self._waiting.pop(chosen) for chosen in choice.batch]

    def detected(self, request: Request, result: ItemDetected, ready: Ready) -> None:
        """`ready` is what the child said about itself."""
        if request.answer.done():
            return
        names = dict(zip(ready.class_ids, ready.class_names, strict=True))
        request.answer.set_result(
            Detections(
                tuple(
                    Detection(kind, names.get(kind, str(kind)), confidence, (x1, y1, x2, y2))
                    for kind, confidence, x1, y1, x2, y2 in result.boxes
                ),
                width=result.width,
                height=result.height,
                model=self._model,
                engine=ready.engine,
                batch_size=result.batch_size,
                inference_ms=result.forward_ms,
            )
        )

    def failed(self, request: Request, failure: ItemFailed) -> None:
        request.reject(_ERRORS.get(failure.code, InferenceUnavailable)(failure.note))

    def give_back(self, unanswered: Sequence[Request], *, was_alone: bool) -> None:
        """The child that had these died; `was_alone` when its batch was one picture."""
        for request in unanswered:
            request.deaths += 1
            verdict = judge(request.deaths, was_alone=was_alone)
            if verdict is Verdict.REJECT:
                request.reject(ImageKillsChild(f"{request.deaths} children died with it"))
            elif not request.answer.done():
                request.alone = verdict is Verdict.RETRY_ALONE
                self._enqueue(request)

    def refuse_all(self, reason: str) -> None:
        """Nobody will take these any more, and those that a child has will not come back."""
        self._waiting.clear()
        for request in self._open:
            request.reject(InferenceUnavailable(reason))

    def _enqueue(self, request: Request) -> None:
        self._waiting[request.id] = request
        self._on_work()
