from __future__ import annotations

import io
import itertools
import queue
import socket
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from fakes.fake_engine import PASS_FAILS, FakeEngine, picture
from PIL import Image

from aiworker.inference.child import intake, serving
from aiworker.inference.child.intake import BatchEnd, Intake, Pass, steps_of
from aiworker.inference.child.passes import Passes, failure
from aiworker.inference.child.voice import Voice
from aiworker.inference.interface import Box, Jpeg, Picture, Prepared
from aiworker.inference.messages import (
    BatchDone,
    ChildSpec,
    DetectBatch,
    ItemDetected,
    ItemFailed,
    Message,
    OutOfMemory,
    Ping,
    Pong,
    Progress,
    Ready,
    Stop,
    encode,
)

_SPEC = ChildSpec(weights="none", max_pixels=10_000)


class RecordingEngine(FakeEngine):
    """Keeps each picture's own shape and writes down what went through together."""

    def __init__(self) -> None:
        super().__init__(_SPEC)
        self.passes: list[list[tuple[int, int]]] = []

    def prepare(self, picture: Picture) -> Prepared:
        return Prepared(picture.pixels, picture.width, picture.height)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        self.passes.append([(image.height, image.width) for image in images])
        return super().detect(images)


class Heard(Voice):
    """Keeps in `said` what is said, and what is kept for later too."""

    def __init__(self, said: list[Message]) -> None:
        self._said = said

    def keep(self, message: Message) -> None:
        self._said.append(message)

    def release(self) -> None:
        pass


def _answer(engine: FakeEngine, batch: DetectBatch, said: list[Message]) -> None:
    def fail(item: int, error: Exception) -> None:
        said.append(failure(item, error))

    *passes, end = steps_of(engine, _SPEC, batch, said.append, fail)
    assert isinstance(end, BatchEnd)
    line = Passes(engine, Heard(said))
    for each in passes:
        assert isinstance(each, Pass)
        line.add(each)
        line.work(lambda within_s: False)


def _answers(engine: FakeEngine, *images: bytes) -> dict[int, ItemDetected | ItemFailed]:
    said: list[Message] = []
    _answer(engine, DetectBatch(1, tuple(range(len(images))), images), said)
    answers = [each for each in said if not isinstance(each, Progress | OutOfMemory)]
    assert all(isinstance(each, ItemDetected | ItemFailed) for each in answers)
    by_item = {each.item: each for each in answers}  # type: ignore[union-attr]
    assert len(by_item) == len(answers) == len(images), "one answer for each picture"
    return by_item  # type: ignore[return-value]


def _code(answer: ItemDetected | ItemFailed) -> str:
    return answer.code if isinstance(answer, ItemFailed) else "detected"


def test_only_pictures_of_one_shape_go_together() -> None:
    engine = RecordingEngine()
    answers = _answers(engine, picture(20), picture(40), picture(20), picture(40), picture(10))
    assert engine.passes == [[(20, 30)] * 2, [(40, 30)] * 2, [(10, 30)]]
    assert [answers[item].height for item in range(5)] == [20, 40, 20, 40, 10]  # type: ignore[union-attr]
    assert [answers[item].batch_size for item in range(5)] == [2, 2, 2, 2, 1]  # type: ignore[union-attr]


def test_a_pass_is_no_larger_than_the_engine_gains_from() -> None:
    engine = RecordingEngine()
    engine.pass_size = 2
    answers = _answers(engine, *[picture()] * 5)
    assert [len(each) for each in engine.passes] == [2, 2, 1]
    assert [answers[item].batch_size for item in range(5)] == [2, 2, 2, 2, 1]  # type: ignore[union-attr]


def test_a_bad_picture_harms_only_itself() -> None:
    answers = _answers(FakeEngine(_SPEC), picture(), b"no picture", picture(200, 200), picture())
    assert [_code(answers[item]) for item in range(4)] == [
        "detected",
        "image_unreadable",
        "media_too_large",
        "detected",
    ]


