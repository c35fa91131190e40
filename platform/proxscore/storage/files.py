"""Files that appear whole or not at all, whenever the process that writes them is killed.

On a local disk a file is written beside its place, made durable (fsync), and renamed into it. An object store takes an object
as a whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem as LocalFsspec
from pyarrow.fs import FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

FORGOTTEN = 3600.0  # seconds after which a half-written file belongs to a process that was killed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path``, with the same suffix, to be written within the context; it becomes ``path`` at its end.

    If the context raises, ``path`` stays as it was. A symbolic link stays one; what is no regular file (``/dev/stdout``) is
    written directly.

    Raises:
        OSError: the folder cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".partial-{secrets.token_hex(6)}-{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)
    forget_partials(path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, to be filled within the context; at its end it becomes ``path``, which is empty or absent.

    If the context raises, the folder is removed; what killed processes left is, too, when it is old.

    Raises:
        OSError: the folder above cannot be written, or ``path`` has been filled meanwhile.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{secrets.token_hex(6)}-{path.name}")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        partial.rename(path)  # onto an empty folder, too
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync(path.parent)
    for left in path.parent.glob(f".partial-*-{_literally(path.name)}"):
        if left.is_dir() and time.time() - left.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(left, ignore_errors=True)


def forget_partials(path: Path) -> None:
    """Remove what killed processes left half written of a file."""
    for partial in path.parent.glob(f".partial-*-{_literally(path.name)}*"):
        with contextlib.suppress(OSError):  # someone else may be at it
            if time.time() - partial.stat().st_mtime > FORGOTTEN:
                partial.unlink()


def write(path: Path, content: str | bytes) -> None:
    """Write a local file."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def put(files: FileSystem, path: str, content: str | bytes) -> None:
    """Write a file of any file system.

    Raises:
        OSError: it cannot be written.
    """
    if is_local(files):
        write(Path(path), content)
        return
    data = content.encode() if isinstance(content, str) else content

    def upload() -> None:
        with files.open_output_stream(path) as stream:
            stream.write(data)

    # On a thread, which Ctrl-C does not reach: an interrupted stream is closed, and what it has by then becomes the object.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(upload).result()


def read(files: FileSystem, path: str) -> bytes | None:
    """Read a file; none where there is none."""
    if not exists(files, path):
        return None
    try:
        with files.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:  # removed meanwhile
        return None


def exists(files: FileSystem, path: str) -> bool:
    """Whether there is a file."""
    return bool(files.get_file_info(path).type == FileType.File)


def is_local(files: FileSystem) -> bool:
    """Whether paths of a file system are those of this machine."""
    if isinstance(files, PyFileSystem) and isinstance(files.handler, FSSpecHandler):
        return isinstance(files.handler.fs, LocalFsspec)
    return isinstance(files, LocalFileSystem)


def _sync(place: Path) -> None:
    """Make a file, or renames within a folder, durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _literally(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
