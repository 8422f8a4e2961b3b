"""Inference beside a FastAPI service, LitServe, mosec and the engine's bare network, and its bars.

Same photos, weights and machine, in turn, medians. The peers' environment is made below .benchmarks/ at the first run.

    python benchmarks/inference_peers.py [--quick] [--only throughput,decoding,...] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import uvloop
from beside import Bar, table_of
from inferring import decoding, neighbour, scheduling, throughput
from rich.console import Console

from aiworker.cli.profiles import sample_picture
from aiworker.inference.messages import ChildSpec
from aiworker.inference.profile import FALLBACK, Candidate, candidates
from aiworker.inference.profiling import Sample, known_or_measured, profile_file
from aiworker.inference.weights import resolve_weights
from aiworker.settings import Settings, load_settings
from aiworker.telemetry.logs import configure_logging

ROOT = Path(__file__).parent.parent
SECTIONS = ("throughput", "decoding", "neighbour", "scheduling")
QUICK_SECTIONS = ("throughput", "decoding")


async def measure(options: argparse.Namespace, sections: list[str], console: Console) -> list[Bar]:
    """Every section in turn."""
    settings = load_settings(yolo_model=options.model, inference_precision=options.precision)
    bars: list[Bar] = []
    if "throughput" in sections:
        ground = await _ground(settings, options, quick=options.quick)
        bars += await throughput.measure(ground, console)
    if "decoding" in sections:
        bars += decoding.measure(ROOT / "aiworker" / "cli" / "data" / "fruits.jpg", 3 if options.quick else 9)
    if "neighbour" in sections:
        bars += await neighbour.apart(options.model, quick=options.quick)
    if "scheduling" in sections:
        bars += await scheduling.measure(quick=options.quick, only="", console=console)
    return bars


async def _ground(settings: Settings, options: argparse.Namespace, *, quick: bool) -> throughput.Ground:
    weights = resolve_weights(settings.yolo_model, settings.models_dir)
    cache = (settings.models_dir / ".cache").absolute()
    spec = ChildSpec(str(weights), device="cpu", cache_dir=str(cache))
    split = options.split or await _best(spec, cache, settings.inference_precision)
    seconds, rounds = (4.0, 1) if quick else (10.0, 3)
    return throughput.Ground(str(weights), str(cache), _photos(options.photos), split, seconds, rounds)


async def _best(spec: ChildSpec, cache: Path, precision: str) -> Candidate:
    """Of what may win; litserve and mosec are given the same engine."""
    choices = [
        each
        for each in candidates(len(os.sched_getaffinity(0)), precision=precision)
        if each.engine != FALLBACK and each.precision == precision
    ]
    profile = await known_or_measured(profile_file(cache, spec, choices), spec, choices, Sample(sample_picture()))
    if profile.chosen is None:
        sys.exit("no engine runs here: " + "; ".join(each.fault for each in profile.measured))
    return profile.chosen.candidate


def _photos(folder: Path | None) -> list[Path]:
    if folder is not None:
        return sorted(folder.glob("*.jpg"))
    ultralytics = importlib.util.find_spec("ultralytics")
    assert ultralytics is not None
    assert ultralytics.origin is not None
    assets = Path(ultralytics.origin).parent / "assets"
    return [ROOT / "aiworker" / "cli" / "data" / "fruits.jpg", assets / "bus.jpg", assets / "zidane.jpg"]


def _split(text: str) -> Candidate:
    engine, _, split = text.partition(":")
    processes, _, threads = split.partition("x")
    return Candidate(engine, "fp32", int(processes), int(threads))


def main() -> None:
    """Measures, prints, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"short runs of {' and '.join(QUICK_SECTIONS)} only")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--model", default="yolov8n", help="a path, or a name that `aiworker models list` shows")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="its *.jpg instead of the packaged photos")
    parser.add_argument("--split", type=_split, metavar="ENGINE:PxT", help="such as onnx:2x1, not the best")
    options = parser.parse_args()
    sections = options.only.split(",") if options.only else list(QUICK_SECTIONS if options.quick else SECTIONS)
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    configure_logging("CRITICAL", "bench")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bars = runner.run(measure(options, sections, Console(stderr=True, highlight=False)))
    Console(highlight=False).print(table_of(bars, "inference"))
    if options.json:
        options.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=2) + "\n")
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
