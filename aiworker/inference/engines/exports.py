"""Networks exported from a checkpoint, made once and kept on disk. Imports no engine.

An export is named by the checksum of its weights, its format, and the versions of what wrote it, so it is never stale.
It appears under its name only when it is complete, and one process makes it while others wait. One whose files are not
what they were when it was made (a power cut, a full disk, a stray hand) is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import orjson

from aiworker.inference.engines.heads import Head

FORMATS = {"onnx": ("onnx", "torch", "ultralytics"), "tensorrt": ("tensorrt", "torch", "ultralytics")}
"""What each format is written by."""
NETWORK = "network.onnx"
"""The file of an export to `onnx`."""
_HEAD = "head.json"
_REVISION = 2
_SCRATCH = ".export-"
_ABANDONED_S = 24 * 3600.0


class ExportFailed(Exception):
    """The text says why, for operators."""


@dataclass(frozen=True, slots=True)
class Export:
    """`folder` holds the network's files."""

    folder: Path
    head: Head


def ensure_export(weights: str, kind: str, cache_dir: str = "", *, timeout_s: float = 600.0) -> Export:
    """The export of `weights`, from `cache_dir` (else from beside the weights), made now if it is not there.

    Making one takes a process of its own, which loads torch, some 10 s and 1 GB. Raises FileNotFoundError for weights
    that are not there, and ExportFailed.
    """
    source = Path(weights)
    if not source.is_file():
        raise FileNotFoundError(f"no weights at {weights}")
    folder = export_folder(source, kind, cache_dir)
    if (head := _read_head(folder)) is None:
        try:
            head = _made_by_one(source, kind, folder, timeout_s)
        except OSError as error:
            raise ExportFailed(f"no place for the export to {kind}: {error}") from None
    if head is None:
        raise ExportFailed(f"the export in {folder} is damaged as soon as it is made")
    return Export(folder, head)


def _made_by_one(source: Path, kind: str, folder: Path, timeout_s: float) -> Head | None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_suffix(".lock")):
        if (head := _read_head(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)
            _make(source, kind, folder, timeout_s)
            head = _read_head(folder)
    return head


def export_folder(weights: Path, kind: str, cache_dir: str = "") -> Path:
    """Where the export of exactly these weights by exactly these versions is kept."""
    versions = {name: version(name) for name in FORMATS[kind]}
    named = orjson.dumps([_REVISION, checksum(weights), kind, versions])
    root = Path(cache_dir) if cache_dir else weights.parent / ".cache"
    return root / "exports" / f"{weights.stem}-{kind}-{hashlib.sha256(named).hexdigest()[:16]}"


def write_head(head: Head, folder: Path) -> None:
    """Comes last, with the checksums of all files that are there: an export without it is not there yet."""
    files = {file.name: checksum(file) for file in folder.iterdir() if file.is_file()}
    (folder / _HEAD).write_bytes(orjson.dumps([asdict(head), files], option=orjson.OPT_NON_STR_KEYS))


def _read_head(folder: Path) -> Head | None:
    """None where there is no export, or a damaged one."""
    try:
        kept, files = orjson.loads((folder / _HEAD).read_bytes())
        if any(checksum(folder / name) != expected for name, expected in files.items()):
            return None
        names = {int(kind): name for kind, name in kept.pop("names").items()}
        return Head(names=names, strides=tuple(kept.pop("strides")), **kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _make(weights: Path, kind: str, folder: Path, timeout_s: float) -> None:
    _sweep(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH) as scratch:
        fresh = Path(scratch) / folder.name
        fresh.mkdir()
        module = "aiworker.inference.engines.exporting"
        command = [sys.executable, "-P", "-m", module, str(os.getpid()), str(weights), kind, str(fresh)]
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise ExportFailed(f"the export to {kind} took longer than {timeout_s:g} s") from None
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:]
            raise ExportFailed(f"the export to {kind} failed: {''.join(last)[:300]}")
        if export_folder(weights, kind, str(folder.parent.parent)) != folder:
            # Kept, it would be what is served for the old ones whenever they come back.
            raise ExportFailed(f"{weights.name} was replaced while it was exported")
        fresh.rename(folder)


def _sweep(root: Path) -> None:
    """Removes what was left by processes that were killed while they exported."""
    for left in root.glob(f"{_SCRATCH}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Only one process at a time is in here; the kernel lets go of the lock when its process dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checksum(file: Path) -> str:
    """SHA-256, read once for as long as the file looks the same."""
    now = file.stat()
    return _checksum(file, now.st_mtime_ns, now.st_size, now.st_ino)


@lru_cache(maxsize=8)
def _checksum(file: Path, changed_ns: int, size: int, inode: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def version(package: str) -> str:
    """Empty where the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
