"""The comparison of hot functions tells noise from regression."""

from __future__ import annotations

from hot.compare import Timing, relative, together, verdict, verdicts
from hypothesis import given
from hypothesis import strategies as st

BEFORE = Timing(0.95, 1.0, 1.05)


def test_a_function_that_became_slower_is_told_from_a_noisy_one() -> None:
    assert verdict(BEFORE, Timing(1.4, 1.5, 1.6)) == "slower"
    assert verdict(BEFORE, Timing(0.9, 1.5, 2.5)) == "same", "its quartiles overlap: noise"
    assert verdict(BEFORE, Timing(1.15, 1.2, 1.25)) == "same", "within what two runs of the same code differ by"
    assert verdict(BEFORE, Timing(0.4, 0.5, 0.6)) == "faster"
    assert verdict(None, BEFORE) == "new"


def test_what_turns_differ_by_is_noise() -> None:
    kept = together([Timing(0.95, 1.0, 1.05), Timing(1.35, 1.4, 1.45), Timing(0.95, 1.0, 1.05)])
    assert kept == Timing(0.95, 1.0, 1.45)
    assert verdict(kept, Timing(1.35, 1.4, 1.45)) == "same"
    assert verdict(kept, Timing(1.9, 2.0, 2.1)) == "slower"


@given(st.floats(0.1, 100), st.floats(1e-6, 1))
def test_a_machine_that_is_slower_in_all_changes_nothing(slowdown: float, seconds: float) -> None:
    quartiles = (seconds, seconds * 1.1, seconds * 1.2)
    slow = tuple(each * slowdown for each in quartiles)
    assert verdict(relative(quartiles, 0.01), relative(slow, 0.01 * slowdown)) == "same"  # type: ignore[arg-type]


def test_slower_ones_come_first() -> None:
    found = verdicts({"a": BEFORE, "b": BEFORE}, {"a": BEFORE, "b": Timing(2, 2, 2), "c": BEFORE})
    assert [(name, word) for name, _, _, word in found] == [("b", "slower"), ("c", "new"), ("a", "same")]
