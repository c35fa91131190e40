"""Files that appear whole or not at all, whatever becomes of the process that writes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxscore.storage import filesystem, put, read, replacing, replacing_folder, write

WRITER = """
import sys
from pathlib import Path
from proxscore.storage import filesystem, put
files, path = filesystem(sys.argv[1])
print("begins", flush=True)
while True:
    for letter in "ab":
        put(files, path, letter * 5_000_000)
"""


@pytest.mark.parametrize("scheme", ["", "file://", "local://"], ids=["path", "pyarrow", "fsspec"])
def test_a_kill_at_any_moment_leaves_the_whole_of_one_version(scheme: str, tmp_path: Path) -> None:
    place = tmp_path / "file"
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, f"{scheme}{place}"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.017 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = place.read_bytes() if place.exists() else b""
        assert len(content) in (0, 5_000_000)
        assert len(set(content)) <= 1
        if content:
            os.truncate(place, 0)  # what the next attempt must not leave
            place.unlink()


@pytest.mark.parametrize("scheme", ["", "memory://"], ids=["local", "objects"])
def test_what_is_put_is_read(scheme: str, tmp_path: Path) -> None:
    files, path = filesystem(f"{scheme}{tmp_path}/file")
    assert read(files, path) is None
    put(files, path, "one")
    put(files, path, b"two")
    assert read(files, path) == b"two"


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        with replacing(place) as partial:
            assert partial.suffix == ".txt"  # what decides about a figure's format
            partial.write_text("half")
            raise ZeroDivisionError

    write(tmp_path / "file.txt", "before")
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "file.txt")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.txt", "before")]


def test_a_link_stays_one_and_a_device_is_written_directly(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "after"
    write(Path(os.devnull), "anything")
    assert not Path(os.devnull).is_file()


def test_what_a_killed_process_left_half_written_is_removed_after_a_while(tmp_path: Path) -> None:
    old, new = tmp_path / ".partial-0123456789ab-file [1]", tmp_path / ".partial-ba9876543210-file [1]"
    old.write_text("half")
    new.write_text("half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    write(tmp_path / "file [1]", "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [new.name, "file [1]"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "above" / "folder"

    def fill(error: Exception | None = None) -> None:
        with replacing_folder(place) as partial:
            (partial / "file").write_text("content")
            assert not place.exists() or not list(place.iterdir())
            if error is not None:
                raise error

    with pytest.raises(KeyError):
        fill(KeyError())
    assert list(place.parent.iterdir()) == []
    old, new = (place.parent / f".partial-{name}-folder" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    place.mkdir()
    fill()
    assert (place / "file").read_text() == "content"
    assert sorted(place.parent.iterdir()) == sorted([place, new])
    with pytest.raises(OSError, match="not empty"), replacing_folder(place) as partial:
        (partial / "file").write_text("other")
    assert (place / "file").read_text() == "content"
