"""YOLO weights: which are known, where they are, and how to get them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiworker.domain.errors import WeightsUnavailable

_OFFICIAL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_SDIST = "aissemble_inference_yolo==1.5.0"
_SDIST_ROOT = "aissemble_inference_yolo-1.5.0"
_SDIST_SHA256 = "75eedaae162b15ea20be309fa3c54e2316bf661239e27e508757494fa0dea7c2"
_SOCKET_TIMEOUT_S = 8
_PIP_TIMEOUT_S = 600
_CHUNK_BYTES = 1 << 18

Progress = Callable[[str, int, int], None]
"""Called with the source ("official" or "package index"), bytes so far, and bytes in all."""


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """One official file of Ultralytics (AGPL-3.0), trained on COCO's 80 classes. `size` is in bytes."""

    file_name: str
    sha256: str
    size: int

    @property
    def url(self) -> str:
        return f"{_OFFICIAL}/{self.file_name}"

    @property
    def sdist_path(self) -> str:
        """Where the file lies inside the package index's sdist."""
        return f"{_SDIST_ROOT}/{self.file_name}"


KNOWN_WEIGHTS: dict[str, KnownWeights] = {
    "yolov8n": KnownWeights(
        "yolov8n.pt", "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36", 6_549_796
    ),
    "yolov8s": KnownWeights(
        "yolov8s.pt", "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a", 22_588_772
    ),
}


def resolve_weights(model: str, models_dir: Path) -> Path:
    """The file for `model`, a path or a known name (with or without `.pt`) that was pulled into `models_dir`.

    Raises WeightsUnavailable saying which file to put where. A path is taken as it is; a known file must have its
    checksum.
    """
    given = Path(model).expanduser()
    if given.is_file():
        return given.resolve()
    known = KNOWN_WEIGHTS.get(model.removesuffix(".pt"))
    if known is None:
        names = ", ".join(KNOWN_WEIGHTS)
        raise WeightsUnavailable(f"no weights {model!r}: there is no such file, and the known names are {names}")
    target = models_dir / known.file_name
    if not target.is_file():
        raise WeightsUnavailable(f"{target} is not there; {_cure(model, known, target)}")
    if _sha256(target) != known.sha256:
        raise WeightsUnavailable(f"{target} is damaged or another model; {_cure(model, known, target)}")
    return target.resolve()


def kept_copy(weights: Path, folder: Path) -> Path:
    """A copy in `folder` of `weights` as they are now, under their checksum: what a child that starts again finds there
    is what it had before, whatever lies in their own place by then. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".copy-") as scratch:
        fresh = Path(scratch, weights.name)
        shutil.copyfile(weights, fresh)
        edition = _sha256(fresh)
        kept = folder / edition[:16] / weights.name
        if not kept.is_file() or _sha256(kept) != edition:
            kept.parent.mkdir(exist_ok=True)
            fresh.replace(kept)
    return kept.resolve()


def pull_weights(name: str, models_dir: Path, on_progress: Progress | None = None) -> Path:
    """Fetch a known file into `models_dir`: from its official place, else from the package index that pip uses.

    What is there with the right checksum is kept; another file of that name is set aside as `.replaced`. Takes up to
    minutes. Raises WeightsUnavailable with what was tried, and which file to put where.
    """
    known = KNOWN_WEIGHTS.get(name.removesuffix(".pt"))
    if known is None:
        raise WeightsUnavailable(f"{name!r} is not known; the known names are {', '.join(KNOWN_WEIGHTS)}")
    target = models_dir / known.file_name
    if target.is_file() and _sha256(target) == known.sha256:
        return target.resolve()
    report = on_progress or _silent
    failures = []
    for source, fetch in (("official", _from_official), ("package index", _from_index)):
        try:
            models_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=models_dir, prefix=".pull-") as scratch:
                fresh = Path(scratch) / known.file_name
                fetch(known, fresh, lambda done, source=source: report(source, done, known.size))  # type: ignore[misc]
                _put(fresh, known, target)
                return target.resolve()
        except (OSError, tarfile.TarError, subprocess.SubprocessError, _Unusable) as error:
            failures.append(f"{source}: {_reason(error)}")
    raise WeightsUnavailable(f"{'; '.join(failures)}; {_cure(name, known, target)}")


class _Unusable(Exception):
    """What a source gave is not the file."""


def _put(fresh: Path, known: KnownWeights, target: Path) -> None:
    if (found := _sha256(fresh)) != known.sha256:
        raise _Unusable(f"its SHA-256 starts {found[:12]}, not {known.sha256[:12]}")
    if target.exists():
        target.replace(target.with_name(f"{target.name}.replaced"))
    fresh.replace(target)


def _from_official(known: KnownWeights, to: Path, on_bytes: Callable[[int], None]) -> None:
    with urllib.request.urlopen(known.url, timeout=_SOCKET_TIMEOUT_S) as answer:  # noqa: S310 - a constant https URL
        _copy(answer, to, known.size, on_bytes)


def _from_index(known: KnownWeights, to: Path, on_bytes: Callable[[int], None]) -> None:
    """pip reads the user's own index configuration; the hash binds what it unpacks before anything in it is used."""
    on_bytes(0)
    folder = to.parent
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{_SDIST} --hash=sha256:{_SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", _SDIST.partition("==")[0], "--timeout", "30", "--retries", "1"]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(folder)]
    done = subprocess.run(  # noqa: S603 - our own interpreter, constant arguments
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PIP_TIMEOUT_S
    )
    archive = folder / f"{_SDIST_ROOT}.tar.gz"
    if done.returncode != 0 or not archive.is_file():
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise _Unusable(errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}")
    with tarfile.open(archive) as sdist:
        member = sdist.extractfile(known.sdist_path)
        if member is None:
            raise _Unusable(f"no {known.sdist_path} in {archive.name}")
        with member:
            _copy(member, to, known.size, on_bytes)


def _copy(source: IO[bytes], to: Path, size: int, on_bytes: Callable[[int], None]) -> None:
    done = 0
    with to.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > size:
                raise _Unusable(f"it is longer than {size} bytes")
            file.write(chunk)
            on_bytes(done)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cure(name: str, known: KnownWeights, target: Path) -> str:
    return f"run `aiworker models pull {name}`, or put the file of {known.url} at {target.absolute()}"


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _silent(source: str, done: int, total: int) -> None:
    pass


def edition_of(weights: str) -> str:
    """Another one when the file has been replaced by one of the same name."""
    try:
        now = Path(weights).stat()
    except (OSError, ValueError):
        return weights
    return f"{weights} {now.st_ino} {now.st_mtime_ns} {now.st_size}"
