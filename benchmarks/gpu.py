"""Inference on one GPU: pool against bare batches and predict, time and memory by batch size, a hog, two models.

The results go to benchmarks/results/ under the card's name. `--pretend` runs every part without a card, on an engine
that sleeps and fails as CUDA does; its figures say nothing about a GPU.

    python benchmarks/gpu.py [--quick] [--model NAME] [--second NAME] [--processes N...] [--pretend] [--check]
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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
from beside import Bar, table_of
from inferring import pretend_card
from rich.console import Console

from aiworker.cli.profiles import sample_picture
from aiworker.cli.profiles import table_of as profile_table
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import WorkerError
from aiworker.inference.devices import read_machine
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.profile import card_candidates
from aiworker.inference.profiling import Sample, measure_all, serving
from aiworker.inference.weights import resolve_weights
from aiworker.settings import load_settings
from aiworker.telemetry.logs import configure_logging

HERE = Path(__file__).parent
SIZES = (1, 2, 4, 8, 16, 32)
_STEPS = 10


@dataclass(frozen=True)
class Card:
    """`child` is what each of `processes` children is told but for the weights; `grow` lets something else take a tenth
    of the card. `cores` are the machine's."""

    name: str
    cores: int
    child: ChildSpec
    processes: int
    weights: tuple[str, str]
    pretend: bool
    grow: Callable[[], Awaitable[None]]


@asynccontextmanager
async def real_card(first: str, second: str, processes: Sequence[int]) -> AsyncIterator[Card]:
    """The first card that NVML shows, served as measuring says is best. Exits where there is none."""
    machine = read_machine()
    if not machine.gpus:
        sys.exit("no GPU here; --pretend runs every part without one")
    gpu, settings = machine.gpus[0], load_settings()
    weights = [str(resolve_weights(name, settings.models_dir)) for name in (first, second)]
    spec = ChildSpec(weights[0], device=f"cuda:{gpu.index}")
    every = [each for count in processes or (0,) for each in card_candidates(machine.cores, processes=count)]
    choices = [each for each in every if each.engine != "tensorrt"]
    profile = await measure_all(spec, choices, Sample(sample_picture(), max_batch=SIZES[-1]))
    Console(stderr=True, width=120).print(profile_table(profile))
    if profile.chosen is None:
        sys.exit("no engine works on this card")
    best = profile.chosen.candidate
    hog = await _started("hog", spec.device, str(int(gpu.total_mb / _STEPS)))
    assert hog.stdin is not None

    async def grow() -> None:
        assert hog.stdin is not None
        hog.stdin.write(b"\n")
        await hog.stdin.drain()

    try:
        child = serving(spec, best)
        yield Card(gpu.name, machine.cores, child, best.processes, (weights[0], weights[1]), False, grow)
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

        child = ChildSpec(str(taken), pretend_card.ENGINE, "cuda:0", threads=2)
        yield Card("pretended", 2, child, 1, (str(taken), str(taken)), True, grow)


