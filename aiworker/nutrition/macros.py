"""Adding up what was eaten without hiding what is not known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiworker.nutrition.taco import NUTRIENTS, Food, Macros

_DECIMALS = tuple(0 if name in ("kcal", "sodium_mg") else 1 for name in NUTRIENTS)


@dataclass(frozen=True, slots=True)
class Totals:
    """The rounded sum of what is known, and the names of the nutrients for which some item had no figure.

    A nutrient that no item has a figure for is None in `macros`; an empty meal is all None and complete.
    """

    macros: Macros
    grams: float
    incomplete: frozenset[str]

    def complete(self, nutrient: str) -> bool:
        """Whether every item had a figure for `nutrient`, a name in NUTRIENTS."""
        return nutrient not in self.incomplete


def total(items: Iterable[tuple[Food | None, float]]) -> Totals:
    """Adds up (food, grams) pairs as they are and rounds once, at the end.

    A food of None was not found in the table, so nothing of it is known.
    """
    eaten = [((food.per_100g if food else Macros()).scaled(grams), grams) for food, grams in items]
    columns = list(zip(*(macros.values() for macros, _ in eaten), strict=True)) or [()] * len(NUTRIENTS)
    incomplete = frozenset(name for name, column in zip(NUTRIENTS, columns, strict=True) if None in column)
    return Totals(rounded(Macros(*map(_sum, columns))), round(sum(grams for _, grams in eaten), 1), incomplete)


def rounded(macros: Macros) -> Macros:
    """Energy and sodium to whole numbers, grams to 0.1."""
    pairs = zip(macros.values(), _DECIMALS, strict=True)
    return Macros(*(None if value is None else round(value, decimals) for value, decimals in pairs))


def _sum(column: Iterable[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return sum(known) if known else None
