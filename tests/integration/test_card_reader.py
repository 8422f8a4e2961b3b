"""What a card's JPEG unit gives the model, against what the cores give it. Needs a card that has one."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from fakes.shared_data import SHARED_DATA
from PIL import Image

from aiworker.cli.profiles import sample_picture
from aiworker.inference.child.decode import decode, plain_jpeg
from aiworker.inference.engines.letterbox import prepare
from aiworker.inference.interface import Jpeg, Prepared

pytest.importorskip("nvidia.nvimgcodec", exc_type=ImportError)
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no card", allow_module_level=True)
card_reader = pytest.importorskip("aiworker.inference.engines.card_reader", exc_type=ImportError)

_LIMIT = 50_000_000
_SIZES = [(16, 16), (17, 33), (90, 16), (333, 777), (500, 375), (641, 479), (1920, 1080)]


@pytest.fixture(scope="module")
def reader() -> Any:
    try:
        return card_reader.CardReader(torch.device("cuda:0"), 640, 32)
    except RuntimeError as error:
        pytest.skip(str(error))


def _photo(width: int, height: int, orientation: int = 1, **options: object) -> bytes:
    """The demo's photo, cut to size, so that chroma differs from place to place."""
    picture = Image.open(io.BytesIO(sample_picture())).resize((width, height))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(buffer, "JPEG", exif=exif, **{"quality": 90, "subsampling": 2} | options)
    return buffer.getvalue()


def _jpeg(image: bytes) -> Jpeg:
    jpeg = plain_jpeg(image, _LIMIT)
    assert jpeg is not None
    return jpeg


def _by_cores(image: bytes) -> Prepared:
    return prepare(decode(image, _LIMIT), 640, 32)


def _is_same(by_card: Prepared, image: bytes) -> bool:
    by_cores = _by_cores(image)
    pixels, expected = by_card.pixels.cpu().numpy().astype(int), np.asarray(by_cores.pixels)  # type: ignore[attr-defined]
    same_size = (by_card.width, by_card.height) == (by_cores.width, by_cores.height)
    # The unit rounds some of its sums the other way.
    return bool(same_size and pixels.shape == expected.shape and np.abs(pixels - expected).max() <= 2)


def _assert_same(by_card: Prepared | None, image: bytes, name: object) -> None:
    assert by_card is not None, name
    assert _is_same(by_card, image), name


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_size_and_subsampling(reader: Any, subsampling: int) -> None:
    images = [_photo(*size, subsampling=subsampling) for size in _SIZES]
    for size, image, prepared in zip(_SIZES, images, reader.read([_jpeg(each) for each in images]), strict=True):
        _assert_same(prepared, image, size)


def test_every_orientation_restarts_and_own_tables(reader: Any) -> None:
    images = [_photo(300, 200, orientation=each) for each in range(1, 9)]
    images += [_photo(300, 200, restart_marker_rows=1), _photo(300, 200, optimize=True)]
    different = [
        place
        for place, (image, prepared) in enumerate(
            zip(images, reader.read([_jpeg(each) for each in images]), strict=True)
        )
        if prepared is None or not _is_same(prepared, image)
    ]
    assert not different


def test_photos(reader: Any) -> None:
    for file in sorted((SHARED_DATA / "images").glob("*.jpg")):
        image = file.read_bytes()
        if (jpeg := plain_jpeg(image, _LIMIT)) is not None:
            _assert_same(reader.read([jpeg])[0], image, file.name)


def test_damage_to_one_picture_is_not_its_neighbours(reader: Any) -> None:
    good, chance = _photo(500, 375), random.Random(7)
    for _ in range(100):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 40)):
            bad[chance.randrange(200, len(bad) - 2)] = chance.randrange(256)
        jpegs = [_jpeg(good), Jpeg(bytes(bad), 500, 375), _jpeg(good)]
        before, _, after = reader.read(jpegs)
        # The unit may refuse all that it was given together; the cores then decode that.
        for each in (before, after):
            assert each is None or _is_same(each, good)
    _assert_same(reader.read([_jpeg(good)])[0], good, "at the end")


def test_what_lies_about_its_size_is_left_to_the_cores(reader: Any) -> None:
    good = _photo(500, 375)
    lied, true = reader.read([Jpeg(good, 400, 375), _jpeg(good)])
    assert lied is None
    _assert_same(true, good, "the other")


def test_more_than_fit_on_the_card_at_once(reader: Any) -> None:
    large, small = _photo(6000, 4000), _photo(64, 64)
    images = [small, large, large, small, large]
    for image, prepared in zip(images, reader.read([_jpeg(each) for each in images]), strict=True):
        _assert_same(prepared, image, len(image))
