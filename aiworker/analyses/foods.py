"""Foods with grams to macros: what the food analyses share. Figures come from TACO or are None, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from aiworker.nutrition.macros import rounded, total
from aiworker.nutrition.matching import match_food
from aiworker.nutrition.taco import Food, Macros, load_taco


class FoodLine(BaseModel):
    """One food of a meal. Macros are for `grams`; None where TACO has no figure or no such food."""

    name: str
    grams: float
    confidence: float = Field(ge=0, le=1)
    kcal: float | None
    protein_g: float | None
    carbs_g: float | None
    fat_g: float | None
    fiber_g: float | None
    sodium_mg: float | None
    taco_id: int | None
    taco_name: str | None


class MealTotals(BaseModel):
    """Sums of the known figures; `incomplete` names each nutrient for which some food had none."""

    kcal: float | None
    protein_g: float | None
    carbs_g: float | None
    fat_g: float | None
    fiber_g: float | None
    sodium_mg: float | None
    grams: float
    incomplete: list[str]
    unmatched: list[str]


def food_line(name: str, grams: float, confidence: float, taco_id: int | None = None) -> FoodLine:
    """Looks `name` up in TACO, unless `taco_id` says which food it is."""
    food = _food(name, taco_id)
    macros = rounded(food.per_100g.scaled(grams)) if food else Macros()
    return FoodLine(
        name=name,
        grams=round(grams, 1),
        confidence=round(confidence, 3),
        **asdict(macros),
        taco_id=food.id if food else None,
        taco_name=food.name if food else None,
    )


def meal_totals(lines: Sequence[FoodLine]) -> MealTotals:
    """Sums `lines` from the table's own figures, not from their rounded ones."""
    taco = load_taco()
    sums = total((None if line.taco_id is None else taco[line.taco_id], line.grams) for line in lines)
    return MealTotals(
        **asdict(sums.macros),
        grams=sums.grams,
        incomplete=sorted(sums.incomplete),
        unmatched=[line.name for line in lines if line.taco_id is None],
    )


def old_nutrition_totals(lines: Sequence[FoodLine], totals: MealTotals) -> dict[str, Any]:
    """`nutrition_totals` as the old function's callers read it."""
    flags = [f"incomplete:{name}" for name in totals.incomplete] + [f"unmatched:{name}" for name in totals.unmatched]
    return {
        "totals": {
            "kcal": totals.kcal,
            "protein": totals.protein_g,
            "carbs": totals.carbs_g,
            "fat": totals.fat_g,
            "fiber": totals.fiber_g,
            "sodium": totals.sodium_mg,
        },
        "grams_total": totals.grams,
        "flags": flags,
        "taco_details": [
            {
                "name": line.name,
                "grams": line.grams,
                "kcal": line.kcal,
                "protein": line.protein_g,
                "carbs": line.carbs_g,
                "fat": line.fat_g,
                "taco_match": line.taco_name,
            }
            for line in lines
        ],
    }


def _food(name: str, taco_id: int | None) -> Food | None:
    if taco_id is not None:
        return load_taco()[taco_id]
    match = match_food(name)
    return match.food if match else None
