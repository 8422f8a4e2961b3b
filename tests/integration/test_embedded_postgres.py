"""The embedded PostgreSQL against what happens to servers: restarts, kills, stale locks, taken ports, closed homes."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.domain.errors import ConfigurationError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a server as somebody else")


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory that any account may enter (pytest's own tmp_path is closed)."""
    path = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def directory(base: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=base))
    path.chmod(0o755)
    yield path
    for process in _servers(path):
        process.kill()
        process.wait(10)
    shutil.rmtree(path)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedPostgres]:
    server = _server(directory)
    yield server
    server.stop()


def _server(directory: Path, port: int = 0) -> EmbeddedPostgres:
    # One copy of the programs, where they must be copied, does for all tests.
    return EmbeddedPostgres(directory / "pg", port, durable=False, outside=directory.parent / "outside")


def _servers(directory: Path) -> list[psutil.Process]:
    """Every live PostgreSQL process below `directory`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _postmaster_pid(directory: Path) -> int:
    return int((directory / "pg/cluster/data/postmaster.pid").read_text().splitlines()[0])


async def _run(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_data_password_and_port_survive_a_restart(server: EmbeddedPostgres, directory: Path) -> None:
    first = server.start()
    await _run(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert _servers(directory) == []

    assert server.start() == first
    assert await _run(first, "SELECT answer FROM kept") == 42


async def test_it_listens_on_loopback_only_and_speaks_utf8(server: EmbeddedPostgres) -> None:
    url = server.start()
    assert urlsplit(url).hostname == "127.0.0.1"
    assert await _run(url, "SHOW listen_addresses") == "127.0.0.1"
    assert await _run(url, "SHOW unix_socket_directories") == ""
    assert await _run(url, "SHOW server_encoding") == "UTF8"
    # By code point, as C.UTF-8 orders, and with letters beyond ASCII known.
    assert await _run(url, "SELECT 'Z' < 'a' AND upper('ação') = 'AÇÃO'") is True


async def test_a_wrong_password_is_refused_and_the_right_one_is_private(
    server: EmbeddedPostgres, directory: Path
) -> None:
    parts = urlsplit(server.start())
    with pytest.raises(asyncpg.InvalidPasswordError):
        await _run(f"postgresql://postgres:wrong@127.0.0.1:{parts.port}/aiworker", "SELECT 1")
    password = directory / "pg/cluster/password"
    assert password.read_text().strip() == parts.password
    assert stat.S_IMODE(password.stat().st_mode) == 0o600


async def test_the_caller_s_variables_change_nothing(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere.invalid", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    assert await _run(server.start(), "SELECT 1") == 1


async def test_a_second_start_joins_and_the_last_one_to_leave_stops_it(
    server: EmbeddedPostgres, directory: Path
) -> None:
    url = server.start()
    pid = _postmaster_pid(directory)
    other = _server(directory)
    assert other.start() == url
    assert _postmaster_pid(directory) == pid

    server.stop()
    assert await _run(url, "SELECT 1") == 1
    other.stop()
    assert _servers(directory) == []


def test_starters_at_the_same_time_share_one_server(directory: Path) -> None:
    servers = [_server(directory) for _ in range(4)]
    urls: list[str] = []
    threads = [threading.Thread(target=lambda server=server: urls.append(server.start())) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(urls) == 4
    assert len(set(urls)) == 1
    for server in servers:
        server.stop()
    assert _servers(directory) == []


async def test_a_server_that_outlived_a_killed_user_is_taken_over(directory: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from aiworker.cli.embedded_postgres import EmbeddedPostgres;"
        "server = EmbeddedPostgres(Path(sys.argv[1]), durable=False, outside=Path(sys.argv[2])); server.start();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(directory / "pg"), str(directory.parent / "outside")]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    pid = _postmaster_pid(directory)

    heir = _server(directory)
    assert await _run(heir.start(), "SELECT 1") == 1
    assert _postmaster_pid(directory) == pid
    heir.stop()
    assert _servers(directory) == []


async def test_a_killed_postmaster_is_recovered_from(server: EmbeddedPostgres, directory: Path) -> None:
    url = server.start()
    await _run(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postmaster = psutil.Process(_postmaster_pid(directory))
    postmaster.kill()
    postmaster.wait(10)

    assert await _run(server.start(), "SELECT answer FROM kept") == 42


async def test_the_pid_of_another_process_in_the_lock_is_not_believed(
    server: EmbeddedPostgres, directory: Path
) -> None:
    server.start()
    lock = directory / "pg/cluster/data/postmaster.pid"
    lines = lock.read_text().splitlines()
    owner = lock.stat()
    server.stop()
    # A bystander of the server's own account: PostgreSQL itself would take it for a live postmaster.
    ids = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "120"], **ids) as bystander:
        try:
            lock.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
            os.chown(lock, owner.st_uid, owner.st_gid)
            assert await _run(server.start(), "SELECT 1") == 1
            assert bystander.poll() is None
        finally:
            bystander.kill()


async def test_a_taken_port_is_left_alone_and_the_new_one_remembered(directory: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        server = _server(directory, taken)
        url = server.start()
        assert urlsplit(url).port != taken
        assert await _run(url, "SELECT 1") == 1
        server.stop()
    again = _server(directory)
    assert again.start() == url
    again.stop()


async def test_a_half_done_initdb_is_begun_anew(server: EmbeddedPostgres, directory: Path) -> None:
    leftover = directory / "pg/.init-killed"
    leftover.mkdir(parents=True)
    (leftover / "data").mkdir()
    assert await _run(server.start(), "SELECT 1") == 1
    assert not leftover.exists()


@pytest.mark.parametrize("missing", ["password", "data/PG_VERSION", "data/global/pg_control"])
def test_incomplete_data_are_named_and_never_deleted(server: EmbeddedPostgres, directory: Path, missing: str) -> None:
    server.start()
    server.stop()
    cluster = directory / "pg/cluster"
    (cluster / missing).unlink()
    before = sorted(cluster.rglob("*"))
    with pytest.raises(ConfigurationError, match=r"move .* away") as caught:
        server.start()
    assert missing in caught.value.note
    assert sorted(cluster.rglob("*")) == before


def test_data_of_another_version_are_refused(server: EmbeddedPostgres, directory: Path) -> None:
    server.start()
    server.stop()
    (directory / "pg/cluster/data/PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match=r"written by PostgreSQL 12 .* embedded-postgres==12"):
        server.start()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(server: EmbeddedPostgres, directory: Path) -> None:
    server.start()
    server.stop()
    configuration = directory / "pg/cluster/data/postgresql.conf"
    with configuration.open("a") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(ConfigurationError, match=r"did not start(.|\n)*no_such_setting"):
        server.start()


def test_a_stop_without_a_start_does_nothing(server: EmbeddedPostgres, directory: Path) -> None:
    server.stop()
    assert list(directory.iterdir()) == []


def test_a_path_that_is_no_directory_is_a_clear_error(directory: Path) -> None:
    (directory / "pg").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"cannot use .*/pg"):
        _server(directory).start()


@needs_root
async def test_below_a_home_that_others_cannot_enter_data_go_outside_and_stay(directory: Path) -> None:
    home = directory / "home"
    home.mkdir(mode=0o700)
    server = EmbeddedPostgres(home / "clone/.aiworker/postgres", durable=False, outside=directory / "outside")
    url = server.start()
    await _run(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert all(process.uids().real != 0 for process in _servers(directory))
    server.stop()
    assert not (home / "clone/.aiworker/postgres/cluster").exists()

    # Opened up later: the data are still found where they were put.
    home.chmod(0o755)
    assert await _run(server.start(), "SELECT answer FROM kept") == 42
    server.stop()


@needs_root
def test_data_that_became_unreachable_are_named_and_kept(directory: Path) -> None:
    home = directory / "home"
    home.mkdir(mode=0o755)
    server = EmbeddedPostgres(home / "pg", durable=False, outside=directory / "outside")
    server.start()
    server.stop()
    home.chmod(0o700)
    with pytest.raises(ConfigurationError, match="can no longer reach"):
        server.start()
    assert (home / "pg/cluster/data/PG_VERSION").exists()


@needs_root
def test_data_that_an_ordinary_user_made_are_served_as_that_user(directory: Path) -> None:
    server = _server(directory)
    server.start()
    server.stop()
    cluster = directory / "pg/cluster"
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 1, 1)
    server.start()
    assert {process.uids().real for process in _servers(directory)} == {1}
    server.stop()
