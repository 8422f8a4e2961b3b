import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge, MediaTypeUnsupported
from aiworker.media import image as image_module
from aiworker.media.image import ImageHeader, read_header

PHOTOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "images"
FORMATS = ("jpeg", "png", "webp", "gif")


def encoded(kind: str, size=(40, 30), mode="RGB", **options) -> bytes:
    out = BytesIO()
    Image.new(mode, size, "orange").save(out, kind, **options)
    return out.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


VALID = {kind: encoded(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_size_and_format(kind):
    assert read_header(VALID[kind], 1200) == ImageHeader(kind, 40, 30)


@pytest.mark.parametrize(
    "options",
    [{"lossless": True}, {"quality": 50}, {"quality": 50, "mode": "RGBA"}, {"lossless": True, "exif": b"Exif\0\0"}],
)
@pytest.mark.parametrize("size", [(1, 1), (257, 3), (3, 1025)])
def test_every_kind_of_webp_tells_the_size_that_pillow_reads(options, size):
    data = encoded("webp", size, **options)
    assert (read_header(data, 10**6).width, read_header(data, 10**6).height) == Image.open(BytesIO(data)).size == size


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel_over_the_limit(kind):
    with pytest.raises(MediaTooLarge) as caught:
        read_header(VALID[kind], 1199)
    assert caught.value.details == {"limit_pixels": 1199, "pixels": 1200}


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 50_000_001)])
def test_a_huge_png_is_refused_by_its_header(width, height):
    with pytest.raises(MediaTooLarge):
        read_header(png_header(width, height) + png_chunk(b"IDAT", b""), 50_000_000)


def test_a_huge_picture_within_a_larger_limit_passes_without_pillows_global_limit():
    assert read_header(png_header(20_000, 10_000) + png_chunk(b"IDAT", b""), 200_000_000).width == 20_000


def test_a_gif_whose_first_frame_is_larger_than_its_screen_is_refused():
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 60_000, 60_000, 60_000, 60_000, 0) + b"\2\0"
    with pytest.raises(MediaTooLarge):
        read_header(screen + frame, 50_000_000)


def test_a_webp_canvas_is_not_allocated(monkeypatch):
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", lambda _: pytest.fail("the decoder was made"))
    huge = (16_382).to_bytes(3, "little")
    data = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + huge + huge
    with pytest.raises(MediaTooLarge):
        read_header(data, 50_000_000)


def test_no_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    for data in VALID.values():
        read_header(data, 1200)


@pytest.mark.parametrize(("kind", "header_bytes"), [("jpeg", 100), ("png", 30), ("webp", 24), ("gif", 12)])
def test_a_file_that_ends_in_its_header(kind, header_bytes):
    for length in range(header_bytes):
        with pytest.raises(ImageUnreadable):
            read_header(VALID[kind][:length], 10**6)


def test_a_jpeg_that_ends_in_its_pixels_passes_here():
    data = encoded("jpeg", (640, 480))
    assert read_header(data[:-200], 10**6).width == 640


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"<html><body>sign in</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"BM" + bytes(60),
        b"RIFF\0\0\0\0WAVEfmt ",
        b"II*\0" + bytes(60),
        b"\0\0\0\x18ftypmp42" + bytes(20),
        bytes(100),
    ],
)
def test_not_a_picture_that_we_read(data):
    with pytest.raises(MediaTypeUnsupported):
        read_header(data, 10**6)


@pytest.mark.parametrize("brand", [b"avif", b"hevc"])
def test_what_is_in_a_heif_file_but_no_photo_is_said(brand):
    with pytest.raises(MediaTypeUnsupported) as caught:
        read_header(b"\0\0\0\x18ftyp" + brand + bytes(40), 10**6)
    assert caught.value.details == {"format": "heif"}


def ispe(width, height):
    return b"\0\0\0\x14ispe" + struct.pack(">III", 0, width, height)


def test_a_phones_heic_is_as_large_as_its_largest_part():
    start = b"\0\0\0\x18ftypheic" + bytes(12)
    photo = start + ispe(512, 512) + ispe(4032, 3024) + ispe(320, 240)
    assert read_header(photo, 10**8) == ImageHeader("heif", 4032, 3024)
    with pytest.raises(MediaTooLarge):
        read_header(photo, 10**7)
    for broken in (start, start + ispe(4032, 3024)[:-1]):
        with pytest.raises(ImageUnreadable):
            read_header(broken, 10**8)
    with pytest.raises(ImageUnreadable):
        read_header(start + ispe(0, 7), 10**8)


def test_a_real_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert read_header(encoded("heif", (640, 480)), 10**6) == ImageHeader("heif", 640, 480)


@pytest.mark.parametrize(
    "data",
    [
        png_header(10, 10) + png_chunk(b"prVt", b"") * 100_000,
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff\xe5\0\2" * 100_000,
        VALID["gif"][:13] + b"!\xfe\1a\0" * 100_000,
    ],
)
def test_a_file_made_of_endless_segments_is_given_up(monkeypatch, data):
    positions = []

    class Watched(image_module._FewReads):
        def read(self, size=-1, /):
            positions.append(self.tell())
            return super().read(size)

    monkeypatch.setattr(image_module, "_FewReads", Watched)
    with pytest.raises(ImageUnreadable):
        read_header(data, 10**6)
    assert len(positions) <= image_module._MAX_READS + 1
    assert positions[-1] < len(data)


def test_a_compressed_text_bomb_in_a_png_is_not_inflated():
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))
    with pytest.raises(ImageUnreadable):
        read_header(png_header(10, 10) + bomb + png_chunk(b"IDAT", b""), 10**6)


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_have_a_stable_answer(data):
    _must_answer(data)


@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_picture_has_a_stable_answer(kind, data):
    damaged = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged), 120) - 1))] = data.draw(st.integers(0, 255))
    _must_answer(bytes(damaged))


def _must_answer(data: bytes) -> None:
    try:
        header = read_header(data, 10**6)
    except (MediaTypeUnsupported, ImageUnreadable, MediaTooLarge):
        return
    assert 0 < header.width * header.height <= 10**6


def test_real_photos_pass():
    photos = sorted(PHOTOS.glob("*.jpg"))
    if not photos:
        pytest.skip("no shared photos beside this checkout")
    for photo in photos:
        assert read_header(photo.read_bytes(), 50_000_000).format == "jpeg"
