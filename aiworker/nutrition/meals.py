"""Which meal a moment belongs to, on the clock of São Paulo whatever the server's is."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

Meal = Literal["cafe_da_manha", "almoco", "lanche", "jantar"]

ZONE = ZoneInfo("America/Sao_Paulo")


def meal_type(hour: int) -> Meal:
    """`hour` is 0..23, local: breakfast from 5, lunch from 10, snack from 14, dinner from 18 until 5."""
    if 5 <= hour < 10:
        return "cafe_da_manha"
    if 10 <= hour < 14:
        return "almoco"
    if 14 <= hour < 18:
        return "lanche"
    return "jantar"


def meal_at(moment: datetime) -> Meal:
    """The meal at `moment`, which must carry its time zone (ValueError otherwise)."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone has no local hour")
    return meal_type(moment.astimezone(ZONE).hour)
