"""The callers that wait for an answer, each with its picture's bytes, which stay here until the answer is back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

from aiworker.domain.detection import Detection, Detections
from aiworker.domain.errors import (
    ImageUnreadable,
    InferenceOutOfMemory,
    InferenceUnavailable,
    MediaTooLarge,
    WorkerError,
)
from aiworker.inference.messages import ItemDetected, ItemFailed, Ready

_ERRORS: dict[str, type[WorkerError]] = {
    error.code: error for error in (ImageUnreadable, MediaTooLarge, InferenceOutOfMemory)
}


class Requests:
    """By number, from 1. Answers to a number that nobody waits for any more are dropped."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[bytes, asyncio.Future[Detections]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def open(self, image: bytes) -> tuple[int, asyncio.Future[Detections]]:
        """A number and the answer to come."""
        number = next(self._numbers)
        answer: asyncio.Future[Detections] = asyncio.get_running_loop().create_future()
        self._open[number] = (image, answer)
        return number, answer

    def image(self, number: int) -> bytes:
        """Empty when nobody waits for it any more."""
        return self._open[number][0] if number in self._open else b""

    def close(self, number: int) -> None:
        """The caller has its answer or has gone."""
        self._open.pop(number, None)

    def detected(self, result: ItemDetected, ready: Ready, model: str) -> None:
        """`ready` is what the child said about itself."""
        if (entry := self._open.pop(result.item, None)) is None or entry[1].done():
            return
        names = dict(zip(ready.class_ids, ready.class_names, strict=True))
        items = tuple(
            Detection(kind, names.get(kind, str(kind)), confidence, (x1, y1, x2, y2))
            for kind, confidence, x1, y1, x2, y2 in result.boxes
        )
        entry[1].set_result(
            Detections(
                items,
                width=result.width,
                height=result.height,
                model=model,
                engine=ready.engine,
                batch_size=result.batch_size,
                inference_ms=result.forward_ms,
            )
        )

    def failed(self, failure: ItemFailed) -> None:
        self.reject([failure.item], _ERRORS.get(failure.code, InferenceUnavailable), failure.note)

    def reject(self, numbers: Iterable[int], error: type[WorkerError], note: str) -> None:
        for number in numbers:
            if (entry := self._open.pop(number, None)) is not None and not entry[1].done():
                entry[1].set_exception(error(note))

    def reject_all(self, error: type[WorkerError], note: str) -> None:
        self.reject(list(self._open), error, note)
