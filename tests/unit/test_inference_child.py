from __future__ import annotations

from collections.abc import Sequence

from fakes.fake_engine import PASS_FAILS, FakeEngine, picture

from aiworker.inference.child import answer_batch
from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec, DetectBatch, ItemDetected, ItemFailed, Message, OutOfMemory, Progress

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


def _answers(engine: FakeEngine, *images: bytes) -> dict[int, ItemDetected | ItemFailed]:
    said: list[Message] = []
    answer_batch(engine, _SPEC, DetectBatch(1, tuple(range(len(images))), images), said.append)
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
    answer_batch(CrampedEngine(_SPEC), _SPEC, DetectBatch(1, (0, 1, 2, 3), (picture(),) * 4), said.append)
    assert [each.size for each in said if isinstance(each, OutOfMemory)] == [4]
    assert sorted(each.item for each in said if isinstance(each, ItemDetected)) == [0, 1, 2, 3]
