"""Framed messages over a socket whose other end is a child. Never blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aiworker.inference.messages import PREFIX_BYTES, FrameInvalid, Message, decode, encode, frame_length

OnMessages = Callable[[list[Message]], None]


class Channel(asyncio.Protocol):
    """`on_messages` gets what arrived together; `closed` completes with why nothing more will come, "" for its end."""

    def __init__(self, on_messages: OnMessages) -> None:
        self._on_messages = on_messages
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by isinstance: uvloop's transports have the methods and another base.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if messages := self._whole_messages():
                self._on_messages(messages)
        except FrameInvalid as error:
            self._end(f"spoke nonsense: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("")

    def send(self, message: Message) -> None:
        """Hands the message to the kernel, or keeps it until the child reads. To a closed channel: nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(encode(message))

    def close(self) -> None:
        """What was not read by now is dropped."""
        if self._transport is not None:
            self._transport.abort()

    def _whole_messages(self) -> list[Message]:
        messages, at, buffer = [], 0, self._buffer
        while len(buffer) - at >= PREFIX_BYTES:
            begin = at + PREFIX_BYTES
            end = begin + frame_length(bytes(buffer[at:begin]))
            if end > len(buffer):
                break
            messages.append(decode(bytes(buffer[begin:end])))
            at = end
        del buffer[:at]
        return messages

    def _end(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
