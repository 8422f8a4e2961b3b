"""One inference process: `python -m aiworker.inference.child.serving FD PARENT_PID`.

It receives a ChildSpec, loads and warms up the engine, says Ready, and then answers batches until it is told to stop or
its parent is gone. The model runs in the main thread, and `intake` decodes beside it. Everything comes in over one
socket; nothing of the parent's wiring is imported here.
"""

from __future__ import annotations

import importlib
import signal
import socket
import sys
import time

from aiworker.inference.child.intake import BatchEnd, Intake, Pass
from aiworker.inference.child.passes import Passes, failure, is_fatal
from aiworker.inference.child.voice import Voice
from aiworker.inference.interface import Engine
from aiworker.inference.kernel import die_with, rss_mb
from aiworker.inference.messages import (
    PREFIX_BYTES,
    ChildSpec,
    FrameInvalid,
    Message,
    Ping,
    Pong,
    Ready,
    StartFailed,
    Stop,
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
    queues = engine.queue is not None
    say(Ready(engine.label, tuple(names), tuple(names.values()), load_s, rss_mb(), engine.pass_size, queues))

    def fail(item: int, error: Exception) -> None:
        if is_fatal(error):
            raise error
        say(failure(item, error))

    intake = Intake(lambda: _receive(line), engine, spec, say, fail)
    passes = Passes(engine, voice)
    for step in intake.steps():
        match step:
            case Pass() | BatchEnd():
                passes.add(step)
            case Ping(number):
                say(Pong(number, rss_mb()))
            case Stop():
                passes.finish()
                return 0
            case _:
                raise FrameInvalid(f"{step.kind} is not for a child")
        passes.work(intake.comes)
        if not intake.comes():
            voice.release()
    return 0


def start_engine(spec: ChildSpec) -> Engine:
    """Loaded and warm. Raises anything."""
    module, _, factory = spec.engine.partition(":")
    engine: Engine = getattr(importlib.import_module(module), factory)(spec)
    engine.load()
    engine.warm_up()
    return engine


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