async def measure(card: Card, seconds: float, console: Console) -> list[Bar]:
    """Every part in turn."""
    photo = str(HERE.parent / "aiworker" / "cli" / "data" / "fruits.jpg")
    sizes = ",".join(map(str, SIZES))
    bars: list[Bar] = []

    def note(*found: Bar) -> None:
        # Said at once too: a card that hangs should not take the figures before with it.
        bars.extend(found)
        for bar in found:
            console.print(f"  {bar.name}: {bar.value:.1f} {bar.unit}")

    note(Bar("children", card.processes, ""), Bar("  threads of each that decode", card.child.decoders, ""))
    console.print("[dim]the cores alone[/dim]")
    split = (str(card.processes), str(card.child.decoders), str(seconds / 4))
    note(Bar("decoded and scaled by the cores alone", await _result("decoding", *split, photo), "images/s"))
    if not card.pretend:
        read = await _result("unit", card.child.device, str(seconds / 4), photo)
        note(Bar("decoded and scaled by the card, for one process", read, "images/s"))
    rates = []
    for weights in dict.fromkeys(card.weights):
        name = "" if card.pretend else f"{Path(weights).stem}: "
        console.print(f"[dim]{name}time and memory by batch size[/dim]")
        found = await _result("curve", card.child.engine, weights, card.child.device, sizes, photo)
        for size, (bare, whole, vram_mb) in found.items():
            note(Bar(f"{name}the network, {size} pictures", bare, "ms"), Bar("  with all of a pass", whole, "ms"))
            note(Bar("  video memory at its peak", vram_mb, "MB"))
        raw = max(1000 * int(size) / bare for size, (bare, *_) in found.items())
        console.print(f"[dim]{name}the pool[/dim]")
        ours, failed = await pool_rate([weights], card, seconds)
        rates.append(ours)
        note(
            Bar(f"{name}the bare network at its best size", raw, "images/s"),
            Bar(f"{name}pool", ours, "images/s"),
            Bar("  failed", failed, "", 0),
            Bar(f"{name}pool / bare network", ours / raw, "", 0.85, least=True),
        )
    if not card.pretend:
        console.print("[dim]predict[/dim]")
        alone = await _result("predict", card.weights[0], card.child.device, str(seconds / 2), photo)
        note(Bar("YOLO.predict one by one", alone, "images/s"))
        note(Bar("pool / YOLO.predict one by one", rates[0] / alone, "x", 10.0, least=True))
    console.print("[dim]two models on the card[/dim]")
    both, failed_both = await pool_rate(list(card.weights), card, seconds)
    note(Bar("two models together", both, "images/s"), Bar("  failed", failed_both, "", 0))
    console.print("[dim]something else takes the card's memory[/dim]")
    beside, failed = await pool_rate([card.weights[0]], card, 2 * seconds, card.grow)
    note(Bar("while the card's memory goes", beside, "images/s"), Bar("  failed", failed, "", 0))
    return bars


async def pool_rate(
    weights: list[str], card: Card, seconds: float, grow: Callable[[], Awaitable[None]] | None = None
) -> tuple[float, int]:
    """Images a second and failures, with a pool for each of `weights`; `grow` is called ten times meanwhile."""
    rules = PoolRules(max_batch=SIZES[-1])
    pools = [InferencePool([replace(card.child, weights=each)] * card.processes, rules) for each in weights]
    picture, done, failed = sample_picture(), 0, 0
    try:
        for pool in pools:
            await pool.start()
            while any(lane["state"] == "starting" for lane in pool.snapshot()):
                await asyncio.sleep(0.1)
            await pool.wait_ready()
            await pool.detect(picture, Deadline.after(60.0))
        # A fifth before it counts: graphs are recorded when a size comes for the first times.
        counts = time.monotonic() + seconds / 5
        ends = counts + seconds

        async def asker(pool: InferencePool) -> None:
            nonlocal done, failed
            while time.monotonic() < ends:
                try:
                    await pool.detect(picture, Deadline.after(60.0))
                except WorkerError:
                    failed += 1
                else:
                    done += counts <= time.monotonic() < ends

        async with asyncio.TaskGroup() as group:
            for pool in itertools.islice(itertools.cycle(pools), 3 * SIZES[-1] * card.processes * len(pools)):
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
    """The card's name, with the machine's cores, and its figures."""
    holder = pretended_card() if options.pretend else real_card(options.model, options.second, options.processes)
    async with holder as card:
        seconds = 2.0 if options.quick else options.seconds
        return f"{card.name}, {card.cores} cores", await measure(card, seconds, Console(stderr=True, highlight=False))


def main() -> None:
    """Measures, prints, keeps, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--model", default="yolov8n", help="a path, or a name that `aiworker models list` shows")
    parser.add_argument("--second", default="yolov8s", help="the other model on the same card")
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="only so many children are considered")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
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
