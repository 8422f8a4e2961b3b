from __future__ import annotations

from dataclasses import fields

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference import messages as m

_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_ID = st.integers(0, 2**53)
_BOX = st.tuples(st.integers(0, 999), *[_NUMBER] * 5)
_PAIRS = st.dictionaries(_ID, st.binary(max_size=200), max_size=5)

_MESSAGES = st.one_of(
    st.builds(m.ChildSpec, weights=st.text(), device=st.text(), threads=st.integers(1, 64), confidence=_NUMBER),
    st.builds(
        m.Ready,
        engine=st.text(),
        class_ids=st.lists(_ID).map(tuple),
        class_names=st.lists(st.text()).map(tuple),
        load_s=_NUMBER,
        rss_mb=_NUMBER,
    ),
    st.builds(m.StartFailed, reason=st.text()),
    _PAIRS.map(lambda pairs: m.DetectBatch(3, tuple(pairs), tuple(pairs.values()))),
    st.builds(
        m.ItemDetected,
        item=_ID,
        width=_ID,
        height=_ID,
        boxes=st.lists(_BOX, max_size=4).map(tuple),
        forward_ms=_NUMBER,
        batch_size=_ID,
    ),
    st.builds(m.ItemFailed, item=_ID, code=st.text(), note=st.text()),
    st.builds(m.BatchDone, batch=_ID, seconds=_NUMBER, rss_mb=_NUMBER, decode_s=_NUMBER),
    st.builds(m.Ping, number=_ID),
    st.builds(m.Pong, number=_ID, rss_mb=_NUMBER),
    st.builds(m.OutOfMemory, size=_ID),
    st.just(m.Progress()),
    st.just(m.Stop()),
)


def _framed(message: m.Message) -> tuple[bytes, bytes]:
    whole = b"".join(m.encode(message))
    return whole[: m.PREFIX_BYTES], whole[m.PREFIX_BYTES :]


@given(_MESSAGES)
def test_what_is_sent_is_what_arrives(message: m.Message) -> None:
    prefix, frame = _framed(message)
    assert m.frame_length(prefix) == len(frame)
    assert m.decode(frame) == message


@given(st.binary(max_size=300))
def test_garbage_is_a_clear_error(frame: bytes) -> None:
    with pytest.raises(m.FrameInvalid):
        m.decode(frame)


@given(_MESSAGES, st.data())
def test_a_cut_frame_is_a_clear_error(message: m.Message, data: st.DataObject) -> None:
    _, frame = _framed(message)
    with pytest.raises(m.FrameInvalid):
        m.decode(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(
    st.dictionaries(
        st.sampled_from(["v", "type", "body", "blobs"]),
        st.one_of(
            st.just(1),
            st.sampled_from(["batch", "done", "progress"]),
            st.just([]),
            st.just({}),
            st.just({"items": 3}),
            st.just({"items": [1], "batch": 1}),
            st.just([-1, 1]),
            st.none(),
        ),
    )
)
def test_a_header_of_the_wrong_form_is_a_clear_error_or_a_message(header: dict[str, object]) -> None:
    data = orjson.dumps(header)
    frame = len(data).to_bytes(4, "big") + data
    try:
        message = m.decode(frame)
    except m.FrameInvalid:
        return
    assert {each.name for each in fields(message)} <= {"batch", "items", "images"}


def test_another_version_is_named() -> None:
    _, frame = _framed(m.Stop())
    with pytest.raises(m.FrameInvalid, match="version 9"):
        m.decode(frame.replace(b'"v":3', b'"v":9'))


@pytest.mark.parametrize("length", [0, 3])
def test_a_length_that_no_frame_has_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(m.FrameInvalid):
        m.frame_length(length.to_bytes(4, "big"))


def test_pictures_travel_as_they_are_and_once() -> None:
    image = b"\xff\xd8" + bytes(1000)
    parts = m.encode(m.DetectBatch(1, (1,), (image,)))
    assert parts[-1] is image
    assert sum(image in part for part in parts) == 1


def test_a_batch_does_not_show_its_pictures() -> None:
    assert "secret" not in repr(m.DetectBatch(1, (1,), (b"secret",)))


def test_the_largest_batch_fits_the_length_field() -> None:
    assert m.MAX_BATCH * (m.MAX_IMAGE_BYTES + 50) + 1000 < 2**32
