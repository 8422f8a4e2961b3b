"""What somebody says to have eaten, in Portuguese, as foods with grams. By rule, no model.

"comi 200 g de arroz e um ovo frito" -> arroz 200 g, ovo frito 50 g. What is denied ("não comi doce", "sem açúcar")
is left out. Text that is not about food gives nothing; instructions in it are words like any others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiworker.nutrition.matching import known_absent, match_food
from aiworker.nutrition.portions import PIECE, SERVING, default_grams
from aiworker.nutrition.quantities import EXACT_UNITS, Quantity, read_number, read_quantity
from aiworker.nutrition.words import fold, plain_text, set_of

MAX_CHARS = 4000
MAX_GRAMS = 5000.0
MAX_MENTIONS = 60
_MAX_NAME_WORDS = 7
_MAX_NAME_CHARS = 80

_FRACTIONS = str.maketrans({"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "})
_TOKEN = re.compile(r"[0-9]+(?:[.,/][0-9]+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*|[,;.!?\n+&/–%-]")
_PHRASES = re.compile(
    r"\bcaf[ée] da (?:manh[ãa]|tarde)\b|\bmais ou menos\b|\bcerca de\b|\bpor volta de\b|\bpelo menos\b"
    r"|\bum pou(?:co|quinho) (?:mais )?de\b|\b(?:de|da|pela|[àa]) (?:manh[ãa]|tarde|noite)\b"
)
_ATE = set_of(
    "comi comemos comendo almocei almocamos jantei jantamos lanchei tomei tomamos bebi bebemos ingeri consumi "
    "belisquei provei devorei"
)
_NOT = set_of("nao nem nunca jamais exceto evitei")
_TURNS = set_of("mas porem so apenas")
_JOINS = set_of("e com mais ou junto acompanhado acompanhada")
_BEFORE_AMOUNT = set_of(", - –")
_ENDS = set_of(". ! ?")
_STOPS = set_of(", ; . ! ? \n + & / – -") | {"\n"}
_FILLER = _ATE | set_of(
    "eu me meu minha meus minhas o a os as no na nos nas ao de do da em num numa para pra pro por foi eram era tinha "
    "teve tive hoje ontem agora cedo almoco jantar janta lanche ceia refeicao desjejum tambem depois entao ai acho "
    "que uns umas alguns algumas quase aproximadamente muito muita bastante demais rapido bem mal pouco nada tudo "
    "favor obrigado oi ola entre antes mesmo ainda ja mais junto amigo amigos amiga amigas familia casa restaurante "
    "trabalho legal bom otimo delicia"
)
_SLANG = set_of("cara")  # not "cará", which is food
_NOT_FOOD_UNITS = set_of("kcal cal caloria kj hora hr h min minuto dia semana mes ano real vez pessoa km metro %")


class _Token(NamedTuple):
    raw: str
    plain: str
    start: int
    end: int


_START = _Token("", "", 0, 0)


@dataclass(frozen=True, slots=True)
class _Clause:
    """Tokens between two breaks; `opener` is the one that broke, `ate` whether eating was said up to here."""

    tokens: tuple[_Token, ...]
    opener: _Token
    ate: bool

    @property
    def opened_by(self) -> str:
        return self.opener.plain


@dataclass(frozen=True, slots=True)
class Mention:
    """A food that was said to be eaten. `grams` is in (0, 5000]; `estimated` is False where they were said.

    `quantity` and `unit` are as said ("2", "colher de sopa"), unit "unidade" for a bare number and "porção" for none.
    `text` is the part of the (normalised) text that says so.
    """

    name: str
    grams: float
    quantity: float
    unit: str
    text: str
    estimated: bool


def parse_meal(text: str) -> list[Mention]:
    """The foods in the first 4000 characters of `text`, in order, at most 60. Never raises; unknown foods are kept."""
    source = _normalised(text)
    mentions: list[Mention] = []
    for clause in _joined(_eaten(_clauses(_tokens(source)))):
        mentions.extend(_mentions(clause, source))
        if len(mentions) >= MAX_MENTIONS:
            break
    return mentions[:MAX_MENTIONS]


def _normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text[:MAX_CHARS].translate(_FRACTIONS)).lower()[:MAX_CHARS]
    return _PHRASES.sub(lambda phrase: " " * len(phrase.group()), plain)


def _tokens(source: str) -> list[_Token]:
    found = _TOKEN.finditer(source)
    return [_Token(match.group(), plain_text(match.group()), *match.span()) for match in found]


def _clauses(tokens: Sequence[_Token]) -> Iterator[_Clause]:
    """Cuts at punctuation and joining words, but not within a number or a range."""
    plain = [token.plain for token in tokens]
    current: list[_Token] = []
    opener = _START
    ate = False
    position = 0
    while position < len(tokens):
        number = read_quantity(plain, position) if _counts(plain, position) else None
        if number is not None:
            current.extend(tokens[position : number[1]])
            position = number[1]
            continue
        word = plain[position]
        if word in _STOPS or word in _JOINS or word in _TURNS:
            yield _Clause(tuple(current), opener, ate)
            current, opener = [], tokens[position]
            ate = ate and word not in _ENDS
        else:
            ate = ate or word in _ATE
            current.append(tokens[position])
        position += 1
    yield _Clause(tuple(current), opener, ate)


def _counts(plain: Sequence[str], position: int) -> bool:
    """A number word after "de" belongs to a name ("baião de dois")."""
    return plain[position][0].isdigit() or position == 0 or plain[position - 1] not in ("de", "do", "da")


def _eaten(clauses: Iterator[_Clause]) -> Iterator[_Clause]:
    """Leaves out what is denied. "não" holds on over "e" until a stop or the next verb of eating.

    With nothing after it, it denies what is before it: "feijão não comi".
    """
    denied = False
    for clause in clauses:
        plain = [token.plain for token in clause.tokens]
        if clause.opened_by not in _JOINS or set(plain) & _ATE:
            denied = False
        cut = next((index for index, word in enumerate(plain) if word in _NOT), None)
        if cut is not None:
            said_before = not denied and _name(clause.tokens[cut + 1 :])
            denied = True
            yield _Clause(clause.tokens[:cut] if said_before else (), clause.opener, clause.ate)
        elif not denied and plain[:1] != ["sem"]:
            yield clause


def _joined(clauses: Iterator[_Clause]) -> Iterator[_Clause]:
    """Puts "X com Y" together where that is one food ("tapioca com manteiga"), and "arroz, 200 g"."""
    held: _Clause | None = None
    for clause in clauses:
        if held and (_is_one_food(held, clause) or _is_its_amount(held, clause)):
            opener = (clause.opener,) if clause.opened_by == "com" else ()
            held = _Clause(held.tokens + opener + clause.tokens, held.opener, held.ate)
            continue
        if held:
            yield held
        held = clause
    if held:
        yield held


def _is_one_food(first: _Clause, second: _Clause) -> bool:
    parts = _parts(first.tokens)
    if second.opened_by != "com" or not parts or not second.tokens or read_number([second.tokens[0].plain], 0):
        return False
    match = match_food(f"{_name(parts[-1][1])} com {_name(second.tokens)}")
    return match is not None and match.how != "words"


def _is_its_amount(first: _Clause, second: _Clause) -> bool:
    found = read_quantity([token.plain for token in second.tokens], 0)
    if second.opened_by not in _BEFORE_AMOUNT or found is None or found[0].unit is None:
        return False
    return found[1] == len(second.tokens) and {quantity for quantity, _ in _parts(first.tokens)} == {None}


def _mentions(clause: _Clause, source: str) -> Iterator[Mention]:
    said = _after_eating(clause.tokens)
    for quantity, tokens in _parts(said):
        name = _name(tokens)
        measured = quantity is not None and quantity.unit is not None
        if name and (measured or clause.ate or _is_food(name)):
            mention = _mention(name, quantity, " ".join(source[said[0].start : said[-1].end].split()))
            if mention.grams > 0:
                yield mention


def _is_food(name: str) -> bool:
    return match_food(name) is not None or known_absent(name)


def _after_eating(tokens: tuple[_Token, ...]) -> tuple[_Token, ...]:
    """What comes after the last verb of eating; all of it where nothing does."""
    verbs = [index for index, token in enumerate(tokens) if token.plain in _ATE]
    return tokens[verbs[-1] + 1 :] or tokens if verbs else tokens


def _mention(name: str, quantity: Quantity | None, text: str) -> Mention:
    amount = 1.0 if quantity is None else quantity.amount
    unit = SERVING if quantity is None else quantity.unit or PIECE
    exact = EXACT_UNITS.get(unit)
    grams = amount * (default_grams(name, unit) if exact is None else exact)
    return Mention(name, round(min(grams, MAX_GRAMS), 1), amount, unit, text, estimated=exact is None)


def _parts(tokens: Sequence[_Token]) -> list[tuple[Quantity | None, tuple[_Token, ...]]]:
    """Quantities with the words that they measure: those after them, or before ("arroz 200 g feijão 100 g")."""
    plain = [token.plain for token in tokens]
    quantities: list[Quantity | None] = [None]
    names: list[tuple[_Token, ...]] = [()]
    position = 0
    while position < len(tokens):
        found = read_quantity(plain, position) if _counts(plain, position) else None
        if found is None:
            names[-1] += (tokens[position],)
            position += 1
        elif found[1] < len(tokens) and fold(plain[found[1]]) in _NOT_FOOD_UNITS:
            position = found[1] + 1
        else:
            quantities.append(found[0])
            names.append(())
            position = found[1]
    before = _name(names[0])
    if len(quantities) > 1 and before and (not names[-1] or _is_food(before)):
        quantities = [*quantities[1:], None]
    return [(quantity, name) for quantity, name in zip(quantities, names, strict=True) if name]


def _name(tokens: Sequence[_Token]) -> str:
    """The words without what surrounds a food's name; empty where too many are left to be one."""
    kept = list(tokens)
    while kept and _is_filler(kept[0]):
        kept.pop(0)
    while kept and _is_filler(kept[-1]):
        kept.pop()
    name = " ".join(token.raw for token in kept if token.plain not in _STOPS)
    return name if len(kept) <= _MAX_NAME_WORDS and len(name) <= _MAX_NAME_CHARS else ""


def _is_filler(token: _Token) -> bool:
    return token.plain in _FILLER or token.raw in _SLANG
