"""Writes aiworker/nutrition/data/taco.csv from the CSV tables in ../shared/data/taco.

Usage: python scripts/build_taco.py [SOURCE_FOLDER]

Source of the figures: NEPA/UNICAMP, Tabela Brasileira de Composição de Alimentos (TACO), 4th edition, 2011, which
may be reproduced if it is cited. Values are per 100 g of edible part. An empty cell is "not available" there and
here; a trace is 0. Names are the table's own, with its spacing and one misspelling put right.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT.parent / "shared" / "data" / "taco"
TARGET = ROOT / "aiworker" / "nutrition" / "data" / "taco.csv"

HEADER = (
    "# TACO, Tabela Brasileira de Composição de Alimentos, 4th ed., NEPA/UNICAMP, 2011; per 100 g of edible part.",
    "# Empty = not available (never zero). A trace is stored as 0.",
)
COLUMNS = {
    "kcal": "kcal",
    "protein_g": "protein",
    "carbohydrate_g": "carbohydrates",
    "lipids_g": "lipids",
    "fiber_g": "dietaryFiber",
    "sodium_mg": "sodium",
}


def clean_name(name: str) -> str:
    """The name with single spaces, one after each comma, and the table's "mingnon" spelt right."""
    spaced = re.sub(r",\s*", ", ", " ".join(name.split()))
    return spaced.strip().replace("mingnon", "mignon")


def clean_figure(value: str) -> str:
    """The shortest decimal that is the same number; empty stays empty."""
    return f"{float(value):g}" if value.strip() else ""


def rows(source: Path) -> list[list[str]]:
    """One row per food, by id: id, name, category, then the figures in the order of COLUMNS."""

    def table(name: str) -> list[dict[str, str]]:
        with (source / f"raulfdm-{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    categories = {row["id"]: row["name"] for row in table("categories")}
    figures = {row["foodId"]: row for row in table("nutrients")}
    return [
        [food["id"], clean_name(food["name"]), categories[food["categoryId"]]]
        + [clean_figure(figures[food["id"]][column]) for column in COLUMNS.values()]
        for food in sorted(table("food"), key=lambda food: int(food["id"]))
    ]


def main() -> None:
    """Writes the file."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    with TARGET.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in HEADER)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "name", "category", *COLUMNS])
        writer.writerows(rows(source))


if __name__ == "__main__":
    main()
