from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aiworker.inference.child.decode import decode
from aiworker.inference.engines.letterbox import fit, prepare
from aiworker.inference.policy.shape import letterboxed, picture_size

_JPEG, _PNG = ("JPEG", {}), ("PNG", {})
_FORMATS = [_JPEG, ("JPEG", {"progressive": True}), _PNG, ("WEBP", {}), ("WEBP", {"lossless": True})]


def _picture(form: str, options: dict[str, object], size: tuple[int, int] = (300, 200), orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
        options = {**options, "exif": exif}
    Image.new("RGB", size, "olive").save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "options"), _FORMATS)
def test_the_size_is_read_off_the_header(form: str, options: dict[str, object]) -> None:
    assert picture_size(_picture(form, options)) == (300, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_has_its_upright_size(orientation: int) -> None:
    expected = (200, 300) if orientation >= 5 else (300, 200)
    assert picture_size(_picture(*_JPEG, orientation=orientation)) == expected


def test_an_extended_webp_is_read_too() -> None:
    assert picture_size(_picture("WEBP", {}, orientation=3)) == (300, 200)


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail(tail: bytes) -> None:
    for head in (b"", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBPVP8X"):
        letterboxed(head + tail, 640)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xd0", b"\xff\xe1\x00\x0eExif\0\0MM\0\0\0\0"])
def test_a_header_without_an_end_holds_the_loop_up_for_no_time(filling: bytes) -> None:
    image = b"\xff\xd8" + filling * (12_000_000 // len(filling))
    begun = time.process_time()
    assert picture_size(image) is None
    assert time.process_time() - begun < 0.1


def test_many_markers_before_the_frame_are_passed_over() -> None:
    whole = _picture(*_JPEG)
    profile = b"\xff\xe2\x00\x10" + bytes(14)
    assert picture_size(whole[:2] + 255 * profile + whole[2:]) == (300, 200)


@given(st.data())
def test_a_cut_photo_makes_it_not_fail(data: st.DataObject) -> None:
    whole = _picture(*_JPEG, orientation=6)
    letterboxed(whole[: data.draw(st.integers(0, len(whole)))], 640)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((640, 480), (480, 640)), ((480, 640), (640, 480)), ((4000, 3000), (480, 640)), ((1000, 10), (32, 640))],
)
def test_the_shape_is_that_of_the_model(size: tuple[int, int], shape: tuple[int, int]) -> None:
    assert letterboxed(_picture(*_PNG, size=size), 640) == shape


def test_what_tells_no_size_has_no_shape() -> None:
    assert letterboxed(b"GIF89a", 640) is None
    assert letterboxed(b"\x89PNG\r\n\x1a\n" + bytes(40), 640) is None


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([320, 640, 1280]))
def test_every_size_has_the_shape_that_the_child_gives_it(width: int, height: int, size: int) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", width, height)
    assert letterboxed(png, size) == fit(width, height, size, 32).shape


def test_real_photos_have_the_shape_that_the_child_makes(photos: list[Path]) -> None:
    for photo in photos:
        content = photo.read_bytes()
        assert letterboxed(content, 640) == prepare(decode(content, 10**8), 640, 32).pixels.shape[:2]
