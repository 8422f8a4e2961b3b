"""Finding weights, and never taking a file that is not the one asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from aiworker.domain.errors import WeightsUnavailable
from aiworker.inference import weights
from aiworker.inference.weights import KNOWN_WEIGHTS, KnownWeights, kept_copy, pull_weights, resolve_weights

CONTENT = b"weights" * 100_000


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays the official place and holds the known model `tiny`; pip has nowhere to look."""
    folder = tmp_path / "official"
    folder.mkdir()
    (folder / "tiny.pt").write_bytes(CONTENT)
    monkeypatch.setattr(weights, "_OFFICIAL", folder.as_uri())
    tiny = KnownWeights("tiny.pt", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    monkeypatch.setitem(KNOWN_WEIGHTS, "tiny", tiny)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return folder


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.pt"
    own.write_bytes(b"anything")
    assert resolve_weights(str(own), tmp_path / "models") == own.resolve()


@pytest.mark.parametrize("name", ["tiny", "tiny.pt"])
def test_a_known_name_is_found_once_pulled(source: Path, tmp_path: Path, name: str) -> None:
    models = tmp_path / "models"
    with pytest.raises(WeightsUnavailable) as caught:
        resolve_weights(name, models)
    assert f"aiworker models pull {name}" in caught.value.note
    assert str(models / "tiny.pt") in caught.value.note

    pull_weights(name, models)
    assert resolve_weights(name, models).read_bytes() == CONTENT


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    for call in (resolve_weights, pull_weights):
        with pytest.raises(WeightsUnavailable, match=r"yolov8n, yolov8s"):
            call("yolov99", tmp_path)


def test_damaged_weights_are_not_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsUnavailable, match="damaged or another model"):
        resolve_weights("tiny", tmp_path)


def test_a_pull_reports_progress_and_leaves_nothing_else(source: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    seen: list[tuple[str, int, int]] = []
    pull_weights("tiny", models, lambda *report: seen.append(report))
    assert seen[-1] == ("official", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert [path.name for path in models.iterdir()] == ["tiny.pt"]


def test_what_is_there_is_not_fetched_again(source: Path, tmp_path: Path) -> None:
    pull_weights("tiny", tmp_path)
    (source / "tiny.pt").unlink()
    assert pull_weights("tiny", tmp_path).read_bytes() == CONTENT


def test_another_file_of_that_name_is_set_aside(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(b"trained here for weeks")
    pull_weights("tiny", tmp_path)
    assert (tmp_path / "tiny.pt.replaced").read_bytes() == b"trained here for weeks"


@pytest.mark.parametrize("wrong", [CONTENT[:-1], b"x" * len(CONTENT), CONTENT + b"x", None])
def test_a_wrong_file_is_refused_whatever_is_wrong(source: Path, tmp_path: Path, wrong: bytes | None) -> None:
    official = source / "tiny.pt"
    official.unlink() if wrong is None else official.write_bytes(wrong)
    models = tmp_path / "models"
    with pytest.raises(WeightsUnavailable) as caught:
        pull_weights("tiny", models)
    for part in ("official:", "package index:", "aiworker models pull tiny", str(models / "tiny.pt")):
        assert part in caught.value.note
    assert list(models.iterdir()) == []


def test_a_copy_is_kept_by_checksum_and_made_again_where_it_is_damaged(tmp_path: Path) -> None:
    own, folder = tmp_path / "own.pt", tmp_path / "kept"
    own.write_bytes(b"first")
    first = kept_copy(own, folder)
    own.write_bytes(b"second")
    second = kept_copy(own, folder)
    assert (first.name, second.name) == ("own.pt", "own.pt"), "a model is named for its file"
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    first.write_bytes(b"")
    own.write_bytes(b"first")
    assert kept_copy(own, folder) == first
    assert first.read_bytes() == b"first"
    assert sorted(folder.iterdir()) == sorted([first.parent, second.parent]), "and nothing else is left"
