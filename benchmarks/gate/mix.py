"""What is asked for, how often, and how long a provider takes to answer it.

Calls a day and the quantiles of the old functions are MaxNutrition's own planning figures. A quantile there is of the
whole function; what is left for the language model is that minus the least that the other stages are said to take
(YOLO 2 s, arithmetic 1 s, database 1 s). See docs/adr/030-the-gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from aiworker.analyses.registry import ANALYSES, checked_input
from aiworker.domain.errors import InputRejected

_YOLO_S, _ARITHMETIC_S, _DATABASE_S = 2.0, 1.0, 1.0
_LEAST_S = 0.3

MESSAGES = (
    "monte um cardápio de 1800 kcal para hoje",
    "quais frutas têm pouca glicose?",
    "estou com dor de cabeça e dormi mal, o que faço?",
    "como aumentar a proteína no café da manhã?",
)
GREETINGS = ("bom dia", "oi", "obrigada!", "tudo bem?")
MEALS = (
    "comi 200 g de arroz, feijão e um bife",
    "dois ovos fritos e um pão francês",
    "salada de alface com tomate e frango grelhado",
    "um prato de macarrão com carne moída",
)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds at the 50th, 95th, 99th and 100th percentile."""

    p50: float
    p95: float
    p99: float
    most: float

    def without(self, seconds: float) -> Quantiles:
        return Quantiles(*(max(_LEAST_S, each - seconds) for each in (self.p50, self.p95, self.p99, self.most)))

    def at(self, share: float) -> float:
        """Seconds at the quantile `share`, 0..1: straight lines between the known ones, in the logarithm of the time.
        The fastest answer takes half of the median."""
        known = ((0.0, self.p50 / 2), (0.5, self.p50), (0.95, self.p95), (0.99, self.p99), (1.0, self.most))
        for (left, low), (right, high) in pairwise(known):
            if share <= right:
                part = (share - left) / (right - left)
                return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
        return self.most


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of job in the mix. `whole` are the old function's quantiles, `yolo` whether it looked at a photo first.

    `make(rng, photo_url)` gives an input.
    """

    name: str
    calls_a_day: int
    whole: Quantiles
    yolo: bool
    make: Callable[[Random, str], dict[str, Any]]

    @property
    def model(self) -> Quantiles:
        """What its language model takes."""
        return self.whole.without(_ARITHMETIC_S + _DATABASE_S + (_YOLO_S if self.yolo else 0.0))


_USER = "11111111-1111-4111-8111-111111111111"
_CHAT = Quantiles(7, 14, 22, 35)
_WHATSAPP = Quantiles(5, 10, 15, 25)

OLLAMA = Quantiles(1.5, 3.0, 4.0, 6.0)
"""The documents say 1-3 s for an answer of the small model."""


def _message(rng: Random, _photo: str) -> dict[str, Any]:
    message = rng.choice(GREETINGS) if rng.random() < 0.25 else rng.choice(MESSAGES)
    return {"message": message, "userId": _USER, "text": message, "phone": "5511999990000"}


def _image(_rng: Random, photo: str) -> dict[str, Any]:
    return {"imageUrl": photo, "userId": _USER}


def _text(rng: Random, _photo: str) -> dict[str, Any]:
    return {"text": rng.choice(MEALS), "userId": _USER}


def _exam(rng: Random, photo: str) -> dict[str, Any]:
    return {"externalUrls": [photo] * rng.randint(1, 3), "userId": _USER, "documentId": _USER}


def _plan(rng: Random, _photo: str) -> dict[str, Any]:
    return {"calorias": rng.choice((1500, 1800, 2200)), "dias": 7, "userId": _USER}


def _fit(rng: Random, _photo: str) -> dict[str, Any]:
    metrics = {"steps": rng.randint(1000, 15000), "calories": 300, "activeMinutes": 40, "sleepHours": 7}
    return {"metrics": metrics | {"heartRateAvg": 70, "distance": 4000}, "period": "day", "userId": _USER}


def _foods(rng: Random, _photo: str) -> dict[str, Any]:
    return {"detected_foods": [{"name": "arroz branco", "grams": rng.randint(50, 300)}], "user_id": _USER}


# No calls a day are given for the last four; 50 puts a few of each into the mix. google_fit and the two without
# quantiles of their own take those of the nearest function.
KINDS: tuple[Kind, ...] = (
    Kind("sofia_image", 500, Quantiles(10, 18, 28, 45), True, _image),
    Kind("medical_exam", 200, Quantiles(15, 28, 38, 60), False, _exam),
    Kind("unified_assistant", 1000, _CHAT, False, _message),
    Kind("whatsapp_message", 800, _WHATSAPP, False, _message),
    Kind("dr_vital", 300, _CHAT, False, _message),
    Kind("meal_plan", 150, Quantiles(12, 22, 32, 50), False, _plan),
    Kind("whatsapp_nutrition", 600, _WHATSAPP, False, _message),
    Kind("google_fit", 100, Quantiles(6, 10, 15, 25), False, _fit),
    Kind("sofia_text", 50, _WHATSAPP, False, _text),
    Kind("medical_document", 50, Quantiles(15, 28, 38, 60), False, _exam),
    Kind("enhanced_memory", 50, _CHAT, False, _message),
    Kind("sofia_deterministic", 50, _WHATSAPP, False, _foods),
)
BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def kinds_here() -> tuple[Kind, ...]:
    """Those of the mix that this release knows and whose input it takes."""
    return tuple(kind for kind in KINDS if kind.name in ANALYSES and _accepted(kind))


def _accepted(kind: Kind) -> bool:
    try:
        checked_input(ANALYSES[kind.name], kind.make(Random(0), "https://example.org/a.jpg"))
    except InputRejected:
        return False
    return True


def model_latency(purpose: str, rng: Random) -> float:
    """Seconds that Gemini takes for a prompt of this purpose (a job type)."""
    return BY_NAME.get(purpose, BY_NAME["unified_assistant"]).model.at(rng.random())
