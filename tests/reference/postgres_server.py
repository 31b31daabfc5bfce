"""A real Postgres of our own, from the distribution's package, gone when the tests are."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa


def program(name: str) -> str:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    if found is None:
        pytest.skip(f"no {name}: Postgres is not installed; `make postgres` installs it")
    return found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The folder of the socket of a Postgres of its own."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    # not tmp_path: a socket's path is short, and Postgres, which refuses to run as root, must be let in
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    if os.getuid() == 0:
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("Postgres does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        options |= {"user": "postgres"}
    flags = "-c listen_addresses='' -c fsync=off"
    try:
        subprocess.run([initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"], **options)
        start = [pg_ctl, "-D", folder / "data", "-w", "-l", folder / "log", "-o", f"-k {folder} {flags}", "start"]
        subprocess.run(start, **options)
        try:
            yield str(folder)
        finally:
            subprocess.run([pg_ctl, "-D", folder / "data", "-m", "immediate", "-w", "stop"], **options)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A fresh database on the server."""
    name = f"db_{time.monotonic_ns()}"
    url = f"postgresql+psycopg://postgres@/{{}}?host={postgres_server}"
    engine = sa.create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.format(name)
