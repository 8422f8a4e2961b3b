"""One child process from spawn to reaping: environment, socket, frames in and out. Never blocks the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

from aiworker.inference.messages import (
    PREFIX_BYTES,
    ChildSpec,
    FrameInvalid,
    Message,
    Stop,
    decode,
    encode,
    frame_length,
)

_KEEP = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV"})
_KEEP_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "PYTORCH_", "YOLO_", "MALLOC_")


class ChildGone(Exception):
    """The child died, stopped making progress, or spoke nonsense; the text says which, without content."""


class ChildProcess:
    """Made by `spawn`; ended by exactly one of `stop` and `kill`, after which nothing of it is left."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.exited = asyncio.ensure_future(process.wait())

    @classmethod
    async def spawn(cls, spec: ChildSpec) -> ChildProcess:
        """Starts an interpreter that shares no memory and no wiring with this one, and sends it `spec`."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "aiworker.inference.child", str(theirs.fileno()), str(os.getpid())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=child_environment(os.environ, spec.threads),
                    start_new_session=True,
                )
            except BaseException:
                writer.close()
                raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, message: Message, timeout_s: float) -> None:
        """Raises ChildGone."""
        try:
            async with asyncio.timeout(timeout_s):
                for part in encode(message):
                    self._writer.write(part)
                await self._writer.drain()
        except TimeoutError:
            raise ChildGone(f"took nothing in for {timeout_s:g} s") from None
        except OSError:
            raise ChildGone(await self._epitaph()) from None

    async def receive(self, timeout_s: float) -> Message:
        """Raises ChildGone, also when nothing comes for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                length = frame_length(await self._reader.readexactly(PREFIX_BYTES))
                return decode(await self._reader.readexactly(length))
        except TimeoutError:
            raise ChildGone(f"no progress for {timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, OSError):
            raise ChildGone(await self._epitaph()) from None
        except FrameInvalid as error:
            raise ChildGone(f"spoke nonsense: {error}") from None

    async def stop(self, grace_s: float) -> None:
        """Asks, waits for `grace_s`, then kills."""
        try:
            await self.send(Stop(), grace_s)
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self.exited)
        except (ChildGone, TimeoutError):
            pass  # the kill below is what such a child gets
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Returns when the process is reaped and the line closed."""
        if not self.exited.done():
            # ProcessLookupError: it ended by itself a moment ago.
            with suppress(ProcessLookupError):
                self._process.kill()
        self._writer.close()
        await asyncio.shield(self.exited)
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _epitaph(self) -> str:
        """How it died. A child that closed its socket ends right after, and if not, it is as good as dead."""
        try:
            async with asyncio.timeout(1.0):
                code = await asyncio.shield(self.exited)
        except TimeoutError:
            return "closed its line"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def child_environment(parent: Mapping[str, str], threads: int) -> dict[str, str]:
    """What a child sees: no secret of the parent's, the parent's import path, and libraries told to behave.

    Waiting OpenMP threads sleep instead of spinning: beside another busy process, spinning cost a factor of 30. All of
    it has to be in place before torch is loaded.
    """
    kept = {name: value for name, value in parent.items() if name in _KEEP or name.startswith(_KEEP_PREFIXES)}
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MALLOC_ARENA_MAX": "2", "YOLO_OFFLINE": "true"}
    return {
        **defaults,
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "YOLO_VERBOSE": "false",
        "YOLO_AUTOINSTALL": "false",
        # A checkpoint is a pickle; this way it can build model classes and run nothing.
        "ULTRALYTICS_SAFE_LOAD": "true",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
    }
