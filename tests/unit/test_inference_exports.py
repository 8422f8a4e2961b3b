from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from aiworker.inference.engines import exports
from aiworker.inference.engines.exports import ExportFailed, ensure_export, export_folder, write_head
from aiworker.inference.engines.heads import Head

_HEAD = Head({0: "maçã", 7: "pão"}, "detect", (8, 16, 32), bins=16, end_to_end=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.pt"
    file.write_bytes(b"numbers")
    return file


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every export that is made, by a maker that needs no engine."""
    folders: list[Path] = []

    def make(weights: Path, kind: str, folder: Path, timeout_s: float) -> None:
        fresh = folder.with_suffix(".fresh")
        fresh.mkdir()
        (fresh / "network.bin").write_bytes(b"numbers of the network")
        write_head(_HEAD, fresh)
        fresh.rename(folder)
        folders.append(folder)

    monkeypatch.setattr(exports, "_make", make)
    return folders


def test_an_export_is_made_once_and_read_back_whole(weights: Path, made: list[Path]) -> None:
    first, second = (ensure_export(str(weights), "onnx") for _ in range(2))
    assert first == second
    assert first.head == _HEAD
    assert made == [first.folder]
    assert first.folder.is_relative_to(weights.parent / ".cache")


@pytest.mark.parametrize("name", ["head.json", "network.bin"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"numbers of the netw", b"\0" * 22, None])
def test_a_damaged_export_is_made_again(weights: Path, made: list[Path], name: str, damage: bytes | None) -> None:
    first = ensure_export(str(weights), "onnx")
    file = first.folder / name
    before = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert ensure_export(str(weights), "onnx") == first
    assert file.read_bytes() == before
    assert made == [first.folder] * 2


@pytest.mark.parametrize("replaced", [True, False])
def test_what_was_made_of_other_weights_is_not_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    def export(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        write_head(_HEAD, Path(command[-1]))
        if replaced:
            weights.write_bytes(b"other numbers")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(exports.subprocess, "run", export)
    folder = export_folder(weights, "onnx")
    if replaced:
        with pytest.raises(ExportFailed, match=r"model\.pt was replaced"):
            ensure_export(str(weights), "onnx")
    else:
        assert ensure_export(str(weights), "onnx").folder == folder
    assert folder.exists() is not replaced


def test_many_at_once_make_one(weights: Path, made: list[Path]) -> None:
    everybody = threading.Barrier(8)

    def ask() -> None:
        everybody.wait()
        ensure_export(str(weights), "onnx")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_other_weights_formats_and_versions_have_other_exports(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {export_folder(weights, kind) for kind in ("onnx", "tensorrt")}
    monkeypatch.setattr(exports, "version", lambda package: "99")
    names.add(export_folder(weights, "onnx"))
    weights.write_bytes(b"other numbers")
    names.add(export_folder(weights, "onnx"))
    assert len(names) == 4


def test_the_same_weights_elsewhere_have_the_same_export(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / weights.name
    copy.parent.mkdir()
    copy.write_bytes(weights.read_bytes())
    assert export_folder(copy, "onnx", "/cache") == export_folder(weights, "onnx", "/cache")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        ensure_export(str(tmp_path / "gone.pt"), "onnx")


def test_a_place_that_cannot_be_written_is_named(weights: Path, made: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportFailed, match=r"no place for the export to onnx: .*file"):
        ensure_export(str(weights), "onnx", str(tmp_path / "file"))
    assert not made
