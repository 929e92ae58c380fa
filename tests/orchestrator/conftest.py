"""Real databases for the tests of the store: a SQLite file, a PostgreSQL server of our own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from archfront.orchestrator.store import Objective, Store, open_store
from archfront.search_space.architecture import Architecture

OBJECTIVES = (
    Objective(label="decode_ms@chat-4k", better="lower"),
    Objective(label="recall", better="higher"),
)
DURABLE_OFF = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server: ARCHFRONT_TEST_POSTGRES, or one started for this session."""
    given = os.environ.get("ARCHFRONT_TEST_POSTGRES")
    if given:
        yield given
        return
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if not binaries:
        pytest.skip("no PostgreSQL: apt-get install postgresql, or set ARCHFRONT_TEST_POSTGRES")
    # A server does not run as root; the path of its socket may have 107 bytes.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)

    def run(command: str, *arguments: str) -> None:
        subprocess.run(
            [binaries[-1] / command, *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    try:
        run(
            "initdb",
            "-D",
            f"{folder}/data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} {DURABLE_OFF}"
        run("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_database(postgres_server: str) -> Iterator[str]:
    """URL of a database of this session."""
    name = f"archfront_test_{os.getpid()}"
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """URL of a database without tables."""
    engine = create_engine(postgres_database, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    return postgres_database


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a store that does not exist yet, once of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open store with the study `first`: decode_ms lower, recall higher."""
    with open_store(store_url) as opened:
        opened.create_study(
            name="first",
            space_yaml="objectives: [decode_ms@chat-4k, recall]\n",
            space_name="tiny",
            objectives=OBJECTIVES,
            seed=7,
            sampler="tpe",
            target="h200_sxm",
            trials_wanted=100,
        )
        yield opened


@pytest.fixture
def tiny() -> Callable[[int], Architecture]:
    """Makes a small architecture, another for each number."""

    def make(number: int) -> Architecture:
        return Architecture.model_validate(
            {
                "d_model": 64 + 16 * number,
                "vocab_size": 512,
                "pattern": "*-",
                "blocks": {
                    "*": {"kind": "attn", "heads": 2, "kv_heads": 1, "head_dim": 32},
                    "-": {"kind": "ffn", "width": 128},
                },
            }
        )

    return make
