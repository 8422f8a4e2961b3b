"""What the child's engine has in hand, in the parent's order: each pass, answered, and then its batch's end.

A card has two: while it is at one, the next is queued behind it, so that it never waits for what Python does with an
answer. Elsewhere a pass takes the thread itself, and there is one at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiworker.domain.errors import InferenceOutOfMemory, InferenceUnavailable, WorkerError
from aiworker.inference.child.intake import BatchEnd, Pass
from aiworker.inference.child.voice import Voice
from aiworker.inference.interface import Answer, Box, Engine, Prepared
from aiworker.inference.kernel import rss_mb
from aiworker.inference.messages import BatchDone, ItemDetected, ItemFailed, OutOfMemory, Progress

_LOOK_AGAIN_S, _LOOK_LATER = 0.0003, 1.05
Group = list[tuple[int, Prepared]]
Comes = Callable[[float], bool]
"""Whether another step is there within so many seconds."""


@dataclass(frozen=True, slots=True)
class _Begun:
    group: Group
    answer: Answer
    at: float


class Passes:
    """Exactly one ItemDetected or ItemFailed for each item, whatever the others do. Raises what is fatal."""

    def __init__(self, engine: Engine, voice: Voice) -> None:
        self._engine = engine
        self._voice = voice
        self._line: deque[_Begun | BatchEnd] = deque()
        self._free_at = 0.0

    def add(self, step: Pass | BatchEnd) -> None:
        """A pass begins at once."""
        self._line.append(self._begin(step.group) if isinstance(step, Pass) else step)

    def work(self, comes: Comes) -> None:
        """Answers what can be answered, and leaves the last pass to its device when another step comes meanwhile.

        It looks at the device later each time, by a twentieth of the wait so far: a child that waits for one that hangs
        must be seen to do nothing.
        """
        wait_s = _LOOK_AGAIN_S
        while self._line:
            first = self._line[0]
            if isinstance(first, _Begun) and not self._has_another() and not first.answer.ready():
                if comes(wait_s):
                    return
                self._voice.release()
                wait_s *= _LOOK_LATER
                continue
            self._end(self._line.popleft())

    def finish(self) -> None:
        """Answers everything."""
        while self._line:
            self._end(self._line.popleft())

    def _has_another(self) -> bool:
        return any(isinstance(each, _Begun) for each in list(self._line)[1:])

    def _begin(self, group: Group) -> _Begun:
        at, pictures = time.monotonic(), [prepared for _, prepared in group]
        answer: Answer = _Later(lambda: self._engine.detect(pictures))
        if (queue := self._engine.queue) is not None:
            try:
                answer = queue.begin(pictures)
            except Exception as error:
                # Boundary: as in `_answer`. Once the pass before it is through, there may be memory for all of it.
                if is_fatal(error):
                    raise
        return _Begun(group, answer, at)

    def _end(self, first: _Begun | BatchEnd) -> None:
        if isinstance(first, BatchEnd):
            spent_s = time.monotonic() - first.begun
            self._voice.say(BatchDone(first.batch, spent_s, rss_mb(), first.decode_s))
        else:
            self._voice.release()
            self._answer(first)

    def _answer(self, begun: _Begun) -> None:
        group = begun.group
        try:
            found = begun.answer.take()
        except Exception as error:
            # Boundary: a pass can fail for want of memory or for one bad input; halves find out which.
            if is_fatal(error):
                raise
            if is_out_of_memory(error):
                self._voice.say(OutOfMemory(len(group)))
            if len(group) == 1:
                self._voice.keep(failure(group[0][0], error))
                return
        else:
            now = time.monotonic()
            elapsed_ms = (now - max(begun.at, self._free_at)) * 1000
            self._free_at = now
            for (item, prepared), boxes in zip(group, found, strict=True):
                self._voice.keep(_result(item, prepared, boxes, elapsed_ms, len(group)))
            return
        # Not while the error is handled: what the pass had on the card is gone with it only then.
        self._voice.say(Progress())
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            self._answer(self._begin(half))


@dataclass(frozen=True, slots=True)
class _Later:
    """A pass that is done when its answer is taken."""

    take: Callable[[], list[tuple[Box, ...]]]

    def ready(self) -> bool:
        return True


def _result(item: int, prepared: Prepared, boxes: tuple[Box, ...], elapsed_ms: float, size: int) -> ItemDetected:
    return ItemDetected(item, prepared.width, prepared.height, boxes, elapsed_ms, size)


def failure(item: int, error: Exception) -> ItemFailed:
    """What the parent is told; never any content."""
    if isinstance(error, WorkerError):
        return ItemFailed(item, error.code, error.note)
    if is_out_of_memory(error):
        return ItemFailed(item, InferenceOutOfMemory.code, type(error).__name__)
    return ItemFailed(item, InferenceUnavailable.code, type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Host or device memory ran out; by name, since the class is the engine library's own (torch's, for one)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_fatal(error: Exception) -> bool:
    """The card does nothing more for this process: it ends, and another one does what it had. By name, as above."""
    return type(error).__name__ == "AcceleratorError"
