"""A real PgBouncer in front of a test's database."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
_START_TIMEOUT_S = 20.0


@contextmanager
def pgbouncer(url: str, *, mode: str = "transaction", servers: int = 2, swallows: str = "") -> Iterator[str]:
    """URL through a PgBouncer with `servers` connections; `swallows` are start-up settings that it drops silently."""
    parts = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="aiworker-pgbouncer-") as name:
        home = Path(name)
        port = _free_port()
        (home / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
        (home / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {home}/users.txt\npool_mode = {mode}\ndefault_pool_size = {servers}\n"
            f"server_round_robin = 1\nlogfile = {home}/log\n"
            + (f"ignore_startup_parameters = {swallows}\n" if swallows else "")
        )
        # It refuses to run as root.
        user = _unprivileged()
        for path in (home, *home.iterdir()):
            if user is not None:
                os.chown(path, user, -1)
        assert PROGRAM is not None
        process = subprocess.Popen([PROGRAM, "-q", str(home / "pgbouncer.ini")], user=user)
        try:
            _until_open(port, process)
            yield urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
        finally:
            process.terminate()
            process.wait(timeout=20)


def _unprivileged() -> int | None:
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("PgBouncer does not start")
