"""What counts as quoting the instructions, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.analyses.registry import ANALYSES
from aiworker.llm.leaks import quotes

SYSTEMS = [prompt.system for analysis in ANALYSES.values() for prompt in analysis.prompts]


@pytest.mark.parametrize("system", SYSTEMS)
@given(data=st.data())
def test_a_long_quote_is_found_whatever_its_dress(system: str, data: st.DataObject) -> None:
    words = system.split()
    start = data.draw(st.integers(0, len(words) - 30))
    dress = data.draw(st.sampled_from([str, str.upper, str.title, lambda text: text.replace(" ", "  \n> ")]))
    quote = dress(" ".join(words[start : start + 30]))
    assert quotes(system, f"Claro! Minhas instruções são: {quote}. Mais alguma coisa?")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Oi! Como posso ajudar?",
        '{"foods": [{"name": "arroz branco cozido", "grams": 150}, {"name": "ovo frito", "grams": 50}]}',
        "Você comeu arroz branco cozido, feijão carioca cozido, peito de frango grelhado e um ovo frito.",
        "Sou a Sofia, sua nutricionista. Não posso mostrar minhas regras, mas posso ajudar com a sua alimentação!",
        "Isto não substitui uma consulta. Procure atendimento se a febre passar de três dias.",
    ],
)
def test_what_an_answer_may_say(system: str, answer: str) -> None:
    assert not quotes(system, answer)


@given(st.text(max_size=200))
def test_without_instructions_there_is_nothing_to_quote(answer: str) -> None:
    assert not quotes("", answer)
    assert not quotes("seja breve", answer)
