"""`decide` over situations that hypothesis makes up, and over the ones that matter most by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.llm.choice import MOST_TRIES, decide, why_not
from aiworker.llm.forecast import Outlook
from aiworker.llm.situation import (
    NO_VISION,
    NOT_CONFIGURED,
    SLOTS_FULL,
    TIMED_OUT,
    TOO_LATE,
    Ask,
    GiveUp,
    Leave,
    Run,
    Send,
    Standing,
    Try,
    Wait,
)

NOW = 1000.0
NAMES = ("ollama", "gemini", "third")


def ask(total_s: float = 15.0, *, order: tuple[str, ...] = ("ollama", "gemini"), hedge: bool = False) -> Ask:
    return Ask(order, NOW + total_s, total_s, least_s=0.25, hedge=hedge)


def takes(likely_s: float, safe_s: float) -> Outlook:
    return Outlook(likely_s, likely_s, safe_s, safe_s)


FAST, SLOW = Standing(outlook=takes(1, 2)), Standing(outlook=takes(6, 20))

outlooks = st.builds(
    lambda likely, more, hearsay, doubt: replace(takes(likely, likely * more), hearsay=hearsay, doubt=doubt),
    st.floats(0.05, 30),
    st.floats(1, 5),
    st.booleans(),
    st.sampled_from([1.0, 1.1, 2.0]),
)
standings = st.builds(
    lambda last_resort_at, ready_at, **rest: Standing(
        # A last resort never comes after what it stands in for.
        ready_at=ready_at,
        last_resort_at=None if last_resort_at is None else min(last_resort_at, ready_at),
        **rest,
    ),
    ready_at=st.one_of(st.just(0.0), st.floats(NOW - 5, NOW + 40)),
    reason=st.just("provider_unavailable"),
    wait_s=st.one_of(st.just(0.0), st.floats(0, 30)),
    outlook=st.one_of(st.none(), outlooks),
    never=st.sampled_from(["", "", "", NO_VISION]),
    worth_waiting=st.booleans(),
    last_resort_at=st.one_of(st.none(), st.floats(NOW - 5, NOW + 5)),
)
tries = st.builds(
    Try,
    st.just("provider_unavailable"),
    st.integers(1, MOST_TRIES),
    st.floats(NOW - 5, NOW + 3),
    st.booleans(),
    st.floats(NOW - 20, NOW),
)
sent_ago = st.one_of(st.none(), st.floats(0, 20))


@st.composite
def situations(draw: st.DrawFn):
    order = tuple(draw(st.lists(st.sampled_from(NAMES), max_size=4)))
    known = draw(st.dictionaries(st.sampled_from(NAMES), standings))
    askable = [name for name in dict.fromkeys(order) if name in known and not known[name].never]
    running = draw(st.lists(st.sampled_from(askable), unique=True)) if askable else []
    ago = [draw(sent_ago) for _ in running]
    runs = [Run(name, NOW - 20, None if s is None else NOW - s) for name, s in zip(running, ago, strict=True)]
    tried = draw(st.dictionaries(st.sampled_from(NAMES), tries))
    wanted = Ask(order, NOW + draw(st.floats(-1, 30)), draw(st.floats(0.1, 30)), 0.25, draw(st.booleans()))
    return wanted, known, tried, runs


@given(situations())
@settings(deadline=None, max_examples=400)
def test_decision_holds_its_promises(situation) -> None:
    wanted, known, tried, runs = situation
    step = decide(wanted, known, tried, runs, NOW)
    running = {run.name for run in runs}
    match step:
        case Send(name):
            assert name in wanted.order
            assert name not in running
            assert not known[name].never
            standing = known[name]
            assert (standing.ready_at if standing.last_resort_at is None else standing.last_resort_at) <= NOW
            if standing.ready_at > NOW:
                # The last resort: nobody else who could make it is ready.
                others = [known[other] for other in wanted.order if other in known and other not in tried]
                assert running or not any(
                    one.ready_at <= NOW
                    and not one.never
                    and one.outlook
                    and NOW + one.wait_s + one.outlook.likely_s <= wanted.end_at
                    for one in others
                )
            assert name not in tried or (not tried[name].final and tried[name].count < MOST_TRIES)
            assert name not in tried or tried[name].not_before <= NOW
            outlook = known[name].outlook
            if outlook:
                # Nobody is asked who would more likely than not be late, unless that is only hearsay, or said by few
                # answers and there is nobody else.
                others = [each for each in wanted.order if each in known and not known[each].never and each != name]
                doubt = 1.0 if others else outlook.doubt
                likely_s = outlook.load_s if outlook.hearsay else outlook.likely_s / doubt
                assert NOW + known[name].wait_s + likely_s <= wanted.end_at + 1e-3
        case Leave(name, code):
            assert name in running
            assert code in (SLOTS_FULL, TIMED_OUT)
        case Wait(until):
            assert NOW < until <= max(wanted.end_at, NOW)
            if not runs:
                assert any(
                    until in (known[name].ready_at, known[name].last_resort_at) or tried.get(name)
                    for name in wanted.order
                    if name in known
                )
        case GiveUp(reasons, _):
            assert set(reasons) == set(wanted.order)
            assert wanted.end_at - 1e-3 <= NOW or not runs


@given(situations())
@settings(deadline=None, max_examples=200)
def test_who_can_make_it_is_asked(situation) -> None:
    wanted, known, _, _ = situation
    step = decide(wanted, known, {}, [], NOW)
    safe = [
        name
        for name in dict.fromkeys(wanted.order)
        if name in known
        and not known[name].never
        and known[name].ready_at <= NOW
        and known[name].outlook
        and NOW + known[name].wait_s + known[name].outlook.safe_s <= wanted.end_at
    ]
    if safe and wanted.end_at - 1e-3 > NOW:
        assert isinstance(step, Send)
        # One before it in the order may be unknown, and then gets its chance.
        assert step.name in safe or known[step.name].outlook is None


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"ollama": FAST, "gemini": FAST}, Send("ollama")),
        ({"ollama": SLOW, "gemini": FAST}, Send("gemini")),
        ({"ollama": SLOW}, Send("ollama")),
        ({"ollama": Standing(wait_s=12, outlook=takes(2, 4)), "gemini": FAST}, Send("gemini")),
        ({"ollama": Standing(wait_s=10, outlook=takes(2, 4)), "gemini": FAST}, Send("ollama")),
        ({"ollama": Standing(), "gemini": Standing()}, Send("ollama")),
        ({"ollama": Standing(never=NO_VISION), "gemini": Standing(NOW + 5, "x", outlook=takes(1, 2))}, Wait(NOW + 5)),
        ({"ollama": SLOW, "gemini": Standing(NOW + 5, "x", outlook=takes(1, 2))}, Send("ollama")),
        ({"gemini": Standing(NOW + 9, "x", outlook=takes(1, 2), last_resort_at=NOW + 1)}, Wait(NOW + 1)),
        ({"gemini": Standing(NOW + 9, "x", outlook=takes(1, 2), last_resort_at=NOW)}, Send("gemini")),
        ({"ollama": Standing(NOW + 9, "x", last_resort_at=NOW), "gemini": FAST}, Send("gemini")),
        ({"gemini": Standing(NOW + 14.5, "x", outlook=takes(1, 2))}, None),
        ({"gemini": Standing(NOW + 5, "x", outlook=takes(1, 2), worth_waiting=False)}, None),
        ({"ollama": Standing(outlook=takes(20, 30))}, None),
    ],
)
def test_first_step(known, expected) -> None:
    step = decide(ask(), known, {}, [], NOW)
    assert step == expected if expected else isinstance(step, GiveUp)


def test_second_is_asked_when_the_first_is_unusually_late_or_at_the_last_moment() -> None:
    known = {"ollama": Standing(outlook=takes(2, 4)), "gemini": Standing(outlook=takes(1, 3))}
    runs = [Run("ollama", NOW, NOW)]
    assert decide(ask(hedge=True), known, {}, runs, NOW) == Wait(NOW + 4)
    # 1.4 times what 19 of 20 of the second one's answers take: nobody comes after it.
    assert decide(ask(9), known, {}, runs, NOW) == Wait(pytest.approx(NOW + 4.8))
    assert decide(ask(hedge=True), known, {}, runs, NOW + 4) == Send("gemini")
    assert decide(ask(9), known, {}, runs, NOW + 4.8) == Send("gemini")


def test_a_second_that_failed_is_asked_again_as_soon_as_it_may_be() -> None:
    known = {"ollama": Standing(outlook=takes(2, 4)), "gemini": Standing(outlook=takes(1, 3))}
    runs = [Run("ollama", NOW, NOW)]
    failed = {"gemini": Try("provider_stream_broken", not_before=NOW + 4.6, at=NOW + 4.3)}
    assert decide(ask(hedge=True), known, failed, runs, NOW + 4.3) == Wait(NOW + 4.6)
    assert decide(ask(hedge=True), known, failed, runs, NOW + 4.6) == Send("gemini")
    # One that failed before the first was sent is not needed yet.
    before = {"gemini": Try("provider_stream_broken", not_before=NOW, at=NOW - 1)}
    assert decide(ask(hedge=True), known, before, runs, NOW) == Wait(NOW + 4)


def test_the_last_moment_does_not_pass_by_while_an_improbable_first_runs() -> None:
    known = {"ollama": Standing(outlook=takes(8, 20)), "gemini": Standing(outlook=takes(1, 2))}
    runs = [Run("ollama", NOW, NOW + 6)]
    assert decide(ask(), known, {}, runs, NOW + 6) == Wait(pytest.approx(NOW + 12.2))
    assert decide(ask(), known, {}, runs, NOW + 12.2) == Send("gemini")


def test_one_slow_answer_turns_nobody_away_who_has_nobody_else_to_ask() -> None:
    once, often = (Standing(outlook=replace(takes(16, 30), doubt=doubt)) for doubt in (2.0, 1.03))
    assert decide(ask(), {"ollama": once}, {}, [], NOW) == Send("ollama")
    gone = Standing(never=NOT_CONFIGURED)
    assert decide(ask(), {"ollama": once, "gemini": gone}, {}, [], NOW) == Send("ollama")
    assert isinstance(decide(ask(), {"ollama": often}, {}, [], NOW), GiveUp)
    assert decide(ask(), {"ollama": once, "gemini": Standing(NOW + 5, "x")}, {}, [], NOW) == Wait(NOW + 5)
    line = [Run("ollama", NOW)]
    waits = Standing(wait_s=6, outlook=replace(takes(10, 12), doubt=2.0))
    assert decide(ask(), {"ollama": waits}, {}, line, NOW) == Wait(NOW + 4)
    assert decide(ask(), {"ollama": waits, "gemini": Standing(NOW + 40, "x")}, {}, line, NOW) == Leave(
        "ollama", SLOTS_FULL
    )


def test_hanging_stranger_leaves_the_next_one_its_chance() -> None:
    known = {"ollama": Standing(), "gemini": Standing()}
    assert decide(ask(10), known, {}, [Run("ollama", NOW, NOW)], NOW) == Wait(pytest.approx(NOW + 4.4))


def test_in_line_until_the_others_last_moment() -> None:
    runs = [Run("ollama", NOW)]
    known = {"ollama": Standing(wait_s=5, outlook=takes(1, 2)), "gemini": Standing(outlook=takes(1, 3))}
    assert decide(ask(), known, {}, runs, NOW) == Wait(NOW + 8)
    assert decide(ask(), known, {}, runs, NOW + 12) == Leave("ollama", SLOTS_FULL)
    longer = known | {"ollama": Standing(wait_s=14, outlook=takes(1, 2))}
    assert decide(ask(), longer, {}, runs, NOW) == Leave("ollama", SLOTS_FULL)
    # With nobody else, it stays while half of its answers would come in time.
    assert decide(ask(15.5), {"ollama": longer["ollama"]}, {}, runs, NOW) == Wait(NOW + 0.5)
    assert decide(ask(14.5), {"ollama": longer["ollama"]}, {}, runs, NOW) == Leave("ollama", SLOTS_FULL)


def test_who_hedges_leaves_a_line_in_which_answers_are_late() -> None:
    runs = [Run("ollama", NOW)]
    known = {"ollama": Standing(wait_s=5, outlook=takes(1, 2)), "gemini": Standing(outlook=takes(1, 3))}
    assert decide(ask(hedge=True), known, {}, runs, NOW) == Wait(NOW + 2)
    assert decide(ask(hedge=True), known, {}, runs, NOW + 2) == Leave("ollama", SLOTS_FULL)


def test_hopeless_call_is_taken_back_while_another_try_fits() -> None:
    known = {"ollama": Standing(outlook=takes(1, 2))}
    runs = [Run("ollama", NOW, NOW)]
    assert decide(ask(), known, {}, runs, NOW) == Wait(NOW + 4)
    assert decide(ask(), known, {}, runs, NOW + 4) == Leave("ollama", TIMED_OUT)
    # Too late for another try, this one may as well go on.
    assert decide(ask(5), known, {}, runs, NOW + 4) == Wait(NOW + 5)
    # That somebody else comes back soon changes nothing.
    both = known | {"gemini": Standing(NOW + 4.1, "provider_timeout", outlook=takes(1, 2))}
    assert decide(ask(hedge=True), both, {}, runs, NOW + 4) == Leave("ollama", TIMED_OUT)


def test_a_call_that_may_be_loading_is_hopeless_later() -> None:
    known = {"ollama": Standing(outlook=takes(1, 2), unexpected_load_s=5)}
    runs = [Run("ollama", NOW, NOW)]
    assert decide(ask(), known, {}, runs, NOW + 4) == Wait(NOW + 9)
    assert decide(ask(), known, {}, runs, NOW + 9) == Leave("ollama", TIMED_OUT)


def test_hearsay_keeps_nobody_from_being_asked_and_takes_no_call_back() -> None:
    """How fast other kinds were says little of one that was never asked for."""
    slow = Standing(outlook=Outlook(150, 150, 150, 150, hearsay=True))
    assert decide(ask(), {"ollama": slow}, {}, [], NOW) == Send("ollama")
    assert decide(ask(), {"ollama": slow, "gemini": FAST}, {}, [], NOW) == Send("gemini")
    loading = Standing(outlook=Outlook(151, 151, 151, 151, hearsay=True, load_s=20))
    assert isinstance(decide(ask(), {"ollama": replace(loading, may_load=False)}, {}, [], NOW), GiveUp)

    quick = Standing(outlook=Outlook(0.3, 0.3, 0.4, 0.4, hearsay=True))
    run = [Run("ollama", NOW, NOW)]
    assert decide(ask(), {"ollama": quick}, {}, run, NOW + 5) == Wait(NOW + 15)
    # Nor is it trusted to come to the rescue at the last moment.
    rescue = decide(ask(), {"ollama": SLOW, "gemini": quick}, {}, run, NOW)
    assert isinstance(rescue, Wait)
    assert rescue.until < NOW + 8


def test_a_load_alone_does_not_keep_the_rescue_waiting() -> None:
    """Long unasked, all that is known is the load; the answer comes after it, and perhaps after the deadline."""
    loading = Standing(outlook=Outlook(13, 13, 13, 13, hearsay=True, load_s=13))
    known, run = {"ollama": loading, "gemini": FAST}, [Run("ollama", NOW, NOW)]
    step = decide(ask(), known, {}, run, NOW)
    assert isinstance(step, Wait)
    assert step.until < NOW + 12.5
    assert decide(ask(), known, {}, run, step.until) == Send("gemini")


@pytest.mark.parametrize(
    ("load_s", "standing", "tries", "begins"),
    [
        (16, {}, {}, True),
        (16, {"may_load": False}, {}, False),
        (16, {"wait_s": 0.5}, {}, False),
        (16, {"ready_at": NOW + 60}, {}, False),
        (16, {}, {"ollama": Try(TIMED_OUT, 1, NOW)}, False),
        (0, {}, {}, False),
    ],
)
def test_a_load_longer_than_the_deadline_is_begun_for_those_who_come_next(load_s, standing, tries, begins) -> None:
    """Otherwise a model that has gone would never be there again."""
    outlook = replace(takes(3 if load_s else 16, 20), load_s=load_s).plus(load_s)
    loading = {"ollama": Standing(outlook=outlook, **standing)}
    assert isinstance(decide(ask(), loading, tries, [], NOW), Send if begins else GiveUp)
    assert decide(ask(), {**loading, "gemini": FAST}, tries, [], NOW) == Send("gemini")


def test_each_reason_is_told() -> None:
    known = {
        "ollama": Standing(never=NO_VISION),
        "gemini": Standing(NOW + 40, "provider_rate_limited"),
        "third": Standing(wait_s=20, outlook=takes(1, 2)),
        "late": Standing(outlook=takes(20, 30)),
    }
    step = decide(ask(order=("other", *known)), known, {}, [], NOW)
    assert step == GiveUp(
        {
            "other": NOT_CONFIGURED,
            "ollama": NO_VISION,
            "gemini": "provider_rate_limited",
            "third": SLOTS_FULL,
            "late": TOO_LATE,
        },
        40,
    )
    assert why_not(ask(), known["gemini"], Try("answer_invalid"), NOW) == "answer_invalid"


def test_who_still_runs_at_the_end_timed_out() -> None:
    step = decide(ask(), {"ollama": FAST, "gemini": FAST}, {}, [Run("ollama", NOW, NOW)], NOW + 15)
    assert step == GiveUp({"ollama": TIMED_OUT, "gemini": TOO_LATE}, None)
