"""The order in which a child queues passes on a card, takes their answers and ends batches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from fakes.fake_engine import FakeEngine, OutOfMemoryError
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.child.intake import BatchEnd, Pass
from aiworker.inference.child.passes import Passes
from aiworker.inference.child.voice import Voice
from aiworker.inference.interface import Box, Prepared
from aiworker.inference.messages import BatchDone, ChildSpec, ItemDetected, ItemFailed, Message, OutOfMemory

_BAD = 13
"""The height of a picture that no pass survives."""


class Heard(Voice):
    """Writes down what is said, and when what was kept is released."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.messages: list[Message] = []

    def keep(self, message: Message) -> None:
        self.messages.append(message)
        if isinstance(message, BatchDone):
            self.events.append(f"done {message.batch}")

    def release(self) -> None:
        self.events.append("released")


@dataclass
class Card(FakeEngine):
    """A queue whose passes are through when `through` says so, `room` pictures large."""

    events: list[str] = field(default_factory=list)
    room: int = 100
    through: int = 0
    begun: int = 0
    open: int = 0
    most_open: int = 0

    def __post_init__(self) -> None:
        super().__init__(ChildSpec("none"))
        self.queue = self  # type: ignore[assignment]

    def begin(self, images: Sequence[Prepared]) -> Answered:
        if len(images) > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        self.begun += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.events.append(f"begin {self.begun}")
        return Answered(self, self.begun, images)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        if len(images) > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        return super().detect(images)


@dataclass
class Answered:
    card: Card
    number: int
    images: Sequence[Prepared]

    def ready(self) -> bool:
        return self.card.through >= self.number

    def take(self) -> list[tuple[Box, ...]]:
        self.card.events.append(f"take {self.number}")
        self.card.open -= 1
        if _BAD in {image.height for image in self.images}:
            raise RuntimeError("no kernel takes this")
        return self.card.detect(self.images)


def _pass(*items: int, height: int = 20) -> Pass:
    return Pass([(item, Prepared(np.zeros((1, 1, 3), np.uint8), item, height)) for item in items])


def _end(batch: int) -> BatchEnd:
    return BatchEnd(batch, 0.0, 0.0)


def _comes(within_s: float) -> bool:
    return True


def test_a_card_gets_its_next_pass_before_the_answer_to_the_last_is_taken() -> None:
    events: list[str] = []
    card = Card(events)
    passes = Passes(card, Heard(events))
    for step in (_pass(1), _end(1), _pass(2), _end(2), _pass(3)):
        passes.add(step)
        passes.work(_comes)
    assert [event for event in events if event != "released"] == [
        "begin 1",
        "begin 2",
        "take 1",
        "done 1",
        "begin 3",
        "take 2",
        "done 2",
    ]
    passes.finish()
    assert events[-1] == "take 3"


def test_what_was_kept_is_released_before_the_wait_for_a_card() -> None:
    events: list[str] = []
    passes = Passes(Card(events), Heard(events))
    for step in (_pass(1), _pass(2), _pass(3)):
        passes.add(step)
        passes.work(_comes)
    assert events == ["begin 1", "begin 2", "released", "take 1", "begin 3", "released", "take 2"]


def test_nor_does_an_answer_wait_for_the_last_pass() -> None:
    events: list[str] = []
    card = Card(events)

    def comes(within_s: float) -> bool:
        events.append("waits")
        card.through = 2
        return False

    passes = Passes(card, Heard(events))
    passes.add(_pass(1))
    passes.work(_comes)
    passes.add(_pass(2))
    passes.work(comes)
    assert events[events.index("take 1") :] == ["take 1", "waits", "released", "released", "take 2"]


def test_without_another_step_an_answer_is_taken_as_soon_as_it_is_there() -> None:
    events: list[str] = []
    card = Card(events)
    waits: list[float] = []

    def comes(within_s: float) -> bool:
        waits.append(within_s)
        card.through = len(waits) // 3
        return False

    passes = Passes(card, Heard(events))
    passes.add(_pass(1))
    passes.work(comes)
    assert [event for event in events if event != "released"] == ["begin 1", "take 1"]
    assert len(waits) == 3
    assert 0 < max(waits) < 0.001, "a card is fast, and so must be who looks at it"


def test_a_card_that_does_not_answer_is_looked_at_less_and_less() -> None:
    """Or its child would look busy for as long as the card hangs."""
    card = Card([])
    waits: list[float] = []

    def comes(within_s: float) -> bool:
        waits.append(within_s)
        card.through = sum(waits) >= 10
        return False

    passes = Passes(card, Heard([]))
    passes.add(_pass(1))
    passes.work(comes)
    assert len(waits) < 200
    assert all(later < 0.001 + 0.06 * sum(waits[:place]) for place, later in enumerate(waits)), "nor is it seen late"


