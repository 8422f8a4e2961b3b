"""What a model is given to see."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fakes.ollama_server import RECORDINGS
from fakes.pictures import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge, MediaTypeUnsupported
from aiworker.llm import pictures
from aiworker.llm.pictures import LEAST_SIDE, Pictures, as_jpeg, fitting, pixels_read

ROTATED = Image.Exif()
ROTATED[0x0112] = 6
ROTATED[0x8825] = {1: "S", 2: (23.0, 33.0, 1.0)}
PHOTOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "images"


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=("JPEG",))


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 4_000_000))
def test_a_picture_fits_and_keeps_its_form(width: int, height: int, pixels: int) -> None:
    got = fitting(width, height, pixels)
    assert got[0] * got[1] <= pixels
    assert got <= (width, height)
    assert 1 <= got[0] <= width
    assert 1 <= got[1] <= height
    if width * height <= pixels:
        assert got == (width, height)
    elif min(got) > 50:
        assert got[0] / got[1] == pytest.approx(width / height, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "mode"), [("jpeg", "RGB"), ("jpeg", "L"), ("png", "RGBA"), ("png", "P"), ("png", "I;16"), ("webp", "RGBA")]
)
def test_every_kind_becomes_a_jpeg(kind: str, mode: str) -> None:
    seen = opened(as_jpeg(picture(300, 200, kind, mode), 20_000))
    assert seen.mode == "RGB"
    assert seen.width * seen.height <= 20_000
    assert seen.width > seen.height


def test_a_phones_heic_becomes_a_jpeg() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    heic = picture(640, 480, "heif")
    assert opened(as_jpeg(heic, 100_000)).size == (364, 273)
    with pytest.raises(ImageUnreadable):
        as_jpeg(heic[:300], 100_000)


def test_the_cameras_notes_stay_behind_and_the_picture_is_upright() -> None:
    photo = picture(300, 200, exif=ROTATED)
    assert 0x8825 in opened(photo).getexif()
    seen = opened(as_jpeg(photo, 1_000_000))
    assert seen.size == (200, 300)
    assert dict(seen.getexif()) == {}
    assert b"Exif" not in as_jpeg(photo, 1_000_000)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "PNG"])
def test_a_comment_stays_behind_too(kind: str) -> None:
    note, data = "Maria, Rua X 55", io.BytesIO()
    text = PngInfo()
    text.add_text("comment", note)
    how: dict[str, Any] = {"pnginfo": text} if kind == "PNG" else {"comment": note.encode()}
    Image.new("RGB", (64, 64)).save(data, kind, **how)
    assert note.encode() in data.getvalue()

    assert note.encode() not in as_jpeg(data.getvalue(), 10_000)


def test_what_is_transparent_becomes_white() -> None:
    clear = BytesIO()
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(clear, "png")
    assert opened(as_jpeg(clear.getvalue(), 10_000)).getpixel((40, 40)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = BytesIO()
    Image.new("I;16", (80, 80), 128 * 256).save(grey, "png")
    value = opened(as_jpeg(grey.getvalue(), 10_000)).getpixel((40, 40))
    assert value[0] == pytest.approx(128, abs=3)


@pytest.mark.parametrize("size", [(1, 1), (3000, 8), (8, 3000), (17_000, 64), (30_000, 1), (1, 30_000)])
@pytest.mark.parametrize("pixels", [336 * 336, 1_000_000])
def test_a_sliver_is_padded_to_what_a_model_survives(size: tuple[int, int], pixels: int) -> None:
    seen = opened(as_jpeg(picture(*size, kind="png"), pixels))
    assert min(seen.size) >= LEAST_SIDE
    assert max(seen.size) / min(seen.size) < 200
    assert seen.width * seen.height <= pixels


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"%PDF-1.7", MediaTypeUnsupported),
        (b"", MediaTypeUnsupported),
        (picture(600, 600)[:900], ImageUnreadable),
        (picture(kind="bmp"), MediaTypeUnsupported),
    ],
)
def test_what_cannot_be_read_is_an_error(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        as_jpeg(data, 1000)
    assert type(caught.value) is error


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaTooLarge):
        as_jpeg(picture(100, 100), 1000)


async def test_pictures_are_prepared_in_their_order() -> None:
    first, second = picture(200, 100), picture(100, 200)
    got = await Pictures().prepare((first, second), 5000)
    assert [opened(data).width > opened(data).height for data in got] == [True, False]


@pytest.mark.parametrize(
    ("info", "pixels"),
    [
        ({}, 1_003_520),
        ({"gemma3.vision.image_size": 896}, 896 * 896),
        ({"mllama.vision.image_size": 560, "mllama.vision.max_num_tiles": 4}, 1_003_520),
        ({"qwen25vl.vision.max_pixels": 501_760}, 501_760),
        ({"qwen25vl.vision.max_pixels": 12_845_056}, 1_003_520),
        ({"clip.vision.image_size": 24}, 336 * 336),
        ({"gemma3.vision.image_size": "896"}, 1_003_520),
    ],
)
def test_how_much_a_model_reads(info: dict[str, Any], pixels: int) -> None:
    assert pixels_read(info) == pixels


def test_a_recorded_text_model_says_nothing_of_pictures() -> None:
    shown = json.loads(json.loads((RECORDINGS / "show.json").read_text())["lines"][0]["line"])
    assert pixels_read(shown["model_info"]) == 1_003_520


@pytest.mark.skipif(not PHOTOS.exists(), reason="the shared photos are not here")
def test_real_photos_shrink() -> None:
    for path in sorted(PHOTOS.glob("*.jpg"))[:6]:
        seen = opened(as_jpeg(path.read_bytes(), 100_000))
        assert seen.width * seen.height <= 100_000


async def test_who_is_cancelled_makes_no_room_for_one_more_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    running: list[bytes] = []

    def decode(image: bytes, _pixels: int) -> bytes:
        running.append(image)
        begun.release()
        go_on.wait()
        running.remove(image)
        return image

    monkeypatch.setattr(pictures, "as_jpeg", decode)
    prepared = Pictures()
    first = [asyncio.create_task(prepared.prepare((image,), 1)) for image in (b"1", b"2")]
    for _ in first:
        assert await asyncio.to_thread(begun.acquire, timeout=10)
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    third = asyncio.create_task(prepared.prepare((b"3",), 1))
    try:
        assert not await asyncio.to_thread(begun.acquire, timeout=0.2)
    finally:
        go_on.set()
    assert await third == (b"3",)
