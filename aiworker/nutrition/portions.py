"""How many grams a household measure, a piece or a serving of a food has.

The figures and where each is from are in data/portions.csv; most are estimates, and the caller is told which.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from aiworker.nutrition.matching import match_food
from aiworker.nutrition.taco import Food, read_rows
from aiworker.nutrition.words import words

PIECE = "unidade"
SERVING = "porção"


@dataclass(frozen=True, slots=True)
class Portion:
    """One `unit` of a food. `source` is a publication or "estimate"; millilitres count as grams."""

    unit: str
    grams: float
    source: str


def default_grams(food: Food | str, unit: str = SERVING) -> float:
    """Grams of one `unit` of a food, by default of one serving. Always above 0."""
    return portion(food, unit).grams


def portion(food: Food | str, unit: str = SERVING) -> Portion:
    """One `unit` of `food`, as this food has it, else its category, else any food.

    A serving of what comes in pieces is one piece, and the other way round. An unknown unit reads as a serving.
    """
    asked = unit if unit in _table() else SERVING
    either = {PIECE: (PIECE, SERVING), SERVING: (SERVING, PIECE)}.get(asked, (asked,))
    known = food if isinstance(food, Food) else _known(food)
    names = [name for name in (food if isinstance(food, str) else "", known.name if known else "") if name]
    for name in names:
        for option in either:
            if found := _of_food(option, words(name)):
                return found
    category = frozenset({f"@{known.category}"}) if known else frozenset[str]()
    general = next((_table()[option][category] for option in either if category in _table()[option]), None)
    return general or _table()[asked].get(frozenset()) or _table()[SERVING][frozenset()]


def _known(name: str) -> Food | None:
    match = match_food(name)
    return match.food if match else None


def _of_food(unit: str, said: tuple[str, ...]) -> Portion | None:
    """The row whose words are all said, the first of them included; the more words, the better."""
    fitting = [(len(key), row) for key, row in _table()[unit].items() if key <= set(said) and set(said[:1]) & key]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


@cache
def _table() -> dict[str, dict[frozenset[str], Portion]]:
    table: defaultdict[str, dict[frozenset[str], Portion]] = defaultdict(dict)
    for row in read_rows("portions.csv"):
        food = row["food"]
        key = frozenset({food}) if food.startswith("@") else frozenset(words(food))
        table[row["unit"]][key] = Portion(row["unit"], float(row["grams"]), row["source"])
    return dict(table)