def test_a_pass_that_fails_is_halved_until_the_culprit_is_alone() -> None:
    answers = _answers(FakeEngine(_SPEC), picture(), picture(), picture(PASS_FAILS), picture(), picture())
    assert [_code(answers[item]) for item in range(5)] == [
        "detected",
        "detected",
        "inference_unavailable",
        "detected",
        "detected",
    ]
    assert answers[2] == ItemFailed(2, "inference_unavailable", "RuntimeError"), "the text may hold content"


class CrampedEngine(FakeEngine):
    """Fails as CUDA does: two pictures fit, three do not."""

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        if len(images) > 2:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        return super().detect(images)


def test_a_pass_without_memory_is_halved_and_the_parent_told() -> None:
    said: list[Message] = []
    _answer(CrampedEngine(_SPEC), DetectBatch(1, (0, 1, 2, 3), (picture(),) * 4), said)
    assert [each.size for each in said if isinstance(each, OutOfMemory)] == [4]
    assert sorted(each.item for each in said if isinstance(each, ItemDetected)) == [0, 1, 2, 3]


class LostCard(FakeEngine):
    """Fails as torch does when the card does nothing more for this process."""

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        raise type("AcceleratorError", (RuntimeError,), {})("CUDA error: an illegal memory access was encountered")


def test_a_lost_card_ends_the_child_and_fails_no_picture() -> None:
    said: list[Message] = []
    with pytest.raises(RuntimeError, match="illegal memory access"):
        _answer(LostCard(_SPEC), DetectBatch(1, (0, 1), (picture(),) * 2), said)
    assert all(isinstance(each, Progress) for each in said), "another child will answer"


def test_several_threads_decode_for_a_card_and_the_order_stays() -> None:
    spec = ChildSpec(weights="none", device="cuda:0", threads=3, max_pixels=10_000)
    together = threading.Barrier(3, timeout=10)

    class Meeting(RecordingEngine):
        def prepare(self, picture: Picture) -> Prepared:
            together.wait()
            return super().prepare(picture)

    messages = iter([DetectBatch(1, (0, 1, 2), (picture(20), picture(40), picture(20)))])
    steps = Intake(lambda: next(messages), Meeting(), spec, lambda message: None, lambda item, error: None).steps()
    first, second = next(steps), next(steps)
    assert isinstance(first, Pass)
    assert isinstance(second, Pass)
    assert [[item for item, _ in each.group] for each in (first, second)] == [[0, 2], [1]]
    assert ChildSpec(weights="none", device="cpu", threads=3).decoders == 1


def test_the_next_batch_is_decoded_while_the_model_runs() -> None:
    line: queue.Queue[Message] = queue.Queue()
    decoded: queue.Queue[int] = queue.Queue()

    class Decoding(FakeEngine):
        def prepare(self, picture: Picture) -> Prepared:
            decoded.put(picture.height)
            return super().prepare(picture)

    steps = Intake(line.get, Decoding(_SPEC), _SPEC, lambda message: None, lambda item, error: None).steps()
    line.put(DetectBatch(1, (0,), (picture(20),)))
    assert isinstance(next(steps), Pass)
    assert decoded.get(timeout=10) == 20
    # The first batch is in the model now: nobody asks for the next step.
    line.put(DetectBatch(2, (1,), (picture(21),)))
    assert decoded.get(timeout=10) == 21
    line.put(Ping(3))
    kinds = [type(next(steps)) for _ in range(4)]
    assert kinds == [BatchEnd, Pass, BatchEnd, Ping], "in the order they came in"


def test_the_end_of_the_line_comes_after_what_was_on_it() -> None:
    messages = iter([DetectBatch(1, (0,), (picture(),))])

    def receive() -> Message:
        for message in messages:
            return message
        raise EOFError

    steps = Intake(receive, FakeEngine(_SPEC), _SPEC, lambda message: None, lambda item, error: None).steps()
    assert [type(next(steps)), type(next(steps))] == [Pass, BatchEnd]
    with pytest.raises(EOFError):
        next(steps)


def test_answers_are_said_with_what_comes_next() -> None:
    ours, childs = socket.socketpair()
    with ours, childs:
        ours.setblocking(False)
        voice = Voice(childs)
        voice.keep(ItemFailed(1, "x", ""))
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        voice.say(Ping(7))
        first, second = encode(ItemFailed(1, "x", "")), encode(Ping(7))
        assert ours.recv(1 << 16) == b"".join([*first, *second])
        voice.release()
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        voice.keep(Ping(8))
        voice.release()
        assert ours.recv(1 << 16) == b"".join(encode(Ping(8)))


