"""The commands. Heavy imports happen inside them, so that `--help` is quick and children stay light."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aiworker.domain.errors import WorkerError
from aiworker.settings import Settings, load_settings

_console = Console(highlight=False)
_stderr = Console(stderr=True, highlight=False)

_GATEWAY_OPTION = click.option(
    "--gateway", default=None, metavar="URL", help="Where the gateway listens; default http://127.0.0.1:$PORT."
)


class _Commands(click.Group):
    """Errors of ours become one sentence on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WorkerError as error:
            _stderr.print(f"[red]error[/red] {escape(error.note or error.code)} ({error.code})")
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="aiworker")
def main() -> None:
    """Runs slow AI analyses in the background: a durable PostgreSQL queue, YOLO in-process, Ollama and Gemini.

    Settings come from the environment (DATABASE_URL, OLLAMA_URL, GEMINI_API_KEY, YOLO_MODEL, ...).
    Start with `aiworker demo`; when something is wrong, `aiworker doctor`.
    """


@main.command()
@click.argument("photo", required=False)
def demo(photo: str | None) -> None:
    """Start everything, analyse one real photo, show all that was found, stop.

    PHOTO is a file or an http(s) address; without it, a photo of fruits that the package brings along.
    Exit code 0 only if the photo was analysed and the picture with its boxes was written.
    """
    from aiworker.cli.demo import run_demo

    # Whatever else runs here, the demo finds ports of its own.
    _run(run_demo(load_settings(port=0, worker_port=0), photo or None, _console))


@main.command()
def up() -> None:
    """Start PostgreSQL (unless DATABASE_URL is set), the gateway and the worker.

    Ctrl-C or SIGTERM stops them in order: running jobs finish or go back to the queue. Where one of them ends by itself
    the other is stopped too: whoever supervises this starts it again.
    """
    from aiworker.cli.up import run_up

    _run(run_up(load_settings(), _stderr))


@main.command()
@click.option("--fd", type=int, default=None, hidden=True)
@click.option("--die-with-parent", is_flag=True, hidden=True)
def worker(fd: int | None, die_with_parent: bool) -> None:
    """Claim jobs and run them; health and metrics on WORKER_HOST:WORKER_PORT.

    SIGTERM drains: running jobs get WORKER_DRAIN_TIMEOUT_MS, then go back to the queue without losing an attempt.
    """
    from aiworker.cli import serve
    from aiworker.cli.processes import run_worker

    settings = load_settings()
    if die_with_parent:
        serve.die_with_parent()
    listener = _inherited(fd) or serve.listening_socket(settings.worker_host, settings.worker_port, "WORKER_PORT")
    serve.run(run_worker(settings, listener))


@main.command()
@click.option("--fd", type=int, default=None, hidden=True)
@click.option("--die-with-parent", is_flag=True, hidden=True)
def gateway(fd: int | None, die_with_parent: bool) -> None:
    """Serve the HTTP API on HOST:PORT: enqueue, status, cancel.

    Beyond loopback it refuses to start without SUPABASE_JWT_SECRET or SUPABASE_SERVICE_ROLE_KEY.
    """
    from aiworker.cli import serve
    from aiworker.cli.keys import keys_for
    from aiworker.cli.processes import run_gateway
    from aiworker.cli.stack import STATE_DIR

    settings = load_settings()
    if die_with_parent:
        serve.die_with_parent()
    keys = keys_for(settings, STATE_DIR)
    listener = _inherited(fd) or serve.listening_socket(settings.host, settings.port, "PORT")
    serve.run(run_gateway(settings, keys, listener))


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be applied.")
def migrate(dry_run: bool) -> None:
    """Bring the database at DATABASE_URL up to date. Safe to run again, and from several machines at once."""
    from aiworker.cli.wiring import database_url
    from aiworker.queue import migrate as migrations

    url = database_url(load_settings())
    names = asyncio.run(migrations.pending(url) if dry_run else migrations.migrate(url))
    for name in names:
        _console.print(f"{'would apply' if dry_run else 'applied'} {name}")
    if not names:
        _console.print("up to date")


@main.command()
@click.option("--dry-run", is_flag=True, help="Do everything, take it back, and say what it was. Jobs wait meanwhile.")
@click.option("--give-up-after", default=24.0, metavar="HOURS", help="Unfinished jobs older than this end as failed.")
def adopt(dry_run: bool, give_up_after: float) -> None:
    """Take over a table analysis_jobs of another shape: MaxNutrition's, its specification's, or an older aiworker's.

    No row is lost: the old table stays beside the new one, closed to everybody. Stop the old worker before.
    """
    from aiworker.cli.adoption import run_adoption

    _run(run_adoption(load_settings(), give_up_after, dry_run, _console))


@main.command()
@click.argument("job_type", metavar="TYPE", default="*")
def pause(job_type: str) -> None:
    """Hand out no more jobs of TYPE (default: of all types). Running jobs go on; new ones wait."""
    from aiworker.cli.jobs import pause_jobs

    _run(pause_jobs(load_settings(), job_type, _console))


@main.command()
@click.argument("job_type", metavar="TYPE", default="*")
def resume(job_type: str) -> None:
    """Take back a pause of TYPE (default: the one of all types)."""
    from aiworker.cli.jobs import resume_jobs

    _run(resume_jobs(load_settings(), job_type, _console))


