import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from aiworker.nutrition.taco import NUTRIENTS, Macros, load_taco

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared" / "data" / "taco"

# From the printed table, 4th edition: kcal, protein, carbohydrate, lipids, fibre, sodium per 100 g.
GOLDEN = {
    3: ("Arroz, tipo 1, cozido", (128, 2.5, 28.1, 0.2, 1.6, 1)),
    1: ("Arroz, integral, cozido", (124, 2.6, 25.8, 1.0, 2.7, 1)),
    53: ("Pão, trigo, francês", (300, 8.0, 58.6, 3.1, 2.3, 648)),
    561: ("Feijão, carioca, cozido", (76, 4.8, 13.6, 0.5, 8.5, 2)),
    567: ("Feijão, preto, cozido", (77, 4.5, 14.0, 0.5, 8.4, 2)),
    410: ("Frango, peito, sem pele, grelhado", (159, 32.0, 0, 2.5, None, 50)),
    488: ("Ovo, de galinha, inteiro, cozido/10minutos", (146, 13.3, 0.6, 9.5, None, 146)),
    490: ("Ovo, de galinha, inteiro, frito", (240, 15.6, 1.2, 18.6, None, 166)),
    91: ("Batata, inglesa, cozida", (52, 1.2, 11.9, 0, 1.3, 2)),
    272: ("Óleo, de soja", (884, None, None, 100, None, None)),
}
WITHOUT_ENERGY = {450, 457, 458, 516, 517, 591}


@pytest.mark.parametrize("food_id", GOLDEN)
def test_a_row_is_the_printed_one(food_id):
    name, figures = GOLDEN[food_id]
    food = load_taco()[food_id]
    assert food.name == name
    assert food.per_100g.values() == figures


def test_the_table_is_whole():
    foods = load_taco().foods
    assert [food.id for food in foods] == list(range(1, 598))
    assert len({food.name for food in foods}) == 597
    assert Counter(food.category for food in foods)["Frutas e derivados"] == 96


def test_missing_energy_is_none_and_never_zero():
    foods = load_taco().foods
    assert {food.id for food in foods if food.per_100g.kcal is None} == WITHOUT_ENERGY
    assert all(food.per_100g.kcal != 0 for food in foods if food.id not in {516, 517})
    assert sum(food.per_100g.fiber_g is None for food in foods) == 235


def test_figures_are_plausible():
    for food in load_taco().foods:
        grams = (food.per_100g.protein_g, food.per_100g.carbs_g, food.per_100g.fat_g)
        assert sum(value or 0 for value in grams) <= 101, food.name
        assert all(value is None or value >= 0 for value in food.per_100g.values()), food.name


def test_scaling_keeps_the_unknown_unknown():
    assert Macros(kcal=128, fat_g=None).scaled(50) == Macros(kcal=64, fat_g=None)
    assert load_taco()[458].per_100g.scaled(200).kcal is None


def test_an_unknown_id_is_a_key_error():
    with pytest.raises(KeyError):
        load_taco()[598]


def test_names_are_clean():
    for food in load_taco().foods:
        assert food.name == " ".join(food.name.split())
    assert load_taco()[358].name == "Carne, bovina, filé mignon, sem gordura, grelhado"


def test_the_file_cites_its_source():
    text = (ROOT / "aiworker/nutrition/data/taco.csv").read_text(encoding="utf-8")
    assert "NEPA/UNICAMP" in text.splitlines()[0]
    assert "4th ed." in text.splitlines()[0]


@pytest.mark.skipif(not SOURCE.exists(), reason="the source tables are not beside this checkout")
def test_the_file_has_the_figures_of_the_source():
    columns = dict(
        zip(NUTRIENTS, ("kcal", "protein", "carbohydrates", "lipids", "dietaryFiber", "sodium"), strict=True)
    )
    with (SOURCE / "raulfdm-nutrients.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            macros = load_taco()[int(row["foodId"])].per_100g
            for name, column in columns.items():
                assert getattr(macros, name) == (float(row[column]) if row[column] else None)


@pytest.mark.skipif(not SOURCE.exists(), reason="the source tables are not beside this checkout")
def test_the_committed_file_is_what_the_script_writes(tmp_path):
    (tmp_path / "scripts").mkdir()
    target = tmp_path / "aiworker/nutrition/data"
    target.mkdir(parents=True)
    script = tmp_path / "scripts/build_taco.py"
    script.write_text((ROOT / "scripts/build_taco.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(script), str(SOURCE)], check=True, timeout=60)
    committed = ROOT / "aiworker/nutrition/data/taco.csv"
    assert (target / "taco.csv").read_bytes() == committed.read_bytes()
