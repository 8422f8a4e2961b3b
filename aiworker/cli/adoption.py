"""`aiworker adopt`: what it did, or would do, as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aiworker.analyses.registry import ANALYSES, OLD_NAMES
from aiworker.cli.wiring import database_url
from aiworker.queue.adopt import Adoption, adopt
from aiworker.settings import Settings


async def run_adoption(settings: Settings, give_up_after_h: float, dry_run: bool, console: Console) -> None:
    """Raises ConfigurationError, DatabaseUnavailable; then nothing was changed."""
    url = database_url(settings)
    adoption = await adopt(
        url, give_up_after_h=give_up_after_h, renamed=OLD_NAMES, served=list(ANALYSES), rehearse=dry_run
    )
    describe(adoption, dry_run, console)


def describe(adoption: Adoption, dry_run: bool, console: Console) -> None:
    """Prints it."""
    if not adoption.kept:
        console.print("nothing to adopt: the tables have this release's shape, or are not there (`aiworker migrate`)")
        return
    for table, kept in adoption.kept.items():
        console.print(f"{table}: the old table {'would be' if dry_run else 'is'} kept as {kept}, closed to everybody")
    if adoption.ends:
        console.print(_jobs(adoption))
    for job_type, count in adoption.unserved:
        console.print(
            f"look at: {count} unfinished jobs are of type {job_type}, which no analysis here serves; they wait"
        )
    for policy in adoption.dropped_policies:
        console.print(f"policy taken away: {policy}")
    for note in adoption.notes:
        console.print(f"look at: {note}")
    console.print("taken back: nothing was changed" if dry_run else "done: drop the old tables when you miss nothing")


def _jobs(adoption: Adoption) -> Table:
    table = Table(box=None, title=f"{sum(count for *_, count in adoption.ends)} jobs, none lost", title_justify="left")
    for heading in ("was", "is", "jobs"):
        table.add_column(heading, justify="right" if heading == "jobs" else "left")
    for was, becomes, count in adoption.ends:
        table.add_row(was, becomes, str(count))
    return table
