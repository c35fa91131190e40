"""Places: a local folder, what pyarrow reads (s3, gs, hdfs, ...), or any other file system of fsspec's."""

from __future__ import annotations

import fsspec
from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

#: What a place that cannot be reached or written raises.
UNREACHABLE = (ArrowException, OSError, ValueError, ImportError)


def filesystem(place: str) -> tuple[FileSystem, str]:
    """The file system of an absolute path or URI, and the path in it.

    Raises:
        UNREACHABLE: no such file system, or one that needs a package that is not installed.
    """
    try:
        return FileSystem.from_uri(place)
    except ArrowException as unknown:
        try:
            files, path = fsspec.core.url_to_fs(place)
        except ValueError:  # fsspec does not know it either
            raise unknown from None
        return PyFileSystem(FSSpecHandler(files)), path
