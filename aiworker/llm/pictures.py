"""A photo as a language model reads it: upright, no larger than it can see, as JPEG, and without the camera's notes.

What the phone wrote into the file (place, time, owner) is not the model's business, so nothing is passed on as it came.
"""

from __future__ import annotations

import asyncio
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from aiworker.domain.errors import ImageUnreadable, MediaTooLarge, MediaTypeUnsupported
from aiworker.telemetry.threads import full_pool

# Ollama's runner for Qwen dies of a side below 28 pixels or of one 200 times the other.
LEAST_SIDE = 64
_LONGEST_SIDE = 100 * LEAST_SIDE
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"})
_QUALITY = 85
_AT_A_TIME = 2
# 1280 patches of 28 x 28 pixels, which is what leaves room for a prompt in a context of 4096 tokens.
_DEFAULT_PIXELS = 1280 * 28 * 28
_LEAST_PIXELS = 336 * 336


class Pictures:
    """Prepares pictures in threads, few at a time, since a decoded photo is a hundred megabytes."""

    def __init__(self) -> None:
        # Not a semaphore: who is cancelled leaves, and the decoder goes on.
        self._threads = full_pool(_AT_A_TIME, "pictures")

    async def prepare(self, images: tuple[bytes, ...], pixels: int) -> tuple[bytes, ...]:
        """JPEGs of at most `pixels` each. Raises MediaTypeUnsupported, ImageUnreadable, MediaTooLarge."""
        loop = asyncio.get_running_loop()
        return tuple([await loop.run_in_executor(self._threads, as_jpeg, image, pixels) for image in images])


def as_jpeg(image: bytes, pixels: int) -> bytes:
    """`image` as a JPEG of at most `pixels`, at least `LEAST_SIDE` wide and high (padded with white).

    Raises MediaTypeUnsupported, ImageUnreadable, MediaTooLarge.
    """
    try:
        with warnings.catch_warnings():
            # The limit of pixels is checked where a picture comes in; Pillow's own is only its second line.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=_formats_of(image)) as picture:
                width, height = fitting(picture.width, picture.height, pixels)
                # A sliver gets wider by its padding.
                longest = max(1, min(_LONGEST_SIDE, pixels // LEAST_SIDE))
                picture.thumbnail((min(width, longest), min(height, longest)), reducing_gap=2.0)
                upright = _rgb(_upright(picture))
    except UnidentifiedImageError:
        if image[4:8] == b"ftyp":
            raise ImageUnreadable("the file ends before its header does") from None
        raise MediaTypeUnsupported("not JPEG, PNG, WebP, GIF or HEIC") from None
    except Image.DecompressionBombError:
        raise MediaTooLarge("picture over the decoder's own limit") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        # Boundary: decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more on damaged files.
        raise ImageUnreadable(type(error).__name__) from None
    out = io.BytesIO()
    padded = _padded(upright)
    # Pillow would write a comment that it read, which may name people and places.
    padded.info.clear()
    padded.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _formats_of(image: bytes) -> tuple[str, ...]:
    """What is not named here is refused before a byte of it is parsed."""
    if image[4:8] != b"ftyp" or image[8:12] not in _HEIF_BRANDS:
        return _FORMATS
    # Most workers never meet a HEIC, and its decoder takes memory.
    import pillow_heif  # noqa: PLC0415

    pillow_heif.register_heif_opener(thumbnails=False)
    return ("HEIF",)


def fitting(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The size of a picture scaled down, never up, to at most `pixels`."""
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    shorter = max(1, int(min(width, height) * scale))
    longer = max(1, min(int(max(width, height) * scale), pixels // shorter))
    return (longer, shorter) if width >= height else (shorter, longer)


def pixels_read(model_info: Mapping[str, Any]) -> int:
    """How many pixels a model reads, by `model_info` of Ollama's `/api/show`; a common size where it does not say."""
    of = {
        key.rpartition(".vision.")[2]: value
        for key, value in model_info.items()
        if ".vision." in key and isinstance(value, int) and value > 0
    }
    if "image_size" in of:
        stated = of["image_size"] ** 2 * of.get("max_num_tiles", 1)
    else:
        stated = of.get("max_pixels", _DEFAULT_PIXELS)
    return max(_LEAST_PIXELS, min(stated, _DEFAULT_PIXELS))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001
        # Boundary: camera metadata is broken in more ways than the parser names; the pixels are good.
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Converting the mode would clip to white what is above 255.
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if picture.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")


def _padded(picture: Image.Image) -> Image.Image:
    width, height = max(LEAST_SIDE, picture.width), max(LEAST_SIDE, picture.height)
    if (width, height) == picture.size:
        return picture
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return canvas
