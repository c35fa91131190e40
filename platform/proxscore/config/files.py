"""Files and folders that settings and options name: what is looked at before one is opened or written."""

from __future__ import annotations

import gzip
import io
import stat
import sys
import tempfile
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from proxscore.config.section import ConfigError

WORKING_FOLDERS = "working_dir_files"  # where Ray unpacks what was submitted, on every node


def check_regular(path: Path, where: str | None = None) -> None:
    """Refuse what is there but no regular file: opening a pipe waits for whoever writes it, a device may never end.

    Args:
        where: what to call the file in the message; its path, if nothing else.

    Raises:
        ConfigError: names the file.
        OSError: it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{where or path}: is {_kind(mode)}; give a regular file")


class Inflated(io.RawIOBase):
    """What a gzip file inflates to, as a stream that ends with an error where that is more than memory can hold.

    Raises:
        ConfigError: on reading too much; names the file and the bound.
        OSError: no gzip file, or not a whole one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._file = gzip.GzipFile(path)  # closed by close
        import psutil

        self._bound = psutil.virtual_memory().available // 4

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._file.readinto(buffer)
        except (EOFError, zlib.error) as error:
            raise OSError(str(error)) from error
        self._read += count
        if self._read > self._bound:
            raise ConfigError(
                f"{self._path}: inflates to more than {self._bound:,} bytes, a quarter of the memory here"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def check_file_destination(option: str, path: Path) -> None:
    """A file can be written there: its folder is, and takes files.

    Args:
        option: that names it, for the message.

    Raises:
        ConfigError: it cannot.
    """
    where = f"{option} {path}"
    tell_if_it_vanishes(option, str(path))
    try:
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"{where}: the folder {path.parent} does not exist")
        if path.exists():
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                raise ConfigError(f"{where}: is {_kind(mode)}; give a file")
            with path.open("ab"):
                return
        if path.is_symlink():
            raise ConfigError(f"{where}: a link to nowhere; give a file")
        path.touch()  # its very name must do, too
        path.unlink(missing_ok=True)  # processes of torchrun do this side by side
    except (OSError, ValueError) as error:
        raise _unwritable(where, error) from error


def check_folder_destination(option: str, path: Path) -> None:
    """A folder is there, or can be made, and takes files. Nothing is left behind.

    Raises:
        ConfigError: it cannot.
    """
    where = f"{option} {path}"
    tell_if_it_vanishes(option, str(path))
    try:
        full = path.absolute()
        found = next(place for place in (full, *full.parents) if place.exists() or place.is_symlink())
        if not found.is_dir():
            raise ConfigError(f"{where}: {found} is no folder")
        with tempfile.TemporaryDirectory(dir=found, prefix=".probe-") as probe:
            made = Path(probe, *full.relative_to(found).parts)  # a name that is too long, say, is found here
            made.mkdir(parents=True, exist_ok=True)
            (made / "probe").touch()
    except (OSError, ValueError) as error:
        raise _unwritable(where, error) from error


def tell_if_it_vanishes(setting: str, place: str) -> None:
    """Say in one line that a place lies in the folder that Ray has unpacked for a submitted job, and may remove after it.

    It is said once in a process for each setting and place.

    Args:
        setting: that names the place, for the message.
        place: a path, or a URI, which outlives it.
    """
    if "://" not in place:
        _tell_if_it_vanishes(setting, place, Path(place).absolute())


@cache
def _tell_if_it_vanishes(setting: str, place: str, absolute: Path) -> None:
    if any(folder == WORKING_FOLDERS and job.startswith("_ray_pkg_") for folder, job in pairwise(absolute.parts)):
        print(
            f"note: {setting} {place} is in this submitted job's own folder, which the cluster removes: give a place that "
            "outlives it, a bucket or an absolute path that all nodes share",
            file=sys.stderr,
            flush=True,
        )


def _unwritable(where: str, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return ConfigError(f"{where}: cannot be written: {reason}")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")
