"""What a phone's photo costs on its way to a model: how long the event loop is held, and how much is sent.

The photo comes as a data URL. The floor for holding the loop is the loop with nothing to do; the other way is what one
would write first: decode on the loop with the standard library, and send the file as it came. Taken in turns, median of
several rounds. Gemini's tokens are by its documented rule (258 for each tile of 768 x 768 pixels).

    python benchmarks/photo_to_model.py [--quick] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from io import BytesIO
from math import ceil
from pathlib import Path

import uvloop
from beside import Bar, table_of
from PIL import Image
from rich.console import Console

from aiworker.domain.deadline import Deadline
from aiworker.llm.gemini import PIXELS
from aiworker.llm.pictures import Pictures
from aiworker.media.fetch import HttpImageSource, MediaLimits

PHONE = (4032, 3024)
TILE, TOKENS_PER_TILE = 768, 258
_TICK_S = 0.001


def phone_photo() -> bytes:
    """12 million pixels with about as much detail as a camera's."""
    small = Image.effect_noise((PHONE[0] // 8, PHONE[1] // 8), 90).convert("RGB")
    out = BytesIO()
    small.resize(PHONE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


async def longest_stall(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Milliseconds for which the loop was held at most while `work` ran, and those that `work` took."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.perf_counter()
            worst = max(worst, now - last - _TICK_S)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    worst = 0.0
    started = time.perf_counter()
    await work()
    took = time.perf_counter() - started
    await asyncio.sleep(2 * _TICK_S)
    ticking.cancel()
    return 1000 * worst, 1000 * took


async def measure(rounds: int) -> list[Bar]:
    photo = phone_photo()
    padded = photo + bytes(max(0, 12_000_000 - len(photo)))
    url = "data:image/jpeg;base64," + b64encode(padded).decode()
    images = HttpImageSource(MediaLimits(max_bytes=13_000_000, max_pixels=50_000_000, timeout_s=10))
    pictures = Pictures()

    async def nothing() -> None:
        await asyncio.sleep(0.05)

    async def on_the_loop() -> None:
        b64decode(url.partition(",")[2], validate=True)

    async def fetched() -> bytes:
        return await images.fetch(url, Deadline.after(60))

    async def prepared() -> tuple[bytes, ...]:
        return await pictures.prepare((photo,), PIXELS)

    ways = {"nothing": nothing, "on the loop": on_the_loop, "fetched": fetched, "prepared": prepared}
    stalls: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            stalls[name].append(await longest_stall(way))
    (sent,) = await prepared()
    await images.close()

    def median(name: str, index: int) -> float:
        return statistics.median(pair[index] for pair in stalls[name])

    floor, naive, ours = (median(name, 0) for name in ("nothing", "on the loop", "fetched"))
    with Image.open(BytesIO(sent)) as seen:
        size = seen.size
    return [
        Bar("loop held, nothing to do", floor, "ms"),
        Bar("loop held, 12 MB data URL decoded on it", naive, "ms"),
        Bar("loop held, 12 MB data URL fetched", ours, "ms"),
        Bar("the same, ratio", ours / naive, "x", 0.5),
        Bar("time to fetch it", median("fetched", 1), "ms"),
        Bar("loop held, 12 megapixels prepared for a model", median("prepared", 0), "ms", 50),
        Bar("time to prepare it", median("prepared", 1), "ms", 500),
        Bar("bytes sent, ratio to the file", len(sent) / len(photo), "x", 0.5),
        Bar("Gemini's tokens, ratio to the file's", tokens(*size) / tokens(*PHONE), "x", 0.3),
    ]


def tokens(width: int, height: int) -> int:
    """By the documented rule for pictures above 384 pixels."""
    return ceil(width / TILE) * ceil(height / TILE) * TOKENS_PER_TILE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bars = runner.run(measure(3 if asked.quick else 15))
    Console().print(table_of(bars, "a phone's photo on its way to a model"))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=1))
    return int(asked.check and not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