@main.command()
@click.argument("job_type", metavar="TYPE")
@click.option("--photo", metavar="FILE|URL", help="For sofia_image: becomes input.imageUrl.")
@click.option("--text", metavar="TEXT", help="For sofia_text (input.text) and unified_assistant (input.message).")
@click.option("--input", "raw", metavar="JSON", help="The whole input, for any type.")
@click.option("--user", type=click.UUID, default=None, help="The user that the job is for; default: the demo's.")
@click.option("--wait", is_flag=True, help="Show progress until the job has ended, then its result.")
@_GATEWAY_OPTION
def enqueue(
    job_type: str,
    photo: str | None,
    text: str | None,
    raw: str | None,
    user: UUID | None,
    wait: bool,
    gateway: str | None,
) -> None:
    """Send a job of TYPE (sofia_image, sofia_text, unified_assistant) to the gateway.

    \b
    aiworker enqueue sofia_text --text "comi 200 g de arroz e um ovo frito" --wait
    aiworker enqueue sofia_image --photo prato.jpg --wait
    """
    from aiworker.cli.jobs import enqueue_job

    _run(enqueue_job(_target(gateway), job_type, _job_input(job_type, photo, text, raw), user, wait, _console))


@main.command()
@click.argument("job_id")
@_GATEWAY_OPTION
def status(job_id: str, gateway: str | None) -> None:
    """Show a job as JSON."""
    from aiworker.cli.jobs import show_job

    _run(show_job(_target(gateway), job_id, _console))


@main.command()
@click.argument("job_id")
@_GATEWAY_OPTION
def cancel(job_id: str, gateway: str | None) -> None:
    """Cancel a job: at once while it waits, within a second while it runs."""
    from aiworker.cli.jobs import cancel_job

    _run(cancel_job(_target(gateway), job_id, _console))


@main.group()
def models() -> None:
    """YOLO weights and Ollama's models: what there is, and getting it."""


@models.command("list")
def list_models() -> None:
    """Show the YOLO weights that can be pulled, which of them are here, and the models that Ollama has."""
    from aiworker.cli.models import ollama_table, weights_table

    settings = load_settings()
    _console.print(weights_table(settings))
    if in_ollama := ollama_table(settings):
        _console.print(in_ollama)


@models.command("pull")
@click.argument("name", required=False)
def pull_model(name: str | None) -> None:
    """Get YOLO weights by NAME (default: YOLO_MODEL), or have Ollama pull a model of that NAME.

    Weights are checked against a known SHA-256. They come from the official source, else from the same file inside a
    package of the package index.
    """
    from aiworker.cli.models import pull

    settings = load_settings()
    pull(settings, name or settings.yolo_model, _console)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--quick | --soak 30m] [--live] [--keep]")
def bench(arguments: tuple[str, ...]) -> None:
    """The gate before a deploy: the real system under the real mix of work, judged against its targets.

    `aiworker bench --help` says more. Exit code 1 when a target is missed.
    """
    from aiworker.cli.bench import run_gate

    run_gate(arguments)


@models.command("profile")
@click.option("--again", is_flag=True, help="Measure anew, whatever is known.")
def profile_model(again: bool) -> None:
    """Show which engine serves here, how it compares, and why; measures when nothing is known yet (half a minute)."""
    from aiworker.cli.profiles import show_profile

    asyncio.run(show_profile(load_settings(), _console, again=again))


@models.command("show")
@click.argument("name")
def show_model(name: str) -> None:
    """Show what is known of NAME: weights by their file, or one of Ollama's models by what it can and takes."""
    from aiworker.cli.models import details

    _console.print(details(load_settings(), name))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def placement(as_json: bool) -> None:
    """Show which inference children the worker would start, on which device, and why.

    Follows MEMORY_BUDGET_MB, INFERENCE_DEVICE, INFERENCE_PROCESSES, INFERENCE_THREADS, what Ollama holds now, and what
    was measured best when the worker first served these weights.
    """
    from aiworker.cli.placement import described, table_of
    from aiworker.cli.profiles import foreseen

    machine, placed = foreseen(load_settings())
    if as_json:
        _console.print_json(json.dumps(described(machine, placed)))
        return
    _console.print(table_of(placed))
    for note in placed.notes:
        _console.print(note)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Check database, migrations, weights, engine, GPU, memory, Ollama, Gemini, clock; say what to do about each.

    Exit code 1 when something must be mended before the worker can work.
    """
    from aiworker.cli.doctor import Verdict, examine

    findings = asyncio.run(examine(load_settings()))
    if as_json:
        _console.print_json(json.dumps([vars_of(finding) for finding in findings]))
    else:
        _console.print(_findings_table(findings))
    sys.exit(1 if any(finding.verdict is Verdict.FAIL for finding in findings) else 0)


def vars_of(finding: Any) -> dict[str, str]:
    """A finding as JSON values."""
    return {"check": finding.check, "verdict": finding.verdict.value, "found": finding.found, "do": finding.do}


def _findings_table(findings: list[Any]) -> Table:
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None)
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        verdict = finding.verdict.value
        table.add_row(finding.check, f"[{colours[verdict]}]{verdict}[/]", finding.found, finding.do)
    return table


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def _target(gateway: str | None) -> tuple[str, Settings]:
    settings = load_settings()
    return gateway or f"http://127.0.0.1:{settings.port}", settings


def _inherited(fd: int | None) -> socket.socket | None:
    return socket.socket(fileno=fd) if fd is not None else None


def _job_input(job_type: str, photo: str | None, text: str | None, raw: str | None) -> dict[str, Any]:
    from aiworker.cli.client import photo_url

    try:
        body = json.loads(raw) if raw else {}
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error.msg}", param_hint="--input") from None
    if not isinstance(body, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--input")
    if photo:
        body["imageUrl"] = photo_url(photo)
    if text:
        body["message" if job_type == "unified_assistant" else "text"] = text
    return body


if __name__ == "__main__":
    main(prog_name="aiworker")
