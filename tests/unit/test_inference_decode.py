from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from fakes.fake_engine import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge
from aiworker.inference.child.decode import decode, plain_jpeg
from aiworker.inference.engines.letterbox import prepare, upright
from aiworker.inference.interface import Jpeg, Picture

_LIMIT = 1_000_000


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(row, (height, 1))[:, :, None], 3, axis=2))


_RGB = _gradient()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("1", "PNG")],
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    decoded = decode(_saved(_RGB.convert(mode), kind), _LIMIT).pixels
    assert decoded.shape == (30, 40, 3)
    assert decoded.dtype == np.uint8
    assert decoded[:, -1].mean() > 200 > 50 > decoded[:, 0].mean()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (30, 1))
    decoded = decode(_saved(Image.fromarray(grey), "PNG"), _LIMIT).pixels
    np.testing.assert_array_equal(decoded[0, :, 0], grey[0] // 256)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_stands_upright(orientation: int) -> None:
    undo: dict[int, Callable[[Image.Image], Image.Image]] = {
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = undo.get(orientation, lambda i: i)(_RGB)
    np.testing.assert_array_equal(_seen(_saved(stored, "PNG", exif=exif)), np.asarray(_RGB))
    lossy = _seen(_saved(stored, "JPEG", exif=exif, quality=95))
    np.testing.assert_allclose(lossy.astype(int), np.asarray(_RGB), atol=8)


def _seen(image: bytes) -> np.ndarray:
    decoded = decode(image, _LIMIT)
    pixels = upright(decoded.pixels, decoded.orientation)
    assert (decoded.height, decoded.width) == pixels.shape[:2]
    return pixels


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "quality": 60}])
def test_a_jpeg_has_the_pixels_that_pillow_and_ultralytics_see(mode: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (75, 101, 3), np.uint8)
    jpeg = _saved(Image.fromarray(noise).convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    np.testing.assert_allclose(decode(jpeg, _LIMIT).pixels.astype(int), expected, atol=1)


def test_only_a_huge_jpeg_is_decoded_smaller_and_keeps_its_size() -> None:
    for (width, height), scale in (((8000, 6250), 1), ((8001, 6251), 2)):
        decoded = decode(_saved(Image.new("L", (width, height), 90), "JPEG"), 10**8)
        assert (decoded.width, decoded.height) == (width, height)
        assert decoded.pixels.shape == (-(-height // scale), -(-width // scale), 3)


def test_the_model_sees_a_turned_and_shrunken_photo_as_the_whole_one() -> None:
    smooth = _gradient(600, 400)
    whole = prepare(decode(_saved(smooth, "PNG"), _LIMIT), 64, 32)
    stored = np.asarray(smooth.transpose(Image.Transpose.ROTATE_90).resize((200, 300)))
    turned = prepare(Picture(stored, 600, 400, orientation=6), 64, 32)
    assert (turned.width, turned.height) == (whole.width, whole.height) == (600, 400)
    np.testing.assert_allclose(turned.pixels.astype(int), whole.pixels, atol=3)


def test_a_photo_of_a_phone_in_heic_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    decoded = decode(_saved(_gradient(64, 48), "HEIF", quality=90), _LIMIT)
    assert decoded.pixels.shape == (48, 64, 3)
    assert decoded.pixels[:, -1].mean() > 200 > 50 > decoded.pixels[:, 0].mean()
    with pytest.raises(MediaTooLarge):
        decode(_saved(_gradient(64, 48), "HEIF"), max_pixels=64 * 48 - 1)
    with pytest.raises(ImageUnreadable):
        decode(_saved(_RGB, "HEIF")[:200], _LIMIT)


def test_broken_camera_data_does_not_cost_the_picture() -> None:
    jpeg = _saved(_RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 30)
    assert decode(jpeg, _LIMIT).pixels.shape == (30, 40, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        animation = _saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
        assert tuple(decode(animation, _LIMIT).pixels[4, 4]) == (255, 0, 0), kind


def test_a_truncated_jpeg_is_refused() -> None:
    jpeg = _saved(_gradient(400, 300), "JPEG")
    with pytest.raises(ImageUnreadable):
        decode(jpeg[: len(jpeg) // 2], _LIMIT)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [1001, 20_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", b"never decompressed") + _chunk(b"IEND", b"")
    with pytest.raises(MediaTooLarge):
        decode(bomb, _LIMIT)


def test_the_limit_itself_is_allowed() -> None:
    assert decode(picture(10, 10), max_pixels=100).pixels.shape == (10, 10, 3)
    with pytest.raises(MediaTooLarge):
        decode(picture(10, 10), max_pixels=99)


@given(st.binary(max_size=200))
def test_noise_is_unreadable(noise: bytes) -> None:
    with pytest.raises(ImageUnreadable):
        decode(noise, _LIMIT)


@given(st.integers(0, 800), st.binary(min_size=1, max_size=8))
def test_a_damaged_jpeg_is_a_picture_or_unreadable(at: int, damage: bytes) -> None:
    jpeg = bytearray(_saved(_RGB, "JPEG"))
    jpeg[at : at + len(damage)] = damage
    with suppress(ImageUnreadable, MediaTooLarge):
        assert decode(bytes(jpeg), _LIMIT).pixels.ndim == 3


def test_a_plain_jpeg_is_told_by_its_header_and_its_end() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_rows": 1}):
        image = _saved(_RGB, "JPEG", **options)
        assert plain_jpeg(image, _LIMIT) == Jpeg(image, 40, 30), options
    turned = _saved(_RGB, "JPEG", exif=exif)
    assert plain_jpeg(turned, _LIMIT) == Jpeg(turned, 30, 40, 6)


def test_what_is_no_plain_jpeg_is_left_to_the_cores() -> None:
    whole = _saved(_RGB, "JPEG")
    for image in (
        b"",
        b"\xff\xd8\xff\xd9",
        whole[:-2],
        whole + b"\0",
        _saved(_RGB, "JPEG", progressive=True),
        _saved(_RGB, "JPEG", keep_rgb=True),
        _saved(_RGB.convert("CMYK"), "JPEG"),
        _saved(_RGB.convert("L"), "JPEG"),
        _saved(_RGB, "MPO", save_all=True, append_images=[_RGB]),
        _saved(_RGB, "PNG"),
        _saved(_gradient(40, 15), "JPEG"),
    ):
        assert plain_jpeg(image, _LIMIT) is None
    assert plain_jpeg(whole, 40 * 30 - 1) is None


@given(st.binary(max_size=200))
def test_a_broken_header_is_never_an_error(tail: bytes) -> None:
    plain_jpeg(b"\xff\xd8" + tail + b"\xff\xd9", _LIMIT)


_PEAK = """
import sys
from pathlib import Path
from aiworker.inference.child.decode import decode

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

image = sys.stdin.buffer.read()
decode(image[: int(sys.argv[1])], 10**8)
before = peak()
print((peak() - before, decode(image[int(sys.argv[1]) :], 10**8).pixels.nbytes, peak() - before)[1:])
"""


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_large_picture_is_not_held_many_times(kind: str) -> None:
    small, large = _saved(_gradient(), kind), _saved(Image.new("RGB", (4000, 4000)), kind)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(len(small))], input=small + large, capture_output=True, check=True, timeout=60
    )
    pixels, grown = map(int, done.stdout.decode().strip("()\n").split(","))
    assert pixels == 4000 * 4000 * 3
    assert grown < 4.5 * pixels
