"""JPEGs to what the model takes without the cores: a card's JPEG unit decodes them, and its kernels scale them.

A data-centre card (A100, H100 and later) has such a unit, and its pixels are libjpeg-turbo's to within one in 255. The
decoder that other cards have, in their kernels, gives other pixels and is not asked. See docs/adr/016.
Imported on a card only.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

import torch
from nvidia import nvimgcodec
from PIL import Image

from aiworker.inference.engines.letterbox import GREY, Fit, fit
from aiworker.inference.engines.scaling import Scaling, scale
from aiworker.inference.interface import Jpeg, Prepared

_MOST_PIXELS = 64_000_000
"""Of pictures that are on the card at full size together: 192 MB, or one picture that is larger."""


class CardReader:
    """Used by one thread at a time."""

    def __init__(self, device: torch.device, size: int, stride: int) -> None:
        """`size` is the model's longer side. Raises RuntimeError where the card has no JPEG unit, or where there is no
        C compiler, which Triton needs.
        """
        self._device, self._size, self._stride = device, size, stride
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._params = nvimgcodec.DecodeParams(color_spec=nvimgcodec.ColorSpec.SRGB, apply_exif_orientation=False)
        with _without_a_word():
            unit = nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)
            self._decoder = nvimgcodec.Decoder(device_id=device.index or 0, max_num_cpu_threads=1, backends=[unit])
        if None in self.read([_example()]):
            raise RuntimeError("this card has no JPEG unit")

    def read(self, jpegs: Sequence[Jpeg]) -> list[Prepared | None]:
        """None for what the unit does not read, or finds no memory for."""
        return [prepared for part in _parts(jpegs) for prepared in self._read(part)]

    def _read(self, jpegs: list[Jpeg]) -> list[Prepared | None]:
        with torch.cuda.stream(self._stream):
            try:
                images = self._decoder.decode(
                    [nvimgcodec.CodeStream(jpeg.data) for jpeg in jpegs],
                    params=self._params,
                    cuda_stream=self._stream.cuda_stream,
                )
                prepared = self._prepared(list(zip(jpegs, images, strict=True)))
            except torch.OutOfMemoryError:
                prepared = [None] * len(jpegs)
            # The model runs on another stream, and the pictures at full size end here.
            self._stream.synchronize()
        return prepared

    def _prepared(self, decoded: list[tuple[Jpeg, nvimgcodec.Image | None]]) -> list[Prepared | None]:
        """Those of one shape side by side, in the order given."""
        places = [fit(jpeg.width, jpeg.height, self._size, self._stride) for jpeg, _ in decoded]
        sound = [place for place, (jpeg, image) in enumerate(decoded) if _is_as_told(jpeg, image)]
        canvases: dict[int, torch.Tensor] = {}
        for shape in {places[index].shape for index in sound}:
            alike = [index for index in sound if places[index].shape == shape]
            grey = torch.full((len(alike), *shape, 3), GREY, dtype=torch.uint8, device=self._device)
            canvases |= zip(alike, grey, strict=True)
        if sound:
            scale([_scaling(*decoded[index], places[index], canvases[index]) for index in sound], self._device)
        return [
            Prepared(canvases[index], jpeg.width, jpeg.height) if index in canvases else None
            for index, (jpeg, _) in enumerate(decoded)
        ]


def _is_as_told(jpeg: Jpeg, image: nvimgcodec.Image | None) -> bool:
    stored = (jpeg.width, jpeg.height, 3) if jpeg.orientation > 4 else (jpeg.height, jpeg.width, 3)
    return image is not None and tuple(image.shape) == stored


def _scaling(jpeg: Jpeg, image: nvimgcodec.Image, place: Fit, canvas: torch.Tensor) -> Scaling:
    """Turned upright on its way, as `letterbox.upright` does it."""
    memory = image.__cuda_array_interface__
    from_row = memory["strides"][0] if memory["strides"] else 3 * image.shape[1]
    target = canvas.data_ptr() + place.top * canvas.stride(0) + place.left * 3
    down, across = canvas.stride(0), 3
    if jpeg.orientation in (2, 3, 6, 7):
        target, across = target + (place.width - 1) * across, -across
    if jpeg.orientation in (3, 4, 7, 8):
        target, down = target + (place.height - 1) * down, -down
    steps = (place.height, place.width, down, across)
    if jpeg.orientation > 4:
        steps = (place.width, place.height, across, down)
    return Scaling(memory["data"][0], image.shape[0], image.shape[1], from_row, target, *steps)


def _parts(jpegs: Sequence[Jpeg]) -> Iterator[list[Jpeg]]:
    part: list[Jpeg] = []
    pixels = 0
    for jpeg in jpegs:
        pixels += jpeg.width * jpeg.height
        if part and pixels > _MOST_PIXELS:
            yield part
            part, pixels = [], jpeg.width * jpeg.height
        part.append(jpeg)
    if part:
        yield part


def _example() -> Jpeg:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "olive").save(buffer, "JPEG")
    return Jpeg(buffer.getvalue(), 64, 48)


@contextlib.contextmanager
def _without_a_word() -> Iterator[None]:
    """nvImageCodec writes to stderr, from C, which decoders for other formats are not installed."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
