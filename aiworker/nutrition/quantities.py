"""How much: numbers in figures and Portuguese words, and the units that follow them.

All functions read a list of plain (lower case, unaccented) words from a position and return what they found there
with the position after it, or None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiworker.nutrition.words import fold, set_of

_SMALL = {
    "um": 1, "uma": 1, "dois": 2, "duas": 2, "tres": 3, "quatro": 4, "cinco": 5, "seis": 6, "sete": 7, "oito": 8,
    "nove": 9, "dez": 10, "onze": 11, "doze": 12, "treze": 13, "catorze": 14, "quatorze": 14, "quinze": 15,
    "dezesseis": 16, "dezessete": 17, "dezoito": 18, "dezenove": 19,
}  # fmt: skip
_TENS = {
    "vinte": 20, "trinta": 30, "quarenta": 40, "cinquenta": 50, "sessenta": 60, "setenta": 70, "oitenta": 80,
    "noventa": 90,
}  # fmt: skip
_HUNDREDS = {
    "cem": 100, "cento": 100, "duzentos": 200, "duzentas": 200, "trezentos": 300, "trezentas": 300,
    "quatrocentos": 400, "quatrocentas": 400, "quinhentos": 500, "quinhentas": 500, "seiscentos": 600,
    "setecentos": 700, "oitocentos": 800, "novecentos": 900,
}  # fmt: skip
_WORD_NUMBERS: dict[str, float] = {**_SMALL, **_TENS, **_HUNDREDS}
_HALF = {"meio", "meia"}
_PARTS = {"quarto": 4, "quartos": 4, "terco": 3, "tercos": 3}
# "chocolate meio amargo", "queijo meia cura", "pizza quatro queijos": these say which food, not how much.
_NOT_COUNTED = set_of("amargo cura queijos graos leites")
_RANGE = set_of("a ou ate - –")

# Grams of each exact unit; a millilitre counts as a gram.
EXACT_UNITS = {"g": 1.0, "kg": 1000.0, "ml": 1.0, "l": 1000.0}
_EXACT_NAMES = {
    "g": "g", "gr": "g", "grs": "g", "grama": "g", "kg": "kg", "quilo": "kg", "kilo": "kg", "ml": "ml",
    "mililitro": "ml", "l": "l", "lt": "l", "litro": "l",
}  # fmt: skip
_MEASURES = {
    "unidade": "unidade", "un": "unidade", "und": "unidade", "porcao": "porção", "fatia": "fatia", "pedaco": "pedaço",
    "concha": "concha", "escumadeira": "escumadeira", "xicara": "xícara", "copo": "copo", "caneca": "caneca",
    "taca": "taça", "prato": "prato", "tigela": "tigela", "posta": "posta", "lata": "lata", "latinha": "lata",
    "garrafa": "garrafa", "pote": "pote", "pacote": "pacote", "barra": "barra", "punhado": "punhado",
    "folha": "folha", "ramo": "ramo", "gomo": "gomo", "dente": "dente", "rodela": "rodela", "bola": "bola",
    "espeto": "espeto", "espetinho": "espeto", "scoop": "scoop", "colher": "colher de sopa", "fio": "fio",
    "colherada": "colher de sopa", "colherinha": "colher de chá", "pegador": "pegador", "garfada": "garfada",
    "quadradinho": "quadradinho", "marmita": "marmita", "cumbuca": "tigela", "copinho": "xícara de café",
}  # fmt: skip
# What may follow a measure, with "de" or without, and makes another one of it.
_KINDS = {
    ("colher", "sopa"): "colher de sopa",
    ("colher", "sobremesa"): "colher de sobremesa",
    ("colher", "cha"): "colher de chá",
    ("colher", "cafe"): "colher de café",
    ("colher", "servir"): "colher de servir",
    ("colher", "arroz"): "colher de servir",
    ("xicara", "cha"): "xícara",
    ("xicara", "cafe"): "xícara de café",
    ("copo", "americano"): "copo americano",
    ("prato", "fundo"): "prato fundo",
    ("prato", "raso"): "prato",
    ("prato", "sobremesa"): "prato de sobremesa",
}
# These kinds are foods as well: "uma xícara de chá" is tea, "uma xícara de chá de arroz" is rice.
_ALSO_FOOD = set_of("cha cafe arroz")
_SIZES = set_of("cheio cheia rasa grande medio pequeno pequena bem")
_OF = set_of("de do da dos das")
_FIGURE = re.compile(r"[0-9][0-9.,/]*")
_LARGEST = 1e6


@dataclass(frozen=True, slots=True)
class Quantity:
    """`amount` of `unit`; unit None where only a number was said."""

    amount: float
    unit: str | None


def read_quantity(plain: Sequence[str], start: int) -> tuple[Quantity, int] | None:
    """A number, or a range (its middle), and the unit after it: "2 a 3 colheres de sopa cheias de"."""
    first = read_number(plain, start)
    if first is None:
        return None
    amount, position = first
    between = plain[max(start - 1, 0)] == "entre"
    if position < len(plain) and (plain[position] in _RANGE or (between and plain[position] == "e")):
        second = read_number(plain, position + 1)
        if second is not None:
            amount, position = (amount + second[0]) / 2, second[1]
    unit = _read_unit(plain, position)
    if unit is None:
        return Quantity(amount, None), _after_of(plain, position)
    name, position = unit
    return Quantity(amount, name), _after_of(plain, position)


def read_number(plain: Sequence[str], start: int) -> tuple[float, int] | None:
    """ "2", "1,5", "1.000", "1/2", "1 1/2", "duas", "cento e vinte", "uma e meia", "meia dúzia", "um quarto"."""
    found = _figure(plain, start) or _in_words(plain, start)
    if found is None:
        return None
    value, position = found
    following = plain[position] if position < len(plain) else ""
    if following in _NOT_COUNTED:
        return None
    if following in ("duzia", "duzias"):
        return min(value * 12, _LARGEST), position + 1
    if following in _PARTS:
        return value / _PARTS[following], position + 1
    if following == "e" and plain[position + 1 : position + 2] in (["meio"], ["meia"]):
        return value + 0.5, position + 2
    return min(value, _LARGEST), position


def _figure(plain: Sequence[str], start: int) -> tuple[float, int] | None:
    if start >= len(plain) or not _FIGURE.fullmatch(plain[start]):
        return None
    value = _value(plain[start])
    following = plain[start + 1] if start + 1 < len(plain) else ""
    if "/" not in plain[start] and re.fullmatch(r"[0-9]/[0-9]", following):
        return value + _value(following), start + 2
    return value, start + 1


def _value(figure: str) -> float:
    """Decimal comma; a point before exactly three digits separates thousands, as in Brazil. A date is 0."""
    parts = [_decimal(part) for part in figure.split("/") if part]
    if len(parts) == 1:
        return parts[0]
    return min(parts[0] / parts[1], _LARGEST) if len(parts) == 2 and parts[1] else 0.0


def _decimal(figure: str) -> float:
    plain = re.sub(r"\.(?=[0-9]{3}(?![0-9]))", "", figure.strip(".,")).replace(",", ".")
    whole, _, decimals = plain.partition(".")
    return min(float(f"{whole[:8] or 0}.{re.sub('[^0-9]', '', decimals)[:6] or 0}"), _LARGEST)


def _in_words(plain: Sequence[str], start: int) -> tuple[float, int] | None:
    if start >= len(plain):
        return None
    if plain[start] in _HALF:
        return 0.5, start + 1
    if plain[start] not in _WORD_NUMBERS:
        return None
    last = value = _WORD_NUMBERS[plain[start]]
    position = start + 1
    while position + 1 < len(plain) and plain[position] == "e" and _WORD_NUMBERS.get(plain[position + 1], last) < last:
        if last < 20:
            break
        last = _WORD_NUMBERS[plain[position + 1]]
        value, position = value + last, position + 2
    return float(value), position


def _read_unit(plain: Sequence[str], start: int) -> tuple[str, int] | None:
    if start >= len(plain):
        return None
    word = fold(plain[start])
    if word in _EXACT_NAMES:
        return _EXACT_NAMES[word], start + 1
    if word not in _MEASURES:
        return None
    position = _after_sizes(plain, start + 1)
    kind = plain[position + 1 : position + 2] if plain[position : position + 1] == ["de"] else plain[position:][:1]
    unit = _KINDS.get((word, fold(kind[0]))) if kind else None
    if unit is None:
        return _MEASURES[word], position
    after = position + (2 if plain[position] == "de" else 1)
    if fold(kind[0]) in _ALSO_FOOD and plain[after : after + 1] != ["de"]:
        return _MEASURES[word], position
    return unit, _after_sizes(plain, after)


def _after_sizes(plain: Sequence[str], position: int) -> int:
    while position < len(plain) and fold(plain[position]) in _SIZES:
        position += 1
    return position


def _after_of(plain: Sequence[str], position: int) -> int:
    return position + 1 if position < len(plain) and plain[position] in _OF else position
