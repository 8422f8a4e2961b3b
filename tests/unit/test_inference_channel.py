from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.inference.lanes.channel import Channel
from aiworker.inference.messages import BatchDone, Message, Ping, Progress, decode, encode

_SAID = [Progress(), BatchDone(1, 0.5, 100.0), Ping(3), Progress()]
_BYTES = b"".join(part for message in _SAID for part in encode(message))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(_BYTES)), max_size=8))
def test_messages_arrive_whole_however_the_bytes_are_cut(cuts: list[int]) -> None:
    async def run() -> None:
        heard: list[Message] = []
        channel = Channel(heard.extend)
        edges = [0, *sorted(cuts), len(_BYTES)]
        for start, end in itertools.pairwise(edges):
            channel.data_received(_BYTES[start:end])
        assert heard == _SAID

    asyncio.run(run())


async def _connected(heard: list[Message]) -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: Channel(heard.extend), sock=ours)
    return channel, theirs


async def test_nonsense_closes_the_line_and_says_why() -> None:
    channel, theirs = await _connected([])
    with theirs:
        theirs.sendall(b"\x00\x00\x00\x05garbage")
        assert (await channel.closed).startswith("spoke nonsense")
        channel.send(Progress())


async def test_the_end_of_the_other_side_is_told() -> None:
    heard: list[Message] = []
    channel, theirs = await _connected(heard)
    theirs.sendall(_BYTES)
    theirs.close()
    assert await channel.closed == ""
    assert heard == _SAID


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_is_sent_arrives(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        channel, theirs = await _connected([])
        with theirs:
            channel.send(Ping(9))
            data = await asyncio.to_thread(theirs.recv, 1000)
            assert decode(data[4:]) == Ping(9)
            channel.close()
            await channel.closed

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
