"""SQLite databases of MLflow's: their files, and their first use by several jobs at once.

MLflow makes the tables of an empty database in many small steps. Two processes that do so at the same time fail each other, and
one that is killed on the way leaves a file that no later job can use. Here a database is made in a file beside its place and
appears there whole, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from proxscore.config import ConfigError
from proxscore.storage.files import forget_partials

SQLITE = "sqlite:///"

# It tells of every table of a new database.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def database(uri: str) -> Path | None:
    """The file of a SQLite database; none: the URI is that of something else, or of a database in memory."""
    if not uri.startswith(SQLITE):
        return None
    found = make_url(uri).database
    return None if not found or found == ":memory:" or found.startswith("file:") else Path(found)


def sqlite_uri(path: Path) -> str:
    """The URI of a database in a file, whatever the names of its folders.

    SQLAlchemy takes what follows a ``?`` for options, and (from 2.1 on) ``%41`` for an ``A``.

    Raises:
        ConfigError: its version can name no such file.
    """
    for written in (str(path), quote(str(path), safe="/ ")):
        if make_url(SQLITE + written).database == str(path):
            return SQLITE + written
    raise ConfigError(f"{path}: no database can be named there: set tracking.uri, or take a folder without ? and %")


def check_place(path: Path) -> None:
    """Look at once whether a file can be made where a new database would lie: MLflow tries for minutes.

    Raises:
        OSError: it cannot.
    """
    if not path.exists():
        folder = next(each for each in path.absolute().parents if each.exists())
        tempfile.TemporaryFile(dir=folder).close()


def ensure(uri: str) -> None:
    """Make the database of a URI, if it is one of SQLite's and its file does not exist yet."""
    path = database(uri)
    if path is None or path.exists():
        return
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if not path.exists():
            _make(path.absolute())


def _make(path: Path) -> None:
    partial = path.with_name(f".partial-{secrets.token_hex(6)}-{path.name}")
    try:
        client = connected(sqlite_uri(partial))
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()  # what holds the file open under this name
        try:
            os.link(partial, path)  # which replaces nothing, as a rename would
        except FileExistsError:  # someone else was first, on another machine, or by MLflow itself
            return
        except OSError:  # no links on this file system
            if not path.exists():
                partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
        forget_partials(path)


def connected(uri: str) -> MlflowClient:
    """MLflow's client. It makes folders from the text of a SQLite URI before it decodes it: they are removed again."""
    path = database(uri)
    named = Path(uri.removeprefix(SQLITE)).parent
    strays = [] if path is None or named == path.parent else [f for f in (named, *named.parents) if not f.exists()]
    client = MlflowClient(tracking_uri=uri)
    for folder in strays:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return client


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time, where the file system can lock a folder; :func:`_make` is safe without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
