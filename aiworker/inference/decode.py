"""Encoded picture in, upright RGB out. Used in the child only."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge
from aiworker.inference.interface import Picture

# HEIC comes with a decoder of its own; everything not named here is refused before a byte of it is parsed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


def decode(image: bytes, max_pixels: int) -> Picture:
    """RGB, EXIF orientation applied; the first frame of an animation.

    Raises MediaTooLarge above `max_pixels`, before any pixel is decoded, and ImageUnreadable for anything else.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at its own pixel limit; ours is checked below, on the size in the header.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=_FORMATS) as picture:
                _check_size(picture, max_pixels)
                pixels = _upright_rgb(picture)
                return Picture(pixels, pixels.shape[1], pixels.shape[0])
    except MediaTooLarge:
        raise
    except Image.DecompressionBombError:
        raise MediaTooLarge("picture over the decoder's own limit") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        # Boundary: decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more on damaged files.
        raise ImageUnreadable(type(error).__name__) from None


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise MediaTooLarge("picture over the pixel limit", width=width, height=height, limit_pixels=max_pixels)


def _upright_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    picture.load()
    upright = _upright(picture)
    if upright.mode in _SIXTEEN_BITS:
        # Converting the mode would clip to white what is above 255.
        byte = np.clip(np.asarray(upright) // 256, 0, 255).astype(np.uint8)
        return np.repeat(byte[:, :, None], 3, axis=2)
    if upright.mode in ("P", "PA", "LA"):
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001
        # Boundary: camera metadata is broken in more ways than the parser names; the pixels are good.
        return picture
