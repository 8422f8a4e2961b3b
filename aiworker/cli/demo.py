"""`aiworker demo`: a real photo goes in over HTTP, and all that came of it is shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aiworker.analyses.base import STAGES
from aiworker.cli.client import DEMO_USER, GatewayClient, gateway_client, photo_url
from aiworker.cli.picture import draw_detections
from aiworker.cli.stack import STATE_DIR, running_stack
from aiworker.domain.errors import ConfigurationError, WorkerError
from aiworker.settings import Settings

_POLL_S = 0.05
_PATIENCE_S = 180.0
_TERMINAL = ("completed", "failed", "cancelled")

OUTPUT_DIR = Path("output")


class JobNotCompleted(WorkerError):
    """The job did not complete. `note` says how it ended."""

    code = "job_not_completed"


async def run_demo(settings: Settings, photo: str | None, console: Console) -> None:
    """Starts everything, sends `photo` (a file or address; None is the one in the package), shows and draws the result.

    Raises a WorkerError unless all of that happened.
    """
    url = photo_url(photo) if photo else photo_url(str(_packaged_photo()))
    if settings.inference_engine == "auto":
        # One photo does not pay for measuring what is fastest.
        settings = settings.model_copy(update={"inference_engine": "torch"})
    started = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:5.1f} s[/dim]  {text}")

    async with running_stack(settings, say, log_dir=STATE_DIR / "logs") as stack:
        async with gateway_client(stack.gateway_url, stack.keys.service_key or "") as client:
            sent = time.perf_counter()
            # The demo shows the whole way, so it never takes the answer from the cache.
            reply = await client.enqueue("sofia_image", {"imageUrl": url}, DEMO_USER, use_cache=False)
            say(f"enqueued [bold]{reply['jobId']}[/bold] in {1000 * (time.perf_counter() - sent):.0f} ms")
            job = await follow(client, str(reply["jobId"]), console)
        if job["status"] != "completed":
            raise JobNotCompleted(f"the job ended {job['status']}: {job.get('error')} ({job.get('code')})")
        show_result(job, console)
        picture = await asyncio.to_thread(_draw, await _photo_bytes(url, photo), job["result"], photo)
        console.print(f"\npicture with boxes: [bold]{picture}[/bold]")


def _packaged_photo() -> Path:
    return Path(str(files("aiworker.cli") / "data" / "fruits.jpg"))


async def follow(
    client: GatewayClient, job_id: str, console: Console, on_change: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Shows a bar with the stage until the job has ended, and returns it. Raises JobNotCompleted after a while."""
    columns = (TextColumn("       {task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("pending", total=100)
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            job = await client.status(job_id)
            bar.update(task, completed=job["progress"], description=_described(job))
            if on_change:
                on_change(job)
            if job["status"] in _TERMINAL:
                return job
            await asyncio.sleep(_POLL_S)
    raise JobNotCompleted(f"job {job_id} has not ended after {_PATIENCE_S:.0f} s: see {STATE_DIR / 'logs'}")


def _described(job: dict[str, Any]) -> str:
    return f"{job['status']}: {job['stage']}" if job["status"] == "processing" and job["stage"] else str(job["status"])


def show_result(job: dict[str, Any], console: Console) -> None:
    """Detections, foods with macros, who answered, and the time of each stage."""
    result = job["result"]
    if result.get("detections") is not None:
        console.print(_detections_table(result["detections"]))
    if result.get("foods") is not None:
        console.print(_foods_table(result))
    if result.get("message"):
        console.print(f"\n[bold]{result.get('personalityName', '')}[/bold]: {result['message']}", highlight=False)
    console.print(_who_answered(result))
    spent = result["stages_ms"]
    stages = "   ".join(f"{stage} {spent[stage]:.0f} ms" for stage in STAGES if stage in spent)
    console.print(f"[bold]Time[/bold]  {stages}   in all {job['processingTime']} ms")


def _detections_table(detections: list[dict[str, Any]]) -> Table:
    table = Table(title="Detections (YOLO)", title_justify="left")
    for heading in ("objeto", "class", "confidence", "box x1, y1, x2, y2 (px)"):
        table.add_column(heading)
    for found in detections:
        box = ", ".join(f"{edge:.0f}" for edge in found["box"])
        table.add_row(found["name_pt"], found["name"], f"{found['confidence']:.2f}", box)
    return table


def _foods_table(result: dict[str, Any]) -> Table:
    table = Table(title="Foods (macros from TACO)", title_justify="left", show_footer=True)
    totals = result["totals"]
    columns = (("g", "grams"), ("kcal", "kcal"), ("protein g", "protein_g"), ("carbs g", "carbs_g"), ("fat g", "fat_g"))
    table.add_column("alimento", footer="total")
    for heading, key in columns:
        mark = "+" if key in totals["incomplete"] else ""
        table.add_column(heading, footer=_figure(totals[key]) + mark, justify="right")
    partial = any(key in totals["incomplete"] for _, key in columns)
    table.add_column("TACO", footer="+ some food has no figure" if partial else "")
    for food in result["foods"]:
        figures = (_figure(food[key]) for _, key in columns)
        table.add_row(food["name"], *figures, food["taco_name"] or "not in the table")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _who_answered(result: dict[str, Any]) -> str:
    provider = result.get("provider")
    if provider:
        tokens = f"{provider['prompt_tokens']} + {provider['answer_tokens']} tokens"
        return f"[bold]Answered by[/bold]  {provider['name']} / {provider['model']} ({tokens})"
    why = ", ".join(f"{name}: {code}" for name, code in result["providers_skipped"].items()) or result["degraded_code"]
    return f"[bold]No language model answered[/bold]  ({why}); degraded: true, foods by rule"


async def _photo_bytes(url: str, photo: str | None) -> bytes:
    if url.startswith("data:"):
        return await asyncio.to_thread((Path(photo) if photo else _packaged_photo()).read_bytes)
    with suppress(aiohttp.ClientError, TimeoutError):
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
            session.get(url) as answer,
        ):
            return await answer.read()
    raise ConfigurationError("the photo cannot be fetched a second time to draw on it: give a file")


def _draw(photo: bytes, result: dict[str, Any], name: str | None) -> Path:
    stem = Path(name.split("?")[0]).stem if name else "fruits"
    return draw_detections(photo, result["detections"], OUTPUT_DIR / f"{stem}-detections.png").resolve()
