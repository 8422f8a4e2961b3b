"""What is known of Gemini's models by their names: prices, and how little they can be told to think. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Price(NamedTuple):
    """Dollars per million tokens; thinking is paid as answer."""

    prompt: float
    answer: float

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Dollars."""
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


FREE = Price(0.0, 0.0)


class Thinking(NamedTuple):
    """`config` is the call's `thinkingConfig`; thinking eats up to about `tokens` of the answer's."""

    config: dict[str, Any]
    tokens: int


# Paid tier up to 200k tokens of prompt, from ai.google.dev/gemini-api/docs/pricing as quoted in November 2026. The
# longest prefix of the name wins. Gemini 2.5 Flash and Pro end on 1 December 2026; what answers in their place from
# then on costs no more.
_PRICES: dict[str, Price] = {
    "gemini-2.5-flash-lite": Price(0.10, 0.40),
    "gemini-2.5-flash": Price(0.30, 2.50),
    "gemini-2.5-pro": Price(1.25, 10.00),
    "gemini-3-flash": Price(0.50, 3.00),
    "gemini-3.1-flash-lite": Price(0.25, 1.50),
    "gemini-3.5-flash-lite": Price(0.30, 2.50),
    "gemini-3.5-flash": Price(1.50, 9.00),
    # Half of it until the end of 2026; a budget had better end early than late.
    "gemini-3.8-flash": Price(1.50, 7.50),
}
# Thinking costs seconds. Gemini 2.5 takes a number of tokens (Flash can do without; 128 is the least that Pro takes),
# Gemini 3 a level.
_THINKING: dict[str, Thinking] = {
    "gemini-2.5-flash": Thinking({"thinkingBudget": 0}, 0),
    "gemini-2.5-pro": Thinking({"thinkingBudget": 128}, 128),
    "gemini-3-flash": Thinking({"thinkingLevel": "minimal"}, 512),
    "gemini-3.1-flash-lite": Thinking({"thinkingLevel": "minimal"}, 512),
    "gemini-3.5-flash": Thinking({"thinkingLevel": "minimal"}, 512),
    "gemini-3": Thinking({"thinkingLevel": "low"}, 2048),
    # "gemini-flash-latest" and its kin: whatever they are today, it is a Gemini 3 or later.
    "gemini-flash": Thinking({"thinkingLevel": "low"}, 2048),
    "gemini-pro": Thinking({"thinkingLevel": "low"}, 2048),
}


def price_of(model: str) -> Price | None:
    """None for a model that is not on our list."""
    return _longest_prefix(_PRICES, model)


def thinking_of(model: str) -> Thinking:
    """The least that it can be told; nothing is said to a model that is not on our list."""
    return _longest_prefix(_THINKING, model) or Thinking({}, 0)


def takes_temperature(model: str) -> bool:
    """Not Gemini 3, which below its own temperature may go round in circles, and since 3.5 takes none."""
    return "thinkingLevel" not in thinking_of(model).config


def wants_signatures(model: str) -> bool:
    """Gemini 3 refuses a turn whose first call has none."""
    return "thinkingLevel" in thinking_of(model).config


def _longest_prefix(table: Mapping[str, _T], name: str) -> _T | None:
    fitting = [prefix for prefix in table if name.startswith(prefix)]
    return table[max(fitting, key=len)] if fitting else None
