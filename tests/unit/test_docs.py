"""What the documents say is so."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import click
import pytest

from aiworker.cli.__main__ import main
from aiworker.domain import errors
from aiworker.domain.errors import ProviderError
from aiworker.settings import Settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_configuration_is_what_the_settings_are() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "build_configuration.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == page
    assert all(field.description for field in Settings.model_fields.values())


def test_every_module_in_the_diagram_exists() -> None:
    named = set(
        re.findall(r"\b((?:gateway|analyses|queue|scheduler|media|inference|llm|domain|cli)/[a-z_]+)\b", ARCHITECTURE)
    )
    assert len(named) > 15
    missing = [name for name in named if not any((ROOT / "aiworker").glob(f"{name}*"))]
    assert missing == []


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_in_the_readme_exists() -> None:
    known = set(main.list_commands(click.Context(main)))
    assert set(re.findall(r"^aiworker ([a-z]+)", README, flags=re.MULTILINE)) <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_what_the_faq_quotes_is_what_users_read() -> None:
    headings = re.findall(r"^\*\*(\".+\")\*\*$", (ROOT / "docs" / "faq.pt-BR.md").read_text(), re.MULTILINE)
    quoted = [words for heading in headings for words in re.findall(r'"([^"]+)"', heading)]
    said = (ROOT / "aiworker" / "domain" / "messages.py").read_text()
    assert len(quoted) > 2
    assert [words for words in quoted if words not in said] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_decisions_have_their_parts(path: Path) -> None:
    text = path.read_text()
    assert re.match(rf"# {path.stem[:3]}: ", text)
    for part in ("Status: ", "## Context", "## Decision", "## Consequences"):
        assert part in text


def test_every_way_in_which_a_provider_fails_is_explained() -> None:
    page = (ROOT / "docs" / "language-models.md").read_text()
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ProviderError)]
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == {kind.code for kind in kinds}


def test_every_command_and_variable_on_the_pages_exists() -> None:
    group = main.get_command(click.Context(main), "models")
    assert isinstance(group, click.Group)
    variables = {name.upper() for name in Settings.model_fields}
    for name in ("language-models.md", "personal-data.md"):
        page = (ROOT / "docs" / name).read_text()
        assert set(re.findall(r"aiworker models (\w+)", page)) <= set(group.commands)
        assert set(re.findall(r"`([A-Z]+_[A-Z_]+)\b", page)) <= variables


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    gone = [link for link in links if link and not link.startswith("http") and not (path.parent / link).exists()]
    assert gone == []


def test_variables_that_documents_name_exist() -> None:
    known = {name.upper() for name in Settings.model_fields}
    compose = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    elsewhere = {"HEALTH_URL", "BASE", "BAKE_WEIGHTS"} | compose
    named = set()
    for page in ("deployment", "monitoring", "troubleshooting", "rollback", "security", "capacity", "scaling"):
        named |= set(re.findall(r"`\$?([A-Z]{3,}_[A-Z_]+)[`=]", (ROOT / "docs" / f"{page}.md").read_text()))
    flags = {name for name in named if name.startswith("VITE_")}
    assert len(named) > 15
    assert named - known - elsewhere - flags == set()