class _Unhurried(FakeEngine):
    """A card whose pass is through once it has been asked how it does."""

    begun, asked = threading.Event(), threading.Event()

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.queue = self  # type: ignore[assignment]

    def begin(self, images: Sequence[Prepared]) -> _Unhurried:
        self.begun.set()
        self.images = images
        return self

    def ready(self) -> bool:
        return self.asked.is_set()

    def take(self) -> list[tuple[Box, ...]]:
        return self.detect(self.images)


def test_a_question_meanwhile_does_not_keep_a_pass_in_hand_unanswered() -> None:
    spec = ChildSpec("none", f"{__name__}:{_Unhurried.__name__}")
    ours, childs = socket.socketpair()
    with ours, childs:
        ours.settimeout(20)
        child = threading.Thread(target=serving._serve, args=[childs], daemon=True)
        child.start()

        def tell(message: Message) -> None:
            ours.sendall(b"".join(encode(message)))

        tell(spec)
        assert isinstance(serving._receive(ours), Ready)
        tell(DetectBatch(1, (5,), (picture(),)))
        assert _Unhurried.begun.wait(20)
        tell(Ping(3))
        assert isinstance(serving._receive(ours), Pong)
        _Unhurried.asked.set()
        assert [type(serving._receive(ours)) for _ in range(2)] == [ItemDetected, BatchDone]
        tell(Stop())
        child.join(20)
        assert not child.is_alive()


def test_a_slow_decoder_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.03)
    monkeypatch.setattr(intake.time, "monotonic", lambda: next(clock))
    said: list[Message] = []
    _answer(FakeEngine(_SPEC), DetectBatch(1, tuple(range(9)), (picture(),) * 9), said)
    kinds = [type(each) for each in said]
    assert kinds.count(ItemDetected) == 9
    assert 2 <= kinds.count(Progress) <= 5


class _CardReader:
    """Reads every other of what it is offered."""

    def __init__(self) -> None:
        self.offered: list[Jpeg] = []

    def read(self, jpegs: Sequence[Jpeg]) -> list[Prepared | None]:
        self.offered += jpegs
        return [
            Prepared(np.zeros((1, 1, 3), np.uint8), jpeg.width, jpeg.height) if place % 2 == 0 else None
            for place, jpeg in enumerate(jpegs)
        ]


def test_a_card_reads_plain_jpegs_and_the_cores_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reader, by_cores = FakeEngine(_SPEC), _CardReader(), []
    engine.reader = reader  # type: ignore[assignment]

    def prepare(picture: Picture) -> Prepared:
        by_cores.append(picture.height)
        return Prepared(np.zeros((1, 1, 3), np.uint8), picture.width, picture.height)

    monkeypatch.setattr(engine, "prepare", prepare)
    answers = _answers(engine, _jpeg(21), picture(22), _jpeg(23), _jpeg(24), b"nothing", _jpeg(200))
    assert [jpeg.height for jpeg in reader.offered] == [21, 23, 24]
    assert by_cores == [22, 23]
    assert [getattr(answers[item], "height", None) for item in range(4)] == [21, 22, 23, 24]
    assert getattr(answers[4], "code", "") == "image_unreadable"
    assert getattr(answers[5], "code", "") == "media_too_large"


def test_a_card_that_cannot_read_ends_the_child() -> None:
    class Broken(_CardReader):
        def read(self, jpegs: Sequence[Jpeg]) -> list[Prepared | None]:
            raise RuntimeError("the card is gone")

    engine, messages = FakeEngine(_SPEC), queue.Queue[Message]()
    engine.reader = Broken()  # type: ignore[assignment]
    messages.put(DetectBatch(1, (1,), (_jpeg(20),)))
    steps = Intake(messages.get, engine, _SPEC, lambda message: None, lambda item, error: None).steps()
    with pytest.raises(RuntimeError, match="the card is gone"):
        next(steps)


def _jpeg(height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (100, height), "olive").save(buffer, "JPEG")
    return buffer.getvalue()
