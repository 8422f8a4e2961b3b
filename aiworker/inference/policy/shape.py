"""The shape that a picture will have in the model, read off its header without decoding it. Pure.

It only groups pictures: the child looks at the real pixels, so that a header that lies costs time and nothing else.
"""

from __future__ import annotations

import struct

Shape = tuple[int, int]
"""Height and width in pixels of the letterboxed picture, multiples of the stride."""

_STRIDE = 32
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})
_EXIF_BYTES = 4096
_MOST_MARKERS = 512
"""Before the frame of a JPEG: twice what a colour profile needs, and a millisecond in the parent's loop at most."""
_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})


def letterboxed(image: bytes, size: int) -> Shape | None:
    """The shape for a model that takes pictures of `size` pixels; None when the header does not tell."""
    found = picture_size(image)
    if found is None or min(found) < 1:
        return None
    width, height = found
    ratio = min(size / height, size / width)
    return (_padded(height * ratio, size), _padded(width * ratio, size))


def _padded(side: float, size: int) -> int:
    scaled = max(round(side), 1)
    return scaled + (size - scaled) % _STRIDE


def picture_size(image: bytes) -> tuple[int, int] | None:
    """(width, height) upright, of a JPEG, PNG or WebP; None for anything else."""
    try:
        if image.startswith(b"\xff\xd8"):
            return _jpeg(image)
        if image.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", image, 16)
            return width, height
        if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
            return _webp(image)
    except (struct.error, IndexError):
        return None
    return None


def _jpeg(image: bytes) -> tuple[int, int] | None:
    at, turned = 2, None
    for _ in range(_MOST_MARKERS):
        if at + 4 > len(image) or image[at] != 0xFF:
            break
        marker = image[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", image, at + 5)
            return (height, width) if turned else (width, height)
        else:
            (length,) = struct.unpack_from(">H", image, at + 2)
            if turned is None and marker == 0xE1 and image[at + 4 : at + 10] == b"Exif\0\0":
                turned = _orientation(image[at + 10 : at + 10 + min(length, _EXIF_BYTES)]) in _TURNED
            at += 2 + length
    return None


def _orientation(exif: bytes) -> int:
    """1 (upright) unless the first directory says otherwise; damaged counts as upright, as it does in decoding."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * min(count, 256), 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        return 1
    return 1


def _webp(image: bytes) -> tuple[int, int] | None:
    match image[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(image[24:27], "little"), 1 + int.from_bytes(image[27:30], "little")
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", image, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", image, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None
