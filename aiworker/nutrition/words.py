"""The words of a Portuguese food name, folded so that spelling, accents, plural and gender do not matter.

Folding only has to be the same on both sides of a comparison; the result is not meant to be read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


def set_of(names: str) -> frozenset[str]:
    """The words of a space-separated list."""
    return frozenset(names.split())


# Ways to prepare a food that the TACO table tells apart.
PREPARATIONS = set_of("cru cozido frito assado grelhado refogado milanesa saute torrado escabeche")

_STOP = set_of("a ao aos as com da das de do dos e em na nas no nos o os ou por que um uma umas")
_FOLDED_BY_GENDER = set_of(
    "cozido frito assado grelhado refogado torrado moido salgado preto branco vermelho amarelo roxo desnatado "
    "fresco cremoso enlatado congelado seco bovino suino ralado picado fatiado desfiado recheado temperado "
    "industrializado inteiro pronto coado gelado natalino maduro pequeno medio caseiro cortado defumado drenado"
)
_SAME = {
    **{word[:-1] + "a": word for word in _FOLDED_BY_GENDER},
    "crua": "cru",
    "arro": "arroz",
    "mussarela": "mozarela",
    "mucarela": "mozarela",
    "muzzarela": "mozarela",
    "mozzarella": "mozarela",
    "mozarella": "mozarela",
    "chapa": "grelhado",
    "grelha": "grelhado",
    "churrasqueira": "grelhado",
    "brasa": "grelhado",
    "empanado": "milanesa",
    "empanada": "milanesa",
    "forno": "assado",
    "suino": "porco",
    "suina": "porco",
    "boi": "bovino",
    "gado": "bovino",
    "hamburger": "hamburguer",
    "burger": "hamburguer",
    "aipim": "mandioca",
    "macaxeira": "mandioca",
    "yogurt": "iogurte",
    "iogurt": "iogurte",
    "strogonoff": "estrogonofe",
    "stroganoff": "estrogonofe",
    "estrogonoff": "estrogonofe",
    "strogonofe": "estrogonofe",
    "espaguete": "macarrao",
    "spaghetti": "macarrao",
    "macarronada": "macarrao",
    "bolonhesa": "bolognesa",
    "catupiri": "catupiry",
}
_PHRASES = (
    (re.compile(r"\bcarnes? (?:de |d[eo] )?(porco|suina|frango|peru|cordeiro|carneiro|coelho|pato|soja)\b"), r"\1"),
    (re.compile(r"\bcarnes? de vacas?\b"), "carne bovina"),
)
_ENDINGS = (
    ("oes", "ao"),
    ("aes", "ao"),
    ("ais", "al"),
    ("eis", "el"),
    ("ns", "m"),
    ("res", "r"),
    ("zes", "z"),
    ("eses", "e"),
)
_WORD = re.compile(r"[a-z0-9]+")


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """The folded words of `text` in order, without articles and prepositions; "sem pele" is the one word "sem-pele"."""
    plain = plain_text(text)
    for pattern, replacement in _PHRASES:
        plain = pattern.sub(replacement, plain)
    found: list[str] = []
    without = False
    for raw in _WORD.findall(plain):
        if raw == "sem":
            without = True
        elif raw not in _STOP:
            found.append(f"sem-{fold(raw)}" if without else fold(raw))
            without = False
    return tuple(found)


def plain_text(text: str) -> str:
    """Lower case, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def fold(word: str) -> str:
    """One plain word without its plural and gender, under its usual name."""
    singular = _singular(word)
    return _SAME.get(singular, singular)


def _singular(word: str) -> str:
    if len(word) <= 3 or word.endswith("ss"):
        return word
    for plural, singular in _ENDINGS:
        if word.endswith(plural) and len(word) > len(plural):
            return word[: -len(plural)] + singular
    return word.removesuffix("s")
