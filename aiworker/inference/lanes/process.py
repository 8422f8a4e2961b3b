"""One child as a process: spawned, never forked; messages in and out; an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiworker.inference.lanes.channel import Channel, OnMessages
from aiworker.inference.messages import ChildSpec, Message, Stop

_CHILD = "aiworker.inference.child.serving"
_KEEP = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV"})
_KEEP_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "PYTORCH_", "YOLO_", "MALLOC_")
_EXIT_AFTER_CLOSE_S = 1.0


class ChildProcess:
    """Made by `spawn`; ended by exactly one of `stop` and `kill`, after which nothing of it is left.

    `gone` completes with how it died, once it is dead or as good as dead; the text holds no content.
    """

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process = process
        self._channel = channel
        self._exited = asyncio.ensure_future(process.wait())
        self.gone = asyncio.ensure_future(self._epitaph())

    @classmethod
    async def spawn(cls, spec: ChildSpec, on_messages: OnMessages) -> ChildProcess:
        """Starts an interpreter that shares no memory and no wiring with this one. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            loop = asyncio.get_running_loop()
            _, channel = await loop.create_unix_connection(lambda: Channel(on_messages), sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", _CHILD, str(theirs.fileno()), str(os.getpid())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=child_environment(os.environ, spec.threads, spec.decoders),
                    start_new_session=True,
                )
            except BaseException:
                channel.close()
                raise
        channel.send(spec)
        return cls(process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Never waits: what the child does not read yet is kept."""
        self._channel.send(message)

    async def stop(self, grace_s: float) -> None:
        """Asks, waits for `grace_s`, then kills."""
        self.send(Stop())
        try:
            await asyncio.wait([self._exited], timeout=grace_s)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Returns when the process is reaped and the line closed."""
        if not self._exited.done():
            # ProcessLookupError: it ended by itself a moment ago.
            with suppress(ProcessLookupError):
                self._process.kill()
        self._channel.close()
        await asyncio.shield(self._exited)
        await asyncio.shield(self.gone)

    async def _epitaph(self) -> str:
        """What it said last is heard before its death is."""
        either: list[asyncio.Future[Any]] = [self._channel.closed, self._exited]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([self._channel.closed], timeout=_EXIT_AFTER_CLOSE_S)
        if self._channel.closed.done() and (reason := self._channel.closed.result()):
            return reason
        await asyncio.wait([self._exited], timeout=_EXIT_AFTER_CLOSE_S)
        if not self._exited.done():
            return "closed its line"
        code = self._exited.result()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def child_environment(parent: Mapping[str, str], threads: int, decoders: int = 1) -> dict[str, str]:
    """What a child sees: no secret of the parent's, the parent's import path, and libraries told to behave.

    Waiting OpenMP threads sleep instead of spinning: beside another busy process, spinning cost a factor of 30. All of
    it has to be in place before torch is loaded.
    """
    kept = {name: value for name, value in parent.items() if name in _KEEP or name.startswith(_KEEP_PREFIXES)}
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MALLOC_ARENA_MAX": "2", "YOLO_OFFLINE": "true"}
    if decoders > 1:
        # Each picture takes megabytes and gives them back. Threads that get them from the kernel wait for one another
        # there: two decode 1.6 times as many pictures when freed memory is kept.
        defaults |= {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
    # It says on stderr, for each picture that a card does not read, what the child takes from the answer.
    defaults["PYNVIMGCODEC_VERBOSITY"] = "0"
    # So that CUDA numbers the cards as NVML does, which placement reads.
    defaults["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
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
