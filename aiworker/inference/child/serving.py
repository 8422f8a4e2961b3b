"""One inference process: `python -m aiworker.inference.child.serving FD PARENT_PID`.

It receives a ChildSpec, loads and warms up the engine, says Ready, and then answers batches until it is told to stop or
its parent is gone. The model runs in the main thread, and `intake` decodes beside it. Everything comes in over one
socket; nothing of the parent's wiring is imported here.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from aiworker.domain.errors import InferenceOutOfMemory, InferenceUnavailable, WorkerError
from aiworker.inference.child.intake import BatchEnd, Intake, Pass, Say
from aiworker.inference.interface import Box, Engine, Prepared
from aiworker.inference.kernel import die_with
from aiworker.inference.messages import (
    PREFIX_BYTES,
    BatchDone,
    ChildSpec,
    FrameInvalid,
    ItemDetected,
    ItemFailed,
    Message,
    OutOfMemory,
    Ping,
    Pong,
    Progress,
    Ready,
    StartFailed,
    Stop,
    encode,
    frame_length,
)
from aiworker.inference.messages import decode as decode_message


def main(arguments: list[str]) -> int:
    """Exit codes: 0 told to stop or parent gone, 1 could not start, 2 the parent does not speak our protocol."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal's Ctrl-C or a group's SIGTERM reaches children too; the parent drains them and then says Stop.
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as line:
        try:
            return _serve(line)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0
        except FrameInvalid as error:
            print(f"inference child: {error}", file=sys.stderr)  # noqa: T201
            return 2


def _serve(line: socket.socket) -> int:
    spec = _receive(line)
    if not isinstance(spec, ChildSpec):
        raise FrameInvalid("the first message must be the spec")
    voice = Voice(line)
    say = voice.say
    started = time.monotonic()
    try:
        engine = start_engine(spec)
    except Exception as error:  # noqa: BLE001
        # Boundary: an engine may fail to load in any way, and the parent needs the reason to show it.
        say(StartFailed(f"{type(error).__name__}: {error}"[:500]))
        return 1
    names = engine.names
    load_s = time.monotonic() - started
    say(Ready(engine.label, tuple(names), tuple(names.values()), load_s, rss_mb(), engine.pass_size))

    def fail(item: int, error: Exception) -> None:
        if is_fatal(error):
            raise error
        say(failure(item, error))

    intake = Intake(lambda: _receive(line), engine, spec, say, fail)
    for step in intake.steps():
        match step:
            case Pass(group):
                voice.release()
                answer_pass(engine, group, say, voice.keep)
            case BatchEnd(batch, begun, decode_s):
                say(BatchDone(batch, time.monotonic() - begun, rss_mb(), decode_s))
            case Ping(number):
                say(Pong(number, rss_mb()))
            case Stop():
                return 0
            case _:
                raise FrameInvalid(f"{step.kind} is not for a child")
        if not intake.has_more:
            voice.release()
    return 0


class Voice:
    """What the child says, in order, by any thread. A pass's answers are kept until the batch's end or anything else is
    said, which mostly is the next moment: each time that it is spoken to costs the parent more than what it is told.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._kept = bytearray()
        self._speaking = threading.Lock()

    def say(self, message: Message) -> None:
        self.keep(message)
        self.release()

    def keep(self, message: Message) -> None:
        with self._speaking:
            for part in encode(message):
                self._kept += part

    def release(self) -> None:
        with self._speaking:
            if self._kept:
                self._line.sendall(self._kept)
                self._kept.clear()


def start_engine(spec: ChildSpec) -> Engine:
    """Loaded and warm. Raises anything."""
    module, _, factory = spec.engine.partition(":")
    engine: Engine = getattr(importlib.import_module(module), factory)(spec)
    engine.load()
    engine.warm_up()
    return engine


def answer_pass(engine: Engine, group: list[tuple[int, Prepared]], say: Say, answer: Say) -> None:
    """Exactly one ItemDetected or ItemFailed for each item to `answer`, whatever the others do; what cannot wait for
    them goes to `say`. Raises what is fatal.
    """
    begun = time.monotonic()
    try:
        found = engine.detect([prepared for _, prepared in group])
    except Exception as error:
        # Boundary: a pass can fail for want of memory or for one bad input; halves find out which.
        if is_fatal(error):
            raise
        if is_out_of_memory(error):
            say(OutOfMemory(len(group)))
        if len(group) == 1:
            answer(failure(group[0][0], error))
            return
        say(Progress())
        middle = len(group) // 2
        answer_pass(engine, group[:middle], say, answer)
        answer_pass(engine, group[middle:], say, answer)
        return
    elapsed_ms = (time.monotonic() - begun) * 1000
    for (item, prepared), boxes in zip(group, found, strict=True):
        answer(_result(item, prepared, boxes, elapsed_ms, len(group)))


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


def rss_mb() -> float:
    """Resident memory of this process in MiB, as the kernel counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _receive(line: socket.socket) -> Message:
    return decode_message(_exactly(line, frame_length(_exactly(line, PREFIX_BYTES))))


def _exactly(line: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = line.recv_into(view[filled:])
        if not count:
            raise EOFError
        filled += count
    return bytes(buffer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
