"""The TACO table: 597 Brazilian foods per 100 g of edible part.

Source: NEPA/UNICAMP, Tabela Brasileira de Composição de Alimentos (TACO), 4th edition, Campinas, 2011. A figure that
the table does not have is None, never 0 (energy is missing in 6 foods, plain cow's milk among them); a trace is 0.
"""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Macros:
    """Energy in kcal, sodium in mg, the rest in g. None is "not known"."""

    kcal: float | None = None
    protein_g: float | None = None
    carbs_g: float | None = None
    fat_g: float | None = None
    fiber_g: float | None = None
    sodium_mg: float | None = None

    def scaled(self, grams: float) -> Macros:
        """These figures, taken as per 100 g, for `grams`; unknown stays unknown."""
        return Macros(*(None if value is None else value * grams / 100 for value in self.values()))

    def values(self) -> tuple[float | None, ...]:
        """The figures in the order of NUTRIENTS."""
        return astuple(self)


NUTRIENTS = tuple(field.name for field in fields(Macros))


@dataclass(frozen=True, slots=True)
class Food:
    """One row; `id` is the table's own number, 1..597."""

    id: int
    name: str
    category: str
    per_100g: Macros


class Taco:
    """The foods in the table's order, and by id."""

    def __init__(self, foods: tuple[Food, ...]) -> None:
        self.foods = foods
        self._by_id = {food.id: food for food in foods}

    def __getitem__(self, food_id: int) -> Food:
        """Raises KeyError for an id that the table does not have."""
        return self._by_id[food_id]


@cache
def load_taco() -> Taco:
    """The table, read from the package once."""
    return Taco(tuple(_food(row) for row in read_rows("taco.csv")))


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this package; lines that start with # are comments."""
    text = files("aiworker.nutrition").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def _food(row: dict[str, str]) -> Food:
    figures = (row[name] for name in ("kcal", "protein_g", "carbohydrate_g", "lipids_g", "fiber_g", "sodium_mg"))
    macros = Macros(*(float(figure) if figure else None for figure in figures))
    return Food(int(row["id"]), row["name"], row["category"], macros)