def test_elsewhere_a_pass_is_done_at_once_whatever_comes() -> None:
    events: list[str] = []
    heard = Heard(events)
    passes = Passes(FakeEngine(ChildSpec("none")), heard)
    passes.add(_pass(1, 2))
    passes.work(_comes)
    assert [type(each) for each in heard.messages] == [ItemDetected, ItemDetected]


def test_a_pass_for_which_there_is_no_memory_beside_another_runs_whole_in_its_turn() -> None:
    class Cramped(Card):
        def begin(self, images: Sequence[Prepared]) -> Answered:
            if self.open:
                raise OutOfMemoryError("CUDA out of memory")
            return super().begin(images)

    heard = Heard([])
    passes = Passes(Cramped(heard.events), heard)
    for step in (_pass(1), _end(1), _pass(2, 3), _end(2)):
        passes.add(step)
        passes.work(_comes)
    passes.finish()
    assert [type(each) for each in heard.messages] == [ItemDetected, BatchDone, ItemDetected, ItemDetected, BatchDone]


def test_a_pass_that_finds_no_memory_at_all_is_halved_in_its_turn() -> None:
    heard = Heard([])
    passes = Passes(Card(heard.events, room=1), heard)
    for step in (_pass(1), _pass(2, 3), _pass(4), _end(1)):
        passes.add(step)
        passes.work(_comes)
    passes.finish()
    assert [each.size for each in heard.messages if isinstance(each, OutOfMemory)] == [2]
    assert [each.item for each in heard.messages if isinstance(each, ItemDetected)] == [1, 2, 3, 4]
    assert isinstance(heard.messages[-1], BatchDone)


class Activations:
    """What a pass has on the card while it begins."""


def test_what_a_pass_had_that_did_not_begin_is_gone_before_its_halves_begin_and_its_pictures_after_them() -> None:
    held: list[weakref.ref[Activations]] = []

    class Cramped(Card):
        def begin(self, images: Sequence[Prepared]) -> Answered:
            assert all(each() is None for each in held)
            if len(images) > self.room:
                activations = Activations()
                held.append(weakref.ref(activations))
                raise OutOfMemoryError("CUDA out of memory")
            return super().begin(images)

    group = _pass(1, 2, 3, 4).group
    pixels = [weakref.ref(prepared.pixels) for _, prepared in group]
    passes = Passes(Cramped(room=1), Heard([]))
    gc.disable()
    try:
        passes.add(Pass(group))
        del group
        passes.finish()
        assert len(held) == 3
        assert all(each() is None for each in pixels)
    finally:
        gc.enable()


def test_a_card_that_is_lost_when_a_pass_begins_ends_the_child() -> None:
    class Lost(Card):
        def begin(self, images: Sequence[Prepared]) -> Answered:
            raise type("AcceleratorError", (RuntimeError,), {})("an illegal memory access")

    heard = Heard([])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Passes(Lost(), heard).add(_pass(1))
    assert not heard.messages, "another child will answer"


_BATCHES = st.lists(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([20, 20, _BAD])), max_size=3), max_size=6)


@given(_BATCHES, st.integers(1, 6), st.lists(st.booleans(), max_size=40), st.lists(st.integers(0, 8), max_size=40))
def test_whatever_comes_and_fails_each_item_is_answered_once_and_each_batch_ends_after_its_own(
    batches: list[list[tuple[int, int]]], room: int, coming: list[bool], through: list[int]
) -> None:
    heard = Heard([])
    card = Card(heard.events, room=room)
    passes, looks, paces = Passes(card, heard), iter(coming), iter(through)

    def comes(within_s: float) -> bool:
        card.through = max(card.through, next(paces, card.begun))
        return next(looks, False)

    expected: dict[int, list[int]] = {}
    bad: set[int] = set()
    item = 0
    for number, groups in enumerate(batches):
        expected[number] = []
        for size, height in groups:
            items = list(range(item, item := item + size))
            expected[number] += items
            bad |= set(items) if height == _BAD else set()
            passes.add(_pass(*items, height=height))
            passes.work(comes)
        passes.add(_end(number))
        passes.work(comes)
    passes.finish()
    answered: dict[int, list[int]] = {}
    open_items: list[int] = []
    for message in heard.messages:
        if isinstance(message, ItemDetected | ItemFailed):
            assert isinstance(message, ItemFailed) == (message.item in bad)
            open_items.append(message.item)
        elif isinstance(message, BatchDone):
            answered[message.batch], open_items = open_items, []
    assert answered == expected
    assert not open_items
    assert card.open == 0
    assert card.most_open <= 2, "a card is at one pass, and the next one waits behind it"
