import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.nutrition.coco import coco_food, coco_name_pt
from aiworker.nutrition.portions import default_grams, portion
from aiworker.nutrition.taco import load_taco, read_rows

TACO = load_taco()
ROWS = read_rows("portions.csv")
COCO = read_rows("coco.csv")
COCO_FOODS = {"banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"}


@pytest.mark.parametrize(
    ("food", "unit", "grams"),
    [
        ("ovo frito", "unidade", 50),
        ("ovos", "porção", 50),
        ("arroz integral", "colher de sopa", 25),
        ("feijão preto", "concha", 90),
        ("pão francês", "unidade", 50),
        ("pão de queijo", "unidade", 40),
        ("pães de queijo", "porção", 40),
        ("leite", "xícara", 200),
        ("leite", "copo", 200),
        ("azeite", "colher de sopa", 10),
        ("café", "xícara", 50),
        ("muçarela", "fatia", 20),  # its row is under queijo, found through the table's name
        ("pizza", "fatia", 130),  # not in the table, still has a weight
        ("doce de leite", "porção", 25),  # not a glass of milk
        ("chocolate ao leite", "porção", 25),
        ("tapioca com manteiga", "porção", 80),  # not a pat of butter
        ("melancia", "fatia", 200),
        ("qualquer coisa", "porção", 100),
        ("arroz", "unidade desconhecida", 100),
    ],
)
def test_grams_of_a_measure(food, unit, grams):
    assert default_grams(food, unit) == grams


def test_a_food_of_the_table_has_the_portion_of_its_name():
    assert default_grams(TACO[179], "unidade") == 118
    assert default_grams(TACO[3], "colher de sopa") == 25


def test_the_source_is_said():
    assert portion("copo de leite", "copo").source == "RDC 359/2003"
    assert portion("coxinha", "unidade").source == "estimate"


def test_rows_are_sound():
    categories = {food.category for food in TACO.foods}
    assert {row["source"] for row in ROWS} == {"RDC 359/2003", "estimate"}
    assert all(0 < float(row["grams"]) <= 5000 for row in ROWS)
    assert {row["food"][1:] for row in ROWS if row["food"].startswith("@")} <= categories
    keys = [(row["unit"], row["food"]) for row in ROWS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("row", [row for row in ROWS if row["food"][:1] not in ("", "@")], ids=str)
def test_every_row_can_be_reached(row):
    assert default_grams(row["food"], row["unit"]) == float(row["grams"])


@given(st.text(max_size=60), st.text(max_size=20))
def test_always_a_positive_weight(food, unit):
    assert default_grams(food, unit) > 0


def test_ten_coco_classes_are_food_and_cutlery_is_not():
    assert {row["class_name"] for row in COCO if coco_food(row["class_name"])} == COCO_FOODS
    for name in ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "unheard of", ""):
        assert coco_food(name) is None


def test_all_80_coco_classes_have_a_portuguese_name():
    assert len({row["class_name"] for row in COCO}) == 80
    assert all(row["name_pt"] for row in COCO)
    assert coco_name_pt("orange") == "laranja"
    assert coco_name_pt("dining table") == "mesa de jantar"
    assert coco_name_pt("unheard of") == "unheard of"


def test_a_coco_food_is_a_food_of_the_table_or_none():
    orange = coco_food("orange")
    assert orange is not None
    assert (orange.name_pt, orange.grams) == ("laranja", 131)
    assert TACO[orange.taco_id].name == "Laranja, pêra, crua"
    assert coco_food("pizza").taco_id is None
    for name in COCO_FOODS:
        food = coco_food(name)
        assert food.grams > 0
        assert food.taco_id is None or TACO[food.taco_id]
