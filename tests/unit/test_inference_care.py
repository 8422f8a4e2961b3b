"""What the caretaker decides, and what a silent child is taken for."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.interface import Box
from aiworker.inference.lanes.watch import Look, Patience, Watch, look_at
from aiworker.inference.policy.canary import Canary
from aiworker.inference.policy.care import Care, CareRules, Condition, Need

_RULES = CareRules(budget_mb=1000.0, high=0.9, low=0.8, slack_mb=100.0, canary_s=60.0)


def _needs(*children: Condition, quiet: bool = True, replacing: bool = False) -> list[tuple[int, Need]]:
    return Care(_RULES).needs(children, quiet=quiet, replacing=replacing)


def test_admission_pauses_above_the_high_mark_and_resumes_below_the_low_one() -> None:
    care = Care(_RULES)
    history = [(used, care.admit(used), care.paused) for used in (850, 901, 850, 801, 799, 850)]
    assert history == [
        (850, False, False),
        (901, True, True),
        (850, False, True),
        (801, False, True),
        (799, True, False),
        (850, False, False),
    ]


def test_without_a_budget_nothing_pauses() -> None:
    assert not Care(CareRules()).admit(1e12)


def test_a_child_that_grew_is_recycled_when_nothing_waits_for_it() -> None:
    grown = Condition(3, rss_mb=411.0, fresh_mb=200.0)
    assert _needs(grown) == [(3, Need.RECYCLE)]
    assert _needs(Condition(3, rss_mb=399.0, fresh_mb=200.0)) == []
    assert _needs(grown, quiet=False) == []
    assert _needs(grown, replacing=True) == []
    assert _needs(Condition(3, 411.0, 200.0, busy=True)) == []


def test_one_far_over_its_limit_is_recycled_even_while_it_works() -> None:
    assert _needs(Condition(3, 510.0, 200.0, busy=True), quiet=False) == [(3, Need.RECYCLE)]


def test_the_one_that_grew_most_goes_first_and_alone() -> None:
    assert _needs(Condition(1, 420.0, 200.0), Condition(2, 450.0, 200.0)) == [(2, Need.RECYCLE)]


def test_while_admission_pauses_an_idle_child_that_grew_ends_before_its_successor_starts() -> None:
    care = Care(_RULES)
    care.admit(950)
    grown, fresh = Condition(1, 390.0, 300.0), Condition(2, 320.0, 300.0)
    assert care.needs([grown, fresh], quiet=True, replacing=False) == [(1, Need.RESTART)]
    assert care.needs([grown, fresh], quiet=False, replacing=False) == []
    assert care.needs([grown, Condition(2, 320.0, 300.0, busy=True)], quiet=True, replacing=False) == []
    assert care.needs([fresh], quiet=True, replacing=False) == [], "it has nothing to give back"
    far_over = Condition(3, 900.0, 300.0)
    assert care.needs([far_over, grown], quiet=True, replacing=False) == [(3, Need.RESTART)], "a spare would need more"
    assert care.needs([far_over, grown], quiet=False, replacing=False) == []
    care.admit(790)
    assert care.needs([grown, fresh], quiet=True, replacing=False) == []


def test_eyes_are_tested_at_intervals() -> None:
    assert _needs(Condition(1, 200.0, 200.0, busy=True, seen_s=60.0), Condition(2, 200.0, 200.0, seen_s=59.0)) == [
        (1, Need.CANARY)
    ]


_THINGS = ((7, 0.9, 0.0, 0.0, 10.0, 10.0), (8, 0.8, 20.0, 20.0, 30.0, 30.0), (9, 0.3, 5.0, 5.0, 6.0, 6.0))


def _moved(by: int) -> tuple[Box, ...]:
    return tuple((kind, conf, x1 + by, y1 + by, x2 + by, y2 + by) for kind, conf, x1, y1, x2, y2 in _THINGS)


def test_a_child_is_blind_when_it_misses_most_of_what_another_was_sure_of() -> None:
    canary = Canary(b"")
    assert canary.sees("weights", "0.1", _THINGS)
    assert canary.sees("weights", "1.1", _THINGS[:1]), "half is enough: engines differ"
    assert canary.sees("weights", "0.1", _moved(1))
    assert not canary.sees("weights", "1.1", ())
    assert not canary.sees("weights", "1.2", [(kind + 1, *rest) for kind, *rest in _THINGS])  # type: ignore[misc]
    assert canary.sees("other weights", "0.1", ())
    assert canary.sees("other weights", "1.1", _THINGS), "the first that sees anything sets the mark"
    assert not canary.sees("other weights", "0.1", ())


def test_what_is_known_finds_a_child_that_is_blind_from_the_first() -> None:
    canary = Canary(b"", {"weights": _THINGS, "finds nothing": ()})
    assert not canary.sees("weights", "0.1", ())
    assert not canary.sees("weights", "0.2", _moved(100))
    assert not canary.sees("weights", "0.3", _moved(100)), "however often"
    assert canary.sees("weights", "0.4", _moved(1))
    assert canary.sees("finds nothing", "0.1", ())


def test_one_that_saw_what_is_not_there_is_outvoted_by_the_next_two() -> None:
    canary = Canary(b"")
    assert canary.sees("weights", "0.1", _moved(100))
    assert not canary.sees("weights", "1.1", _THINGS), "nobody can tell who is right"
    assert canary.sees("weights", "1.2", _THINGS)
    assert not canary.sees("weights", "0.1", _moved(100))
    assert canary.sees("weights", "0.2", _THINGS)


@given(st.lists(st.sampled_from([(), _THINGS, _moved(100)]), max_size=20))
def test_what_two_children_found_is_moved_by_nobody(others: list[tuple[Box, ...]]) -> None:
    canary = Canary(b"")
    assert all(canary.sees("weights", f"{lane}.1", _THINGS) for lane in (0, 1))
    for life, boxes in enumerate(others, 2):
        assert canary.sees("weights", f"2.{life}", boxes) == (boxes == _THINGS)


@given(st.lists(st.just(()), max_size=20))
def test_the_blind_outvote_nobody(blind: list[tuple[Box, ...]]) -> None:
    canary = Canary(b"")
    assert canary.sees("weights", "0.1", _THINGS)
    assert not any(canary.sees("weights", f"1.{life}", boxes) for life, boxes in enumerate(blind))
    assert canary.sees("weights", "0.1", _THINGS)


_PATIENCE = Patience(stopped_s=0.5, hung_s=10.0, stall_s=30.0, ping_s=5.0)


def test_a_stopped_child_is_known_by_its_state_even_when_it_owes_nothing() -> None:
    watch = Watch(_PATIENCE, 0.0)
    assert watch.complaint(Look("S", 1, 1.0), 0.9) is None
    assert watch.complaint(Look("T", 1, 1.0), 1.0) is None
    assert watch.complaint(Look("T", 1, 1.0), 1.5) == "stopped by a signal"
    assert Watch(_PATIENCE, 0.0).complaint(Look("t", 1, 1.0), 9.0) is None, "a debugger may hold it"


def test_a_hung_child_uses_no_cpu_and_a_slow_one_does() -> None:
    hung, slow = Watch(_PATIENCE, 0.0), Watch(_PATIENCE, 0.0)
    hung.asked(0.0)
    slow.asked(0.0)
    for second in range(30):
        complaint = hung.complaint(Look("S", 5, 1.0), float(second))
        assert (complaint is not None) == (second >= 10)
        assert slow.complaint(Look("R", second, 1.0), float(second)) is None
    assert "slow" in (slow.complaint(Look("R", 30, 1.0), 30.0) or "")


def test_progress_restarts_the_clock() -> None:
    watch = Watch(_PATIENCE, 0.0)
    watch.asked(0.0)
    watch.heard(9.0, owes=True)
    assert watch.silent_s(15.0) == 6.0
    assert watch.complaint(Look("S", 0, 1.0), 15.0) is None
    watch.heard(16.0, owes=False)
    assert watch.silent_s(60.0) == 0.0


def test_an_idle_child_is_asked_and_must_then_answer() -> None:
    watch = Watch(_PATIENCE, 0.0)
    assert not watch.wants_ping(4.9)
    assert watch.wants_ping(5.0)
    watch.asked(5.0)
    assert not watch.wants_ping(6.0)
    watch.complaint(Look("S", 0, 1.0), 5.0)
    assert "hung" in (watch.complaint(Look("S", 0, 1.0), 15.1) or "")


@given(st.lists(st.tuples(st.floats(0.01, 3), st.sampled_from(["spoke", "silent"])), max_size=60))
def test_a_child_that_speaks_often_enough_is_left_alone(history: list[tuple[float, str]]) -> None:
    watch, now, spoke = Watch(_PATIENCE, 0.0), 0.0, 0.0
    watch.asked(0.0)
    for pause, what in history:
        now += pause
        if what == "spoke":
            watch.heard(now, owes=True)
            spoke = now
        if now - spoke < _PATIENCE.hung_s:
            assert watch.complaint(Look("S", 0, 1.0), now) is None


def test_the_kernel_is_read_right() -> None:
    look = look_at(os.getpid())
    assert look is not None
    assert look.state == "R"
    assert look.rss_mb == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.2)
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        psutil.Process(child.pid).suspend()
        os.waitpid(child.pid, os.WUNTRACED)
        stopped = look_at(child.pid)
        child.kill()
    assert stopped is not None
    assert stopped.state == "T"
    assert look_at(child.pid) is None
