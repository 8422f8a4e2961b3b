from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.shelf import Loaded, evictions

_LOADED = st.lists(
    st.builds(Loaded, st.uuids().map(str), st.integers(1, 1000), st.floats(0, 100), st.booleans()), max_size=6
)


@given(_LOADED, st.integers(0, 1000), st.integers(1, 3000))
def test_just_enough_is_dropped_and_never_a_busy_one(loaded: list[Loaded], needed: int, cap: int) -> None:
    names = evictions(loaded, needed, cap)
    idle = [each for each in loaded if not each.busy]
    if names is None:
        assert sum(each.mb for each in loaded if each.busy) + needed > cap
        return
    by_name = {each.name: each for each in loaded}
    left = [each for each in loaded if each.name not in names]
    assert sum(each.mb for each in left) + needed <= cap
    assert set(names) <= {each.name for each in idle}
    assert list(names) == [each.name for each in sorted(idle, key=lambda each: each.used_at)][: len(names)]
    if names:
        assert sum(each.mb for each in left) + by_name[names[-1]].mb + needed > cap, "none in vain"


@pytest.mark.parametrize(
    ("needed", "cap", "expected"),
    [(100, 1000, ()), (400, 1000, ("old",)), (700, 1000, ("old", "new")), (800, 1000, None)],
)
def test_the_longest_unused_goes_first(needed: float, cap: float, expected: tuple[str, ...] | None) -> None:
    loaded = [Loaded("new", 300, 9.0, False), Loaded("busy", 300, 1.0, True), Loaded("old", 300, 2.0, False)]
    assert evictions(loaded, needed, cap) == expected
