"""Whether an answer quotes its own instructions. Pure."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Shorter runs of words are the language's own ("arroz branco cozido", "e um pouco de").
_RUN = 8
_QUOTED = re.compile(r'"[^"]*"')
_WORD = re.compile(r"[^\W_]+")


def quotes(system: str, answer: str) -> bool:
    """True where `_RUN` words in a row of `answer` stand so in `system`, whatever their case, accents and marks."""
    known = _runs(system)
    words = _words(answer)
    return any(words[start : start + _RUN] in known for start in range(len(words) - _RUN + 1))


@lru_cache(maxsize=64)
def _runs(text: str) -> frozenset[tuple[str, ...]]:
    # What stands between quotation marks is an example of an answer.
    stretches = [_words(stretch) for stretch in _QUOTED.split(text)]
    return frozenset(words[start : start + _RUN] for words in stretches for start in range(len(words) - _RUN + 1))


def _words(text: str) -> tuple[str, ...]:
    bare = unicodedata.normalize("NFKD", text.replace("\\n", " ").casefold())
    return tuple(_WORD.findall("".join(letter for letter in bare if not unicodedata.combining(letter))))
