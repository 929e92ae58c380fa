"""Databases of stores: connections by URL, creation and upgrade of the tables, faults in a line."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    QueuePool,
    column,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    table,
    text,
)
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError

from ..search_space.document import InputError, nearest
from .tables import PREFIX, SCHEMA, VERSION_TABLE, Base

URL_FORMATS = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"
WAIT_S = 30
MIGRATION_LOCK = 0x61726368  # any number, the same in every process: "arch"

_to_json = partial(json.dumps, allow_nan=False)
_json_value = json.JSONDecoder().raw_decode
SQLITE_FAULTS = {
    "SQLITE_BUSY": f"is busy, another process has kept it locked for {WAIT_S} s",
    "SQLITE_CANTOPEN": "cannot be opened, check the permissions of the file and its folder",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_FULL": "the disk is full, free some space",
    "SQLITE_IOERR": "the disk reports an I/O error",
    "SQLITE_NOTADB": "is not a SQLite database",
    "SQLITE_READONLY": "is read-only, check the permissions of the file and its folder",
    "SQLITE_READONLY_DBMOVED": "was moved or deleted while in use",
}
POSTGRES_DENIED = {"42501", "25006", "3F000"}  # no privilege, read-only transaction, no schema


@dataclass(frozen=True, kw_only=True)
class Database:
    """An open database.

    `label` names it in messages: the path of a SQLite file, the URL of a PostgreSQL database
    without password and options. `url` opens it again, but for a password.
    """

    label: str
    url: str
    engine: Engine = field(repr=False)  # its repr shows the options, which may hold a password

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction on one snapshot, which blocks no writer. Raises InputError."""
        with _faults_explained(self.label), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed as a whole or not at all. Raises InputError."""
        with (
            _faults_explained(self.label),
            self.engine.execution_options(writes=True).begin() as connection,
        ):
            yield connection


def open_database(given: str, *, readonly: bool, create: bool) -> Database:
    """Connect, and upgrade the tables unless `readonly`; create them only with `create`.

    Raises InputError, also for a store that does not exist and is not created.

    SQLite runs in WAL mode: readers and the writer do not wait for each other. Keep the file on a
    local disk, never on NFS.
    """
    url = _parsed(given)
    if url.drivername == "postgresql":
        return _checked(_postgres(url, readonly=readonly), readonly=readonly, create=create)
    path = Path(url.database or "")
    missing = not os.path.exists(path)
    try:
        database = _sqlite(path, readonly=readonly, create=create)
        return _checked(database, readonly=readonly, create=create)
    except InputError:
        # Empty means that no other process has built its tables in it meanwhile.
        if missing and os.path.exists(path) and os.path.getsize(path) == 0:
            path.unlink()
        raise


def _parsed(given: str) -> URL:
    kind, separator, rest = given.partition("://")
    if not separator:
        hint = "" if "@" in given else f", got {given!r}; did you mean 'sqlite:///{given}'?"
        raise InputError(f"a store is given as {URL_FORMATS}{hint}")
    if kind not in ("sqlite", "postgresql"):
        raise InputError(
            f"a store is {URL_FORMATS}, "
            f"got {kind + '://'!r}{nearest(kind, ('sqlite', 'postgresql'))}"
        )
    if kind == "sqlite" and (not rest.startswith("/") or rest in ("/", "/:memory:") or "?" in rest):
        path = (
            "runs.db" if rest.strip("/") in ("", ":memory:") else rest.lstrip("/").partition("?")[0]
        )
        raise InputError(
            f"a SQLite store is a file, got {given!r}; did you mean 'sqlite:///{path}'?"
        )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # its message may hold the password
        url = None
    if url is None or "@" in (url.host or ""):
        raise InputError(
            f"not a valid URL; a store is {URL_FORMATS}, "
            "with '@', ':' and '/' in a password as %40, %3A, %2F"
        )
    if kind == "postgresql" and not url.database:
        raise InputError(f"the URL names no database; a store is {URL_FORMATS}")
    return url


def _sqlite(path: Path, *, readonly: bool, create: bool) -> Database:
    if not os.path.isdir(path.parent):  # where Path's own would raise for lack of permission
        raise InputError(f"{path}: no such folder {str(path.parent)!r}, create it first")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder, expected a SQLite file")
    if not create and not os.path.exists(path):
        near = nearest(path.name, (p.name for p in path.parent.glob("*.db")))
        raise InputError(f"{path}: no such store{near}")

    if not readonly and os.path.exists(path) and not os.access(path, os.W_OK):
        # SQLite itself would notice only at the first row.
        raise InputError(f"{path}: {SQLITE_FAULTS['SQLITE_READONLY']}")

    def connect() -> sqlite3.Connection:
        mode = "rwc"
        if readonly:
            # Reading a WAL file needs a lock file beside it. Where we may not make one and nobody
            # writes, the file cannot change under us.
            alone = not (os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists())
            mode = "ro&immutable=1" if alone else "ro"
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}",
            uri=True,
            timeout=WAIT_S,
            isolation_level=None,  # transactions are begun below
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=NullPool if readonly else QueuePool,
        json_serializer=_to_json,
        # The file's JSON is of our own writing, without white space around it to look for.
        json_deserializer=lambda text: _json_value(text)[0],
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once when another has written.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return Database(label=str(path), url=f"sqlite:///{path}", engine=engine)


def _postgres(url: URL, *, readonly: bool) -> Database:
    try:
        engine = create_engine(
            url.set(query={"connect_timeout": "10", **url.query}),
            pool_pre_ping=True,
            json_serializer=_to_json,
            execution_options={"postgresql_readonly": readonly},
        )
    except ImportError:
        raise InputError(
            "a PostgreSQL store needs its driver: pip install 'archfront[postgres]'"
        ) from None
    label = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    options = {name: value for name, value in url.query.items() if "password" not in name}
    return Database(
        label=label.render_as_string(),
        url=label.set(query=options).render_as_string(),
        engine=engine,
    )


def _checked(database: Database, *, readonly: bool, create: bool) -> Database:
    try:
        if readonly:
            with database.reading() as connection:
                _check_readable(connection, database.label)
        else:
            _upgrade(database, create=create)
    except BaseException:
        database.engine.dispose()
        raise
    return database


def _schema(connection: Connection, label: str) -> str | None:
    """The schema's version, None where there is none. Raises InputError for a newer one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    if version is not None and version > SCHEMA:
        raise InputError(
            f"store {label} has schema {version}, this archfront knows up to {SCHEMA}: "
            "upgrade archfront"
        )
    return version


