"""What a file's header says it is. Pure; no pixel is decoded, and no memory is taken by what a header claims."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError, DecompressionBombWarning
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge, MediaTypeUnsupported

ImageFormat = Literal["jpeg", "png", "webp", "gif", "heif"]

_SIGNATURES: tuple[tuple[ImageFormat, bytes], ...] = (
    ("jpeg", b"\xff\xd8\xff"),
    ("png", b"\x89PNG\r\n\x1a\n"),
    ("gif", b"GIF87a"),
    ("gif", b"GIF89a"),
)
# The plugins themselves and not Image.open, whose pixel limit is a global of the process.
_READERS: dict[str, Callable[[BytesIO], ImageFile]] = {"jpeg": JpegImageFile, "png": PngImageFile, "gif": GifImageFile}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"))
_UNREAD_BRANDS = frozenset((b"hevc", b"hevx", b"avif", b"avis"))
# A phone writes the sizes into the first kilobytes; some programs, after the pixels of a thumbnail.
_HEIF_HEAD = 1 << 20
_HEIF_SIZE = re.compile(rb"ispe\0\0\0\0(.{4})(.{4})", re.DOTALL)
# A photo's header takes dozens. A file made of millions of empty segments would hold Pillow, and the event loop, for
# seconds.
_MAX_READS = 10_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """`width` and `height` in pixels as stored, before EXIF turns the picture upright."""

    format: ImageFormat
    width: int
    height: int


class _FewReads(BytesIO):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError("too many segments")
        return super().read(size)


def read_header(data: bytes, max_pixels: int) -> ImageHeader:
    """The header of an encoded picture.

    Raises MediaTypeUnsupported (no picture, or of a kind that we do not read), ImageUnreadable (ends within its header,
    or contradicts itself), MediaTooLarge.
    """
    kind = _format_of(data)
    if kind == "heif":
        width, height = _heif_size(data)
    else:
        width, height = _webp_size(data) if kind == "webp" else _pillow_size(kind, data, max_pixels)
    if width * height > max_pixels:
        raise _too_many(max_pixels, width * height)
    if width == 0 or height == 0:
        raise ImageUnreadable("a picture without pixels")
    return ImageHeader(kind, width, height)


def _format_of(data: bytes) -> ImageFormat:
    for kind, signature in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and b"WEBP".startswith(data[8:12]):
        return "webp"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "heif"
    if data[4:8] == b"ftyp" and data[8:12] in _UNREAD_BRANDS:
        raise MediaTypeUnsupported("AVIF and sequences of pictures are not read", format="heif")
    if any(signature.startswith(data) for signature in (*(s for _, s in _SIGNATURES), b"RIFF")):
        raise ImageUnreadable("the file ends before its header does", size_bytes=len(data))
    raise MediaTypeUnsupported("the bytes are no JPEG, PNG, WebP, GIF or HEIC")


def _pillow_size(kind: ImageFormat, data: bytes, max_pixels: int) -> tuple[int, int]:
    try:
        with _READERS[kind](_FewReads(data)) as image:
            return image.size
    except (DecompressionBombError, DecompressionBombWarning):
        raise _too_many(max_pixels) from None
    except (SyntaxError, OSError, ValueError, OverflowError):
        # Pillow's ways to say that a file is malformed; its texts may quote the file.
        raise ImageUnreadable(f"bad {kind} header") from None


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649). Pillow would allocate the whole canvas to tell them."""
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(body) >= 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if chunk == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ImageUnreadable("bad webp header")


def _heif_size(data: bytes) -> tuple[int, int]:
    """The largest of the sizes in the file (ISO/IEC 23008-12, `ispe`): the others are tiles and thumbnails of it."""
    found = [
        (int.from_bytes(width, "big"), int.from_bytes(height, "big"))
        for width, height in _HEIF_SIZE.findall(data, 0, _HEIF_HEAD)
    ]
    if not found:
        raise ImageUnreadable("bad heif header")
    return max(found, key=lambda size: size[0] * size[1])


def _too_many(max_pixels: int, pixels: int | None = None) -> MediaTooLarge:
    return MediaTooLarge("too many pixels", limit_pixels=max_pixels, pixels=pixels)
