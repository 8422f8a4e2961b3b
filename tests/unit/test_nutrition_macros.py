from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.nutrition.macros import rounded, total
from aiworker.nutrition.meals import meal_at, meal_type
from aiworker.nutrition.taco import NUTRIENTS, Food, Macros, load_taco

RICE, BEANS, EGG, MILK = 3, 561, 490, 458


def test_a_plate_of_rice_beans_and_egg():
    taco = load_taco()
    totals = total([(taco[RICE], 200), (taco[BEANS], 90), (taco[EGG], 50)])
    # 256 + 68.4 + 120; 5 + 4.32 + 7.8; 56.2 + 12.24 + 0.6; 0.4 + 0.45 + 9.3
    assert totals.macros.kcal == 444
    assert totals.macros.protein_g == 17.1
    assert totals.macros.carbs_g == 69.0
    assert totals.macros.fat_g == pytest.approx(10.2, abs=0.051)
    assert totals.grams == 340
    # TACO has no fibre for an egg: the sum is of the rest, and says so.
    assert totals.incomplete == {"fiber_g"}
    assert not totals.complete("fiber_g")
    assert totals.macros.fiber_g == pytest.approx(10.9, abs=0.051)


def test_milk_has_no_energy_in_the_table_and_the_sum_says_so():
    taco = load_taco()
    totals = total([(taco[RICE], 100), (taco[MILK], 200)])
    assert totals.macros.kcal == 128
    assert not totals.complete("kcal")


def test_only_unknown_is_none_not_zero():
    totals = total([(load_taco()[MILK], 200)])
    assert totals.macros.kcal is None
    assert "kcal" in totals.incomplete


def test_a_food_that_was_not_found_leaves_everything_incomplete():
    totals = total([(None, 150), (load_taco()[RICE], 100)])
    assert totals.incomplete == set(NUTRIENTS)
    assert totals.macros.kcal == 128
    assert totals.grams == 250


def test_nothing_eaten_is_not_zero_calories():
    totals = total([])
    assert totals.macros == Macros()
    assert totals.incomplete == frozenset()


def test_rounding_is_done_once_at_the_end():
    food = Food(1, "x", "y", Macros(kcal=0.4, protein_g=0.04))
    totals = total([(food, 100)] * 3)
    assert totals.macros.kcal == 1
    assert totals.macros.protein_g == 0.1


def test_rounding_units():
    assert rounded(Macros(1.6, 1.26, 1.24, None, 0.0, 3.5)) == Macros(2, 1.3, 1.2, None, 0.0, 4)


figures = st.one_of(st.none(), st.floats(0, 900))
foods = st.builds(Food, st.just(1), st.just("x"), st.just("y"), st.builds(Macros, *[figures] * 6))


@given(st.lists(st.tuples(foods, st.floats(0.1, 5000)), max_size=6))
def test_a_nutrient_is_complete_exactly_when_every_item_has_it(items):
    totals = total(items)
    for name in NUTRIENTS:
        column = [getattr(food.per_100g, name) for food, _ in items]
        assert totals.complete(name) == (None not in column)
        known = any(value is not None for value in column)
        assert (getattr(totals.macros, name) is not None) == known


@pytest.mark.parametrize(
    ("hour", "meal"),
    [
        (4, "jantar"),
        (5, "cafe_da_manha"),
        (9, "cafe_da_manha"),
        (10, "almoco"),
        (13, "almoco"),
        (14, "lanche"),
        (17, "lanche"),
        (18, "jantar"),
        (23, "jantar"),
        (0, "jantar"),
    ],
)
def test_meal_by_the_hour(hour, meal):
    assert meal_type(hour) == meal


def test_the_meal_is_by_the_clock_of_sao_paulo_not_the_servers():
    # 15:30 UTC is 12:30 in São Paulo: lunch, where the old system said snack.
    assert meal_at(datetime(2026, 1, 18, 15, 30, tzinfo=UTC)) == "almoco"
    assert meal_at(datetime(2026, 1, 18, 1, 0, tzinfo=UTC)) == "jantar"


def test_a_moment_without_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        meal_at(datetime(2026, 1, 18, 12, 0))
