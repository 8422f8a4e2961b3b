"""Which food of the TACO table a name means.

A name is looked up whole, then in the curated synonyms, then word by word. Word by word, every word that was said
must be in the food's own name, so that "integral", "frito" or "suco" always counts; what the food's name adds may
only be what people leave out (a variety, the usual preparation). No answer is better than a wrong one: a food that
is not found has no figures. Misspelt words are put right first, one letter off and only towards one known word.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from rapidfuzz.distance import OSA
from rapidfuzz.process import extract

from aiworker.nutrition.taco import Food, Taco, load_taco, read_rows
from aiworker.nutrition.words import PREPARATIONS, set_of, words

How = Literal["exact", "synonym", "words"]
Words = frozenset[str]

# What a food's name may add to what was said.
_UNSAID = set_of(
    "inglesa prata fuji argentina haden palmer tommy atkin formosa papaia italia rubi park william murcote rio "
    "ponca tahiti baia pera valencia aurora nova zelandia italiana cabotian crespa manteiga casca inteiro galinha "
    "abelha vaca uht pele sem-pele sem-gordura file posta grao semente natural tradicional cremoso fresco extra "
    "virgem 1 tipo 10minuto infusao 10 5 pilsen sabor trigo carne bovino forma fluido soluvel americana "
    "variado pronto"
)
# Said or not, these do not change which food it is.
_IDLE = set_of(
    "caseiro fatiado picado ralado cortado soltinho temperado inteiro simples natural gelado quente frio "
    "pequeno medio grande maduro comum normal fatia pedaco cubo rodela tira delicioso gostoso desfiado puro "
    "sem-acucar sem-sal sem-lactose sem-casca sem-oleo sem-tempero sem-osso sem-caroco sem-semente "
    "sem-molho sem-manteiga sem-maionese sem-cebola sem-adocante sem-gelo"
)
_COLOURS = set_of("preto branco vermelho amarelo roxo verde seco moido integral desnatado doce")
_NOT_A_FOOD = PREPARATIONS | _UNSAID - {"manteiga", "pera"} | _IDLE | _COLOURS

# The preparation that is meant when none is said, best first.
_USUAL = {
    "Cereais e derivados": ("cozido",),
    "Verduras, hortaliças e derivados": ("cozido", "cru", "refogado"),
    "Frutas e derivados": ("cru",),
    "Nozes e sementes": ("cru", "cozido", "torrado"),
    "Ovos e derivados": ("cozido",),
    "Leguminosas e derivados": ("cozido",),
    "Pescados e frutos do mar": ("grelhado", "assado", "cozido", "refogado"),
    "Carnes e derivados": ("grelhado", "assado", "cozido", "refogado"),
}
_SYNONYM_SCORE = {"same": 0.95, "typical": 0.8}
_TYPO_COST, _UNSAID_COST, _IDLE_COST, _USUAL_COST, _LATER_COST = 0.1, 0.03, 0.02, 0.04, 0.01
_TYPO_LENGTH = 5
_LOWEST_SCORE = 0.5
_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class FoodMatch:
    """`score` is 0..1: 1 is the table's own name, below 0.9 something was assumed."""

    food: Food
    score: float
    how: How


@lru_cache(maxsize=4096)
def match_food(name: str) -> FoodMatch | None:
    """The food that `name` (Portuguese, any spelling, the first 100 characters) means, or None rather than a guess."""
    return _index().match(name[:_NAME_LENGTH])


def known_absent(name: str) -> bool:
    """Whether `name` is a food that the table is known to lack."""
    return _index().lacks(frozenset(words(name[:_NAME_LENGTH])))


@cache
def _index() -> _Index:
    return _Index(load_taco())


class _Index:
    """The table, prepared for look-ups."""

    def __init__(self, taco: Taco) -> None:
        self._taco = taco
        self._words = {food.id: frozenset(words(food.name)) for food in taco.foods}
        self._by_words = {own: food_id for food_id, own in self._words.items()}
        self._holding: defaultdict[str, list[Food]] = defaultdict(list)
        for food in taco.foods:
            for word in self._words[food.id]:
                self._holding[word].append(food)
        self._synonyms = {
            frozenset(words(row["name"])): (int(row["taco_id"] or 0), row["kind"]) for row in read_rows("synonyms.csv")
        }
        self._vocabulary = sorted(frozenset(self._holding).union(*self._synonyms, _IDLE))
        self._known = frozenset(self._vocabulary)

    def match(self, name: str) -> FoodMatch | None:
        said = frozenset(words(name))
        corrected = frozenset(map(self._correct, said))
        found = self._exact(corrected) or self._listed(corrected) or self._word_by_word(corrected)
        typos = len(corrected - said)
        if found is None or not typos:
            return found
        return FoodMatch(found.food, max(round(found.score - _TYPO_COST * typos, 2), _LOWEST_SCORE), found.how)

    def lacks(self, said: Words) -> bool:
        return self._synonym(said)[1] == "absent"

    def _exact(self, said: Words) -> FoodMatch | None:
        food_id = self._by_words.get(said)
        return FoodMatch(self._taco[food_id], 1.0, "exact") if food_id else None

    def _listed(self, said: Words) -> FoodMatch | None:
        food_id, kind = self._synonym(said)
        return FoodMatch(self._taco[food_id], _SYNONYM_SCORE[kind], "synonym") if food_id else None

    def _synonym(self, said: Words) -> tuple[int, str]:
        """Food id (0 for none) and kind of the entry for all that was said, else for what of it counts."""
        return self._synonyms.get(said) or self._synonyms.get(_needed(said)) or (0, "")

    def _word_by_word(self, said: Words) -> FoodMatch | None:
        nouns = said - _NOT_A_FOOD
        if not nouns or self.lacks(said):
            return None
        scored = [(self._score(said, food), -food.id) for food in self._holding.get(min(nouns), ())]
        score, negative_id = max(scored, default=(0.0, 0))
        return FoodMatch(self._taco[-negative_id], round(score, 2), "words") if score > 0 else None

    def _score(self, said: Words, food: Food) -> float:
        """0 where a word that was said is missing, or where the food's name adds what nobody leaves out."""
        own = self._words[food.id]
        missing, unsaid = said - own, own - said
        if _needed(missing):
            return 0.0
        usual = _USUAL.get(food.category, ())
        assumed = unsaid & PREPARATIONS
        if len(assumed) > 1 or not assumed <= set(usual) or not unsaid - assumed <= _UNSAID:
            return 0.0
        cost = _IDLE_COST * len(missing) + _UNSAID_COST * len(unsaid - assumed)
        cost += sum(_USUAL_COST + _LATER_COST * usual.index(preparation) for preparation in assumed)
        return max(0.9 - cost, _LOWEST_SCORE)

    def _correct(self, word: str) -> str:
        if len(word) < _TYPO_LENGTH or word in self._known:
            return word
        near = extract(word, self._vocabulary, scorer=OSA.distance, score_cutoff=1, limit=3)
        right = [candidate for candidate, _, _ in near if candidate[0] == word[0]]
        return right[0] if len(right) == 1 else word


def _needed(said: Words) -> Words:
    return frozenset(word for word in said if word not in _IDLE and not word.isdigit())