def _check_readable(connection: Connection, label: str) -> None:
    version = _schema(connection, label)
    if version is None:
        raise _empty(label)
    if version != SCHEMA:
        raise InputError(
            f"store {label} has schema {version}, this archfront reads {SCHEMA}: "
            "the next search or resume upgrades it"
        )


def _empty(label: str) -> InputError:
    return InputError(f"{label}: holds no archfront store yet, a search creates it")


def _upgrade(database: Database, *, create: bool) -> None:
    """Bring the tables to SCHEMA; of several processes one does it and the others wait."""
    engine = database.engine.execution_options(writes=True)
    sqlite = engine.dialect.name == "sqlite"
    with _faults_explained(database.label), engine.connect() as connection:
        cursor = connection.connection.cursor()
        if sqlite:
            # To alter a table SQLite copies and drops it, and a drop cascades. The pragma has no
            # effect inside a transaction.
            cursor.execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            if not sqlite:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
                )
            version = _schema(connection, database.label)
            if version is None and not create:
                raise _empty(database.label)
            if version != SCHEMA:
                _migrate(connection)
        if sqlite:
            # After the tables, so that a store that could not be made leaves an empty file.
            _to_wal(cursor)
    engine.dispose()


def _to_wal(cursor: DBAPICursor) -> None:
    """Switch to WAL: a statement for which SQLite does not wait while the file is locked."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def alembic_options(connection: Connection) -> dict[str, Any]:
    """Options of Alembic's context: only tables with our prefix are ours."""
    return {
        "connection": connection,
        "target_metadata": Base.metadata,
        "version_table": VERSION_TABLE,
        "include_name": lambda name, kind, _: kind != "table" or name.startswith(PREFIX),
        "render_as_batch": connection.dialect.name == "sqlite",
    }


def _migrate(connection: Connection) -> None:
    from alembic import command  # half a second that a store in order does not need
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", f"{__package__}:migrations")
    config.attributes["configure"] = alembic_options(connection)
    command.upgrade(config, SCHEMA)


@contextmanager
def _faults_explained(label: str) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        fault = _fault(error)
        if fault is None:
            raise
        raise InputError(f"{label}: {fault}") from None


def _fault(error: DBAPIError | sqlite3.Error) -> str | None:
    """A line on a fault that the user can act on: disk, server, permissions; None for others."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(origin, sqlite3.Error):
        name = getattr(origin, "sqlite_errorname", "")
        return SQLITE_FAULTS.get(name) or SQLITE_FAULTS.get("_".join(name.split("_")[:2]))
    sqlstate = getattr(origin, "sqlstate", None)
    unconnected = isinstance(error, ProgrammingError) and sqlstate is None  # an unknown option
    if isinstance(error, OperationalError) or unconnected or sqlstate in POSTGRES_DENIED:
        return str(origin).strip().splitlines()[0]
    return None
