"""The child's end of the line, for speaking."""

from __future__ import annotations

import socket
import threading

from aiworker.inference.messages import Message, encode


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
