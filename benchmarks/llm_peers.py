"""Our router beside LiteLLM's: the same fake Ollama and Gemini, the same faults, the same arrivals, in turn.

Six faults, each with calls that arrive by chance at 2 a second and must be answered within 15 s. A call is wasted when
it was sent to a provider that could not answer it in time: it was refused, failed, hung, or would have ended after the
deadline. The servers count that, who know what is to become of each call; where nobody listens (Ollama dead) those who
ask count, once for each call that a router makes of a provider. Where both are flaky, each call fails by its own dice,
which nobody can know before, so the sum is shown without that row as well. --quick multiplies every time by 0.3, the
deadline and the routers' own times too, but for the three seconds that LiteLLM takes over a dead server.

LiteLLM is set up as its reliability pages advise: a group a provider with the other as fallback, a time limit that
leaves the fallback its chance, everything else as it comes; once more with what it has for cooldowns switched on for a
lone deployment, which it does not by default ("tuned"); with both as one group, by order ("group"), which gets past
a dead or hanging server sooner, but gives more up where Gemini is limited; and without retries ("once"), which leaves
the fallback nearly all of the time, and gives up what fails at both. Its environment is made below .benchmarks/.

    python benchmarks/llm_peers.py [--quick] [--only faults,costs] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from beside import Bar, percentile, prepare_peers, table_of
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PEERS = HERE.parent / ".benchmarks" / "llm"
REQUIREMENTS = HERE / "peers" / "llm.txt"
OURS, LITELLM, TUNED, GROUP, ONCE = WHO = ("ours", "litellm", "litellm tuned", "litellm group", "litellm once")
SETUPS = {TUNED: "tuned", GROUP: "group", ONCE: "once"}
SECTIONS = ("faults", "costs")
# LiteLLM's own pauses between tries, which have no argument.
_PAUSES = {"INITIAL_RETRY_DELAY": 0.5, "MAX_RETRY_DELAY": 8.0, "JITTER": 0.75}


@dataclass(frozen=True)
class Sizes:
    """`scale` multiplies every time; `rate` calls a second for `seconds`, in each scenario, in each of `rounds`."""

    scale: float
    rate: float
    rounds: int
    seconds: float
    calls: int
    waves: int
    who: tuple[str, ...]


FULL = Sizes(1.0, 2.0, 3, 45, 4000, 12, WHO)
QUICK = Sizes(0.3, 3, 1, 7, 400, 2, (OURS, LITELLM))
AT_ONCE = 200


class Bench:
    """The servers, how much to measure, and where progress is said."""

    def __init__(self, servers: dict[str, Any], sizes: Sizes, console: Console) -> None:
        self.servers = servers
        self.sizes = sizes
        self.console = console

    def run(self, who: str, what: str, **how: Any) -> dict[str, Any]:
        """The figures of one run of one contestant, in a process of its own."""
        self.console.print(f"[dim]{what}: {who}[/dim]")
        python = sys.executable if who == OURS else str(PEERS / "bin" / "python")
        module = "llms.ours" if who == OURS else "peers.drive_litellm"
        how |= {"setup": SETUPS[who]} if who in SETUPS else {}
        pauses = {name: str(seconds * self.sizes.scale) for name, seconds in _PAUSES.items()}
        done = subprocess.run(
            [python, "-m", module, what, json.dumps(how)],
            cwd=HERE,
            env=os.environ | pauses,
            stdout=subprocess.PIPE,
            stderr=None if who == OURS else subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{who} failed at {what}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def control(self, path: str) -> dict[str, dict[str, dict[str, int]]]:
        """The servers' counts, by scenario and provider."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.servers['control']}{path}") as answer:
            counts: dict[str, dict[str, dict[str, int]]] = json.load(answer)
        return counts


@dataclass
class Row:
    """One contestant in one scenario, over all rounds. `sent` is what the servers counted."""

    calls: int
    in_time: int
    ms: list[float]
    sent: Counter[str]

    @property
    def share(self) -> float:
        return 100 * self.in_time / self.calls


