"""Encoded picture in, RGB out. Used in the child only.

JPEGs go through libjpeg-turbo at full size: a third of Pillow's time for the same pixels. Its smaller scales would
save little more, since most of the time is spent on unpacking, and move confidences by up to 0.4; see docs/adr/010.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge
from aiworker.inference.interface import Jpeg, Picture

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_JPEG = frozenset({"JPEG", "MPO"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_ORIENTATION = 0x0112
_LEAST_SIDE = 16
"""Of a JPEG for a card, whose edges are a little different: one block."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_FULL_SCALE_PIXELS = 50_000_000
"""Above it a JPEG is decoded at half its size, so that its pixels take no more than 150 MB."""


def decode(image: bytes, max_pixels: int) -> Picture:
    """The first frame of an animation. Raises MediaTooLarge above `max_pixels`, before any pixel is decoded, and
    ImageUnreadable for anything else.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at its own pixel limit; ours is checked below, on the size in the header.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=_formats_of(image)) as picture:
                _check_size(picture, max_pixels)
                return _from_jpeg(image, picture) or _from_any(picture)
    except MediaTooLarge:
        raise
    except Image.DecompressionBombError:
        raise MediaTooLarge("picture over the decoder's own limit") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        # Boundary: decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more on damaged files.
        raise ImageUnreadable(type(error).__name__) from None


def plain_jpeg(image: bytes, max_pixels: int) -> Jpeg | None:
    """What a card's JPEG unit may be given. None for anything else, and for what `decode` would refuse."""
    if image[:2] != _START or image[-2:] != _END:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=("JPEG",)) as picture:
                width, height = picture.size
                if width * height > min(max_pixels, _FULL_SCALE_PIXELS) or min(width, height) < _LEAST_SIDE:
                    return None
                if not _is_plain(picture):
                    return None
                orientation = _orientation(picture)
    except Exception:  # noqa: BLE001
        # Boundary: as in `decode`, which will say what is wrong with it.
        return None
    return Jpeg(image, *((height, width) if orientation > 4 else (width, height)), orientation)


def _is_plain(picture: Image.Image) -> bool:
    """One sequential scan of luma and chroma in bytes; the unit does not make RGB of luma alone."""
    parts = tuple(each[0] for each in getattr(picture, "layer", ()))
    is_rgb = parts == (ord("R"), ord("G"), ord("B")) or picture.info.get("adobe_transform") == 0
    sequential = not (picture.info.get("progressive") or picture.info.get("progression"))
    return picture.format == "JPEG" and picture.mode == "RGB" and sequential and not is_rgb


def _formats_of(image: bytes) -> tuple[str, ...]:
    """What is not named here is refused before a byte of it is parsed."""
    if image[4:8] != b"ftyp" or image[8:12] not in _HEIF_BRANDS:
        return _FORMATS
    # Only the child that meets a HEIC pays for its decoder's memory.
    import pillow_heif  # noqa: PLC0415

    pillow_heif.register_heif_opener(thumbnails=False)
    return ("HEIF",)


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise MediaTooLarge("picture over the pixel limit", width=width, height=height, limit_pixels=max_pixels)


def _from_jpeg(image: bytes, picture: Image.Image) -> Picture | None:
    """None for anything that is not a plain, sound JPEG: Pillow knows more kinds, and which damage to forgive."""
    if picture.format not in _JPEG or picture.mode not in ("RGB", "L"):
        return None
    width, height = picture.size
    factor = 1 if width * height <= _FULL_SCALE_PIXELS else 2
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            image, min_width=-(-width // factor), min_height=-(-height // factor), min_factor=factor
        )
    except ValueError:
        return None
    orientation = _orientation(picture)
    return Picture(pixels, *((height, width) if orientation > 4 else (width, height)), orientation)


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001
        # Boundary: camera metadata is broken in more ways than the parser names; the pixels are good.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _from_any(picture: Image.Image) -> Picture:
    picture.load()
    pixels = _rgb(_upright(picture))
    return Picture(pixels, pixels.shape[1], pixels.shape[0])


def _rgb(upright: Image.Image) -> NDArray[np.uint8]:
    if upright.mode in _SIXTEEN_BITS:
        # Converting the mode would clip to white what is above 255.
        byte = np.clip(np.asarray(upright) // 256, 0, 255).astype(np.uint8)
        return np.repeat(byte[:, :, None], 3, axis=2)
    if upright.mode in ("P", "PA", "LA"):
        upright = upright.convert("RGBA")
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    # Boundary: as above.
    with suppress(Exception):
        # In its place: each copy of 50 MP is another 200 MB.
        ImageOps.exif_transpose(picture, in_place=True)
    return picture
