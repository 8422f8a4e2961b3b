"""Keeps and compares the times of `pytest benchmarks/`.

pytest benchmarks/                    compares with benchmarks/hot/baseline.json; exit code 1 when one is slower
pytest benchmarks/ --keep-baseline    writes it
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hot.compare import Timing, relative, together, verdicts
from pytest_benchmark.fixture import BenchmarkFixture

BASELINE = Path(__file__).parent / "hot" / "baseline.json"
_TURNS = pytest.StashKey[dict[str, list[Timing]]]()
_TEXT = "arroz e feijão " * 20
_YARDSTICK = {"numbers": list(range(200)), "text": _TEXT}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-baseline", action="store_true", help="later runs are compared with this one")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TURNS] = {}


def yardstick_s() -> float:
    """CPU seconds of a fixed piece of pure Python and C, the median of several: what this machine can do just now."""

    def once() -> float:
        started = time.process_time()
        for _ in range(20):
            json.loads(json.dumps(_YARDSTICK))
            sorted(_TEXT)
        return time.process_time() - started

    return statistics.median(once() for _ in range(15))


@pytest.fixture(scope="session", params=range(3))
def turn(request: pytest.FixtureRequest) -> Any:
    """All are timed, then all again: a machine that is slow for some seconds meets each but once."""
    return request.param


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, turn: int) -> Iterator[None]:
    before = yardstick_s()
    yield
    if benchmark.stats is None:
        return
    stats = benchmark.stats.stats
    yardstick = (before + yardstick_s()) / 2
    turns = request.config.stash[_TURNS].setdefault(request.node.originalname, [])
    turns.append(relative((stats.q1, stats.median, stats.q3), yardstick))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    now = {name: together(turns) for name, turns in config.stash[_TURNS].items()}
    if not now:
        return
    if config.getoption("--keep-baseline"):
        kept = {name: {key: round(each, 6) for key, each in asdict(timing).items()} for name, timing in now.items()}
        BASELINE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        return
    before = {name: Timing(**each) for name, each in json.loads(BASELINE.read_text()).items()}
    if exitstatus == 0 and any(word == "slower" for *_, word in verdicts(before, now)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    now = {name: together(turns) for name, turns in config.stash[_TURNS].items()}
    if not now or not BASELINE.exists():
        return
    before = {name: Timing(**each) for name, each in json.loads(BASELINE.read_text()).items()}
    terminalreporter.section("against the kept baseline, in yardsticks")
    for name, old, new, word in verdicts(before, now):
        was = f"{old.median:.4f}" if old else "-"
        terminalreporter.line(f"{word:7} {name:44} {was:>10} -> {new.median:.4f}", red=word == "slower")
