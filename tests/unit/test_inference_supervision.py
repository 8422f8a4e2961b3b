from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.lanes.process import child_environment
from aiworker.inference.policy.supervision import RestartBackoff, RestartPolicy, Verdict, judge

_POLICY = RestartPolicy(base_s=0.5, factor=2.0, cap_s=5.0, give_up_after=3, stable_s=60.0)


def test_delays_double_up_to_the_cap() -> None:
    backoff = RestartBackoff(_POLICY)
    assert [backoff.died(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_an_answer_makes_it_start_over() -> None:
    backoff = RestartBackoff(_POLICY)
    for _ in range(3):
        backoff.died(0.0)
    assert backoff.gave_up
    backoff.answered()
    assert not backoff.gave_up
    assert backoff.died(0.0) == 0.5


def test_a_child_that_sat_ready_for_long_had_started_well() -> None:
    backoff = RestartBackoff(_POLICY)
    for _ in range(10):
        assert backoff.died(served_s=61.0) == 0.5
    assert not backoff.gave_up


@given(st.lists(st.sampled_from(["answered", "died"]), max_size=300))
def test_delays_stay_within_bounds_and_only_barren_lives_in_a_row_count(history: list[str]) -> None:
    backoff, barren = RestartBackoff(_POLICY), 0
    for event in history:
        if event == "answered":
            backoff.answered()
            barren = 0
        else:
            assert _POLICY.base_s <= backoff.died(0.0) <= _POLICY.cap_s
            barren += 1
        assert backoff.gave_up == (barren >= _POLICY.give_up_after)


def test_only_the_third_death_alone_condemns() -> None:
    assert judge(1, was_alone=True) is Verdict.RETRY
    assert judge(1, was_alone=False) is Verdict.RETRY
    assert judge(2, was_alone=True) is Verdict.RETRY_ALONE
    assert judge(2, was_alone=False) is Verdict.RETRY_ALONE
    assert judge(3, was_alone=True) is Verdict.REJECT


@given(st.integers(1, 100))
def test_in_company_nobody_is_condemned(deaths: int) -> None:
    assert judge(deaths, was_alone=False) is not Verdict.REJECT


def test_a_child_sees_no_secret_and_behaved_libraries() -> None:
    parent = {"PATH": "/bin", "DATABASE_URL": "x", "GEMINI_API_KEY": "x", "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C"}
    environment = child_environment(parent, threads=3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "x" not in environment.values()


def test_the_operator_may_choose_the_wait_policy() -> None:
    assert child_environment({"OMP_WAIT_POLICY": "ACTIVE"}, threads=1)["OMP_WAIT_POLICY"] == "ACTIVE"


def test_where_several_threads_decode_freed_memory_is_kept() -> None:
    one, several = child_environment({}, threads=4), child_environment({}, threads=4, decoders=4)
    assert several.keys() - one.keys() == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