def faults(bench: Bench) -> list[Bar]:
    """Each contestant through all scenarios at once, in turn."""
    sizes = bench.sizes
    rows: dict[tuple[str, str], Row] = {}
    for number in range(sizes.rounds):
        for who in sizes.who if number % 2 == 0 else reversed(sizes.who):
            bench.control(f"/begin?seed={number}")
            found = bench.run(
                who,
                "faults",
                ports=bench.servers["ports"],
                steady=bench.servers["steady"],
                scale=sizes.scale,
                rate=sizes.rate,
                seconds=sizes.seconds,
                seed=number,
            )
            counts = bench.control("/counts")
            for name, result in found.items():
                row = rows.setdefault((name, who), Row(0, 0, [], Counter()))
                row.calls += result["calls"]
                row.in_time += result["in_time"]
                row.ms += result["ms"]
                for each in counts[name].values():
                    row.sent.update(each)
                if "ollama" not in counts[name]:
                    # Nobody listens there who could count.
                    row.sent.update(dict.fromkeys(("calls", "wasted", "wasted_refused"), result["ollama_asked"]))
    bench.console.print(_faults_table(rows, sizes.scale))
    names = list(dict.fromkeys(name for name, _ in rows))
    bars = [Bar(f"{name}: in time", rows[name, OURS].share, "%", 99.0, least=True) for name in names]
    for other in sizes.who[1:]:
        for name in names:
            ahead = rows[name, OURS].share - rows[name, other].share
            bars.append(Bar(f"{name}: ahead of {other}", ahead, "points", 0.0, least=True))
            if not rows[name, other].ms:
                continue
            p95 = [percentile(rows[name, who].ms, 0.95) for who in (OURS, other)]
            # Where both answer all, ahead is who does it in less time.
            limit = 1.0 if ahead == 0 else None
            bars.append(Bar(f"{name}: p95 of good answers / {other}", p95[0] / p95[1], "x", limit))
        for note, some in (("", names), (f", all but {names[-1]}", names[:-1])):
            wasted = [sum(rows[name, who].sent["wasted"] for name in some) for who in (OURS, other)]
            # Tuned, it gives calls up instead of wasting them, and so it does without retries where dice decide all:
            # who answers every call must lose as many as they say. In a quick run everybody is still learning.
            gives_up = other == TUNED or (other == ONCE and some == names)
            limit = None if gives_up or sizes.scale != 1 else 0.2
            bars.append(Bar(f"wasted calls / {other}{note}", wasted[0] / max(1, wasted[1]), "x", limit))
    return bars


def _faults_table(rows: dict[tuple[str, str], Row], scale: float) -> Table:
    table = Table(title=f"answers within {15 * scale:g} s, wasted calls in brackets by kind")
    for heading in ("scenario", "", "calls", "in time", "p50 s", "p95 s", "sent", "wasted", "given up"):
        table.add_column(heading, justify="left" if heading in ("scenario", "") else "right")
    for (name, who), row in sorted(rows.items(), key=lambda item: item[0][0]):
        kinds = ", ".join(f"{key[7:]} {n}" for key, n in sorted(row.sent.items()) if key.startswith("wasted_"))
        table.add_row(
            name,
            who,
            str(row.calls),
            f"{row.share:.1f} %",
            *(f"{percentile(row.ms, share) / 1000:.2f}" for share in (0.5, 0.95)),
            str(row.sent["calls"]),
            f"{row.sent['wasted']} ({kinds})" if kinds else "0",
            str(row.sent["left"]),
        )
    return table


def costs(bench: Bench) -> list[Bar]:
    """Memory, processor time, and what many streams at once are slowed by."""
    sizes = bench.sizes
    port = bench.servers["steady"]
    ours = bench.run(OURS, "costs", port=port, at_once=AT_ONCE, waves=sizes.waves, calls=sizes.calls)
    theirs = bench.run(LITELLM, "costs", port=port, at_once=AT_ONCE // 4, waves=1, calls=sizes.calls // 10)
    return [
        Bar("processor time that the router adds to a call", ours["cpu_us"], "us", 1000),
        Bar("processor time of a call that LiteLLM answers itself", theirs["cpu_us"], "us"),
        Bar(f"{AT_ONCE} streams of 500 ms, p95", ours["through_p95_ms"], "ms"),
        Bar(f"{AT_ONCE} streams, p95 that the router adds", ours["added_p95_ms"], "ms", 5.0),
        Bar(f"{AT_ONCE // 4} streams of 500 ms, p95, LiteLLM", theirs["through_p95_ms"], "ms"),
        Bar("import and one idle client", ours["rss_mb"], "MB", 60),
        Bar("import and one idle client, LiteLLM", theirs["rss_mb"], "MB"),
    ]


@contextmanager
def servers(scale: float) -> Iterator[dict[str, Any]]:
    """The fake providers in a process of their own, ended at the end."""
    command = [sys.executable, "-m", "llms.servers", "--scale", str(scale)]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def main() -> None:
    """Measures, prints, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, every time multiplied by 0.3")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of 3, or of 1 with --quick")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    sections = options.only.split(",") if options.only else SECTIONS
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    console = Console(highlight=False)
    prepare_peers(PEERS, REQUIREMENTS, "LiteLLM", console)
    work = {"faults": faults, "costs": costs}
    with servers(sizes.scale) as running:
        bench = Bench(running, sizes, console)
        bars = [bar for section in sections for bar in work[section](bench)]
    console.print(table_of(bars, "llm", "" if sizes.scale == 1 else f", every time x {sizes.scale:g}"))
    if options.json:
        options.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=2) + "\n")
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
