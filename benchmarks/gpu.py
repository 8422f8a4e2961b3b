"""Inference on one GPU: pool against bare batches and predict, time and memory by batch size, a hog, two models.

The results go to benchmarks/results/ under the card's name. `--pretend` runs every part without a card, on an engine
that sleeps and fails as CUDA does; its figures say nothing about a GPU.

    python benchmarks/gpu.py [--quick] [--model NAME] [--second NAME] [--pretend] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from beside import Bar, table_of
from inferring import pretend_card
from rich.console import Console

from aiworker.cli.profiles import sample_picture
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import WorkerError
from aiworker.inference.devices import read_machine
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.weights import resolve_weights
from aiworker.settings import load_settings
from aiworker.telemetry.logs import configure_logging

HERE = Path(__file__).parent
SIZES = (1, 2, 4, 8, 16, 32)
_STEPS = 10


@dataclass(frozen=True)
class Card:
    """`engine` and `weights` are what children are told; `grow` lets something else take a tenth of the card."""

    name: str
    engine: str
    weights: tuple[str, str]
    device: str
    pretend: bool
    grow: Callable[[], Awaitable[None]]


@asynccontextmanager
async def real_card(first: str, second: str) -> AsyncIterator[Card]:
    """The first card that NVML shows. Exits where there is none."""
    gpus = read_machine().gpus
    if not gpus:
        sys.exit("no GPU here; --pretend runs every part without one")
    settings = load_settings()
    weights = [str(resolve_weights(name, settings.models_dir)) for name in (first, second)]
    device = f"cuda:{gpus[0].index}"
    hog = await _started("hog", device, str(int(gpus[0].total_mb / _STEPS)))
    assert hog.stdin is not None

    async def grow() -> None:
        assert hog.stdin is not None
        hog.stdin.write(b"\n")
        await hog.stdin.drain()

    try:
        yield Card(gpus[0].name, ChildSpec("").engine, (weights[0], weights[1]), device, False, grow)
    finally:
        hog.kill()
        await hog.wait()


@asynccontextmanager
async def pretended_card() -> AsyncIterator[Card]:
    """A file says how much others have taken."""
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder, "taken")
        taken.write_text("0")

        async def grow() -> None:
            most = pretend_card.CARD_MB - pretend_card.MODEL_MB - pretend_card.IMAGE_MB
            taken.write_text(str(min(most, float(taken.read_text()) + pretend_card.CARD_MB / _STEPS)))

        yield Card("pretended", pretend_card.ENGINE, (str(taken), str(taken)), "auto", True, grow)


async def measure(card: Card, seconds: float, console: Console) -> list[Bar]:
    """Every part in turn."""
    photo = HERE.parent / "aiworker" / "cli" / "data" / "fruits.jpg"
    console.print("[dim]time and memory by batch size[/dim]")
    sizes = ",".join(map(str, SIZES))
    found = await _result("curve", card.engine, card.weights[0], card.device, sizes, str(photo))
    bars = []
    for size, (ms, vram_mb) in found.items():
        bars += [Bar(f"a pass of {size}", ms, "ms"), Bar("  video memory at its peak", vram_mb, "MB")]
    raw = max(1000 * int(size) / ms for size, (ms, _) in found.items())
    console.print("[dim]the pool[/dim]")
    ours, failed = await pool_rate([card.weights[0]], card, seconds)
    bars += [
        Bar("pool", ours, "images/s"),
        Bar("bare batches, the best size", raw, "images/s"),
        Bar("pool / bare batches", ours / raw, "", 0.85, least=True),
    ]
    if not card.pretend:
        console.print("[dim]predict[/dim]")
        alone = await _result("predict", card.weights[0], card.device, str(seconds), str(photo))
        bars.append(Bar("pool / YOLO.predict one by one", ours / alone, "x", 10.0, least=True))
    console.print("[dim]two models on the card[/dim]")
    both, failed_both = await pool_rate(list(card.weights), card, seconds)
    bars += [Bar("two models together", both, "images/s"), Bar("  failed", failed + failed_both, "", 0)]
    console.print("[dim]something else takes the card's memory[/dim]")
    beside, failed = await pool_rate([card.weights[0]], card, 2 * seconds, card.grow)
    bars += [Bar("while the card's memory goes", beside, "images/s"), Bar("  failed", failed, "", 0)]
    return bars


async def pool_rate(
    weights: list[str], card: Card, seconds: float, grow: Callable[[], Awaitable[None]] | None = None
) -> tuple[float, int]:
    """Images a second and failures, with a pool for each of `weights`; `grow` is called ten times meanwhile."""
    rules = PoolRules(max_batch=SIZES[-1])
    pools = [InferencePool([ChildSpec(each, card.engine, card.device)], rules) for each in weights]
    picture, done, failed = sample_picture(), 0, 0
    try:
        for pool in pools:
            await pool.start()
            await pool.wait_ready()
            await pool.detect(picture, Deadline.after(60.0))
        ends = time.monotonic() + seconds

        async def asker(pool: InferencePool) -> None:
            nonlocal done, failed
            while time.monotonic() < ends:
                try:
                    await pool.detect(picture, Deadline.after(60.0))
                except WorkerError:
                    failed += 1
                else:
                    done += time.monotonic() < ends

        async with asyncio.TaskGroup() as group:
            for pool in itertools.islice(itertools.cycle(pools), 3 * SIZES[-1] * len(pools)):
                group.create_task(asker(pool))
            for _ in range(_STEPS if grow else 0):
                await asyncio.sleep(seconds / (_STEPS + 1))
                assert grow is not None
                await grow()
        return done / seconds, failed
    finally:
        for pool in pools:
            await pool.stop()


async def _started(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "inferring.card_runs", *arguments)
    return await asyncio.create_subprocess_exec(*command, cwd=HERE, stdin=pipe, stdout=pipe)


async def _result(*arguments: str) -> Any:
    process = await _started(*arguments)
    output, _ = await process.communicate()
    if process.returncode != 0:
        sys.exit(f"{arguments[0]} failed")
    return json.loads(output.splitlines()[-1])


async def run(options: argparse.Namespace) -> tuple[str, list[Bar]]:
    """The card's name and its figures."""
    holder = pretended_card() if options.pretend else real_card(options.model, options.second)
    async with holder as card:
        seconds = 2.0 if options.quick else 20.0
        return card.name, await measure(card, seconds, Console(stderr=True, highlight=False))


def main() -> None:
    """Measures, prints, keeps, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--model", default="yolov8n", help="a path, or a name that `aiworker models list` shows")
    parser.add_argument("--second", default="yolov8s", help="the other model on the same card")
    parser.add_argument("--pretend", action="store_true", help="without a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    configure_logging("CRITICAL", "bench")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        name, bars = runner.run(run(options))
    Console(highlight=False).print(table_of(bars, f"inference on one {name}"))
    target = options.json
    if target is None and not options.pretend:
        target = HERE / "results" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        target.parent.mkdir(exist_ok=True)
    if target:
        figures = [asdict(bar) | {"met": bar.met} for bar in bars]
        target.write_text(json.dumps({"card": name, "figures": figures}, indent=2) + "\n")
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
