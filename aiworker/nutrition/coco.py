"""What the 80 classes of a COCO detector are called in Portuguese, and which ten of them are food.

Cutlery, bottles, cups and bowls are not food, though they lie among the food classes in the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from aiworker.nutrition.taco import read_rows


@dataclass(frozen=True, slots=True)
class CocoFood:
    """`grams` is a usual piece; `taco_id` is None where the table has no such food, or the class does not say which."""

    name_pt: str
    taco_id: int | None
    grams: float


def coco_food(class_name: str) -> CocoFood | None:
    """The food behind a COCO class, None for the 70 classes that are no food and for unknown names."""
    row = _rows().get(class_name)
    if row is None or not row["grams"]:
        return None
    return CocoFood(row["name_pt"], int(row["taco_id"]) if row["taco_id"] else None, float(row["grams"]))


def coco_name_pt(class_name: str) -> str:
    """The Portuguese name of a COCO class; a name that is none comes back as it is."""
    row = _rows().get(class_name)
    return row["name_pt"] if row else class_name


@cache
def _rows() -> dict[str, dict[str, str]]:
    return {row["class_name"]: row for row in read_rows("coco.csv")}
