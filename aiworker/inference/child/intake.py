"""The child's second thread: it takes batches off the line and decodes them while the model runs on earlier ones.

For a card it has help, since one thread decodes hundreds of pictures a second and the card takes thousands: from the
card's own JPEG unit, where it has one, and from more threads. What comes out is in the parent's order. Little is
decoded ahead, since a prepared picture is a megabyte and a batch that the parent would rather give to another child
should still be in its hands.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from aiworker.inference.child.decode import decode, plain_jpeg
from aiworker.inference.interface import Engine, Prepared, Reader
from aiworker.inference.messages import ChildSpec, DetectBatch, Message, Progress

_AHEAD = 4
_SAY_EVERY_S = 0.1
Say = Callable[[Message], None]
Fail = Callable[[int, Exception], None]


@dataclass(frozen=True, slots=True)
class Pass:
    """Pictures of one shape, by item: what goes through the model together."""

    group: list[tuple[int, Prepared]]


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """All passes of the batch came before. `begun` is on the monotonic clock."""

    batch: int
    begun: float
    decode_s: float


Step = Pass | BatchEnd | Message


def steps_of(
    engine: Engine, spec: ChildSpec, batch: DetectBatch, say: Say, fail: Fail, helpers: Executor | None = None
) -> Iterator[Step]:
    """The batch's passes, each as soon as it is full, and its end. Pictures that cannot be read are told to `fail`."""

    def prepared_in(image: bytes) -> tuple[Prepared | Exception, float]:
        started = time.monotonic()
        try:
            result: Prepared | Exception = engine.prepare(decode(image, spec.max_pixels))
        except Exception as error:  # noqa: BLE001
            # Boundary: what goes wrong with one picture is that picture's answer and nobody else's.
            result = error
        return result, time.monotonic() - started

    begun = said_at = time.monotonic()
    read = _read_by(engine.reader, batch, spec.max_pixels)
    decode_s = time.monotonic() - begun
    left = [image for item, image in zip(batch.items, batch.images, strict=True) if item not in read]
    groups: defaultdict[tuple[int, ...], list[tuple[int, Prepared]]] = defaultdict(list)
    each = helpers.map if helpers else map
    decoded = iter(each(prepared_in, left))
    for item in batch.items:
        prepared, seconds = (read[item], 0.0) if item in read else next(decoded)
        # Of all threads together: where several decode, the parent sends the next batch early rather than late, since
        # its bytes are on their way for as long as the decoding takes.
        decode_s += seconds
        if isinstance(prepared, Exception):
            fail(item, prepared)
            continue
        if time.monotonic() - said_at >= _SAY_EVERY_S:
            said_at = time.monotonic()
            say(Progress())
        group = groups[prepared.pixels.shape]
        group.append((item, prepared))
        if len(group) >= engine.pass_size:
            yield Pass(groups.pop(prepared.pixels.shape))
    yield from (Pass(group) for group in groups.values())
    yield BatchEnd(batch.batch, begun, decode_s)


def _read_by(reader: Reader | None, batch: DetectBatch, max_pixels: int) -> dict[int, Prepared]:
    """What the device decodes itself, by item."""
    if reader is None:
        return {}
    found = {item: plain_jpeg(image, max_pixels) for item, image in zip(batch.items, batch.images, strict=True)}
    jpegs = {item: jpeg for item, jpeg in found.items() if jpeg}
    prepared = zip(jpegs, reader.read(list(jpegs.values())), strict=True)
    return {item: each for item, each in prepared if each}


class Intake:
    """`steps()` gives what `receive` brings, decoded; it raises what `receive` raised, in its turn."""

    def __init__(self, receive: Callable[[], Message], engine: Engine, spec: ChildSpec, say: Say, fail: Fail) -> None:
        self._receive = receive
        self._engine = engine
        self._spec = spec
        self._say = say
        self._fail = fail
        self._helpers = ThreadPoolExecutor(spec.decoders, "decode") if spec.decoders > 1 else None
        self._steps: queue.Queue[Step | Exception] = queue.Queue(maxsize=_AHEAD)

    def steps(self) -> Iterator[Step]:
        """Endless. The thread ends with the process."""
        threading.Thread(target=self._run, name="intake", daemon=True).start()
        while True:
            step = self._steps.get()
            if isinstance(step, Exception):
                raise step
            yield step

    def comes(self, within_s: float = 0.0) -> bool:
        """The next step is there, or will be within so many seconds."""
        with self._steps.not_empty:
            return bool(self._steps.not_empty.wait_for(lambda: self._steps.queue, within_s))

    def _run(self) -> None:
        try:
            while True:
                message = self._receive()
                if isinstance(message, DetectBatch):
                    for step in steps_of(self._engine, self._spec, message, self._say, self._fail, self._helpers):
                        self._steps.put(step)
                else:
                    self._steps.put(message)
        except Exception as error:  # noqa: BLE001
            # Boundary: the serving thread decides what the end of the line, or nonsense on it, means.
            self._steps.put(error)
