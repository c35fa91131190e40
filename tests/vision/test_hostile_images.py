"""Files that would take all memory, all time, or another program: refused with their name, or passed over."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from proxscore.config import ConfigError
from proxscore.vision import decoding
from proxscore.vision.data import load_images
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.sources.image_folder import ImageFolderConfig
from proxscore.vision.sources.parquet import ParquetConfig

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def png(width: int, height: int) -> bytes:
    """A small file whose header promises so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = np.full((8, 8), 20 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_images(ImageFolderConfig(kind="image_folder", path=folder, size=8))
    return str(caught.value)


def test_postscript_under_another_name_never_reaches_its_interpreter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> None:
        pytest.fail("PostScript is interpreted")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    for name in ("3.png", "4.jpg"):
        (folder / "a" / name).write_bytes(EPS)
    assert refused(folder) == f"{folder / 'a' / '3.png'}: not a readable image: not in a known image format"
    columns = {"image": [EPS] + [(folder / "b" / "1.png").read_bytes()] * 19, "label": [0, 1] * 10}
    pq.write_table(pa.table(columns), folder / "x.parquet")
    data = load_images(ParquetConfig(kind="parquet", path=folder / "x.parquet", classes=2, size=8))
    (part,) = (part for part in (data.train, data.validation, data.test) if 0 in part.rows)
    with pytest.raises(ConfigError, match=r"x\.parquet, row 0: not a readable image"):
        part.__getitems__(range(len(part)))


def test_only_listed_formats_are_opened(folder: Path) -> None:
    Image.init()
    for name in sorted(Image.SAVE.keys() & Image.OPEN.keys() - set(decoding.FORMATS)):
        buffer = io.BytesIO()
        try:
            Image.new("RGB", (8, 8)).save(buffer, name)
        except (OSError, KeyError, ValueError):  # a format of other modes, or without its library
            continue
        (folder / "a" / "3.png").write_bytes(buffer.getvalue())
        assert "not in a known image format" in refused(folder), name


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (100_000_000, 1), (60_000, 60_000)])
def test_an_image_of_very_many_pixels_is_named_before_it_is_decoded(folder: Path, width: int, height: int) -> None:
    (folder / "b" / "5.png").write_bytes(png(width, height))
    message = refused(folder)
    assert message.startswith(f"{folder / 'b' / '5.png'}: not a readable image: ")
    assert "pixels" in message


def test_pipes_and_devices_among_images_are_named(folder: Path) -> None:
    os.mkfifo(folder / "a" / "pipe.png")
    assert refused(folder) == f"{folder / 'a' / 'pipe.png'}: is a pipe; give a regular file"
    (folder / "a" / "pipe.png").unlink()
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    assert refused(folder) == f"{folder / 'a' / 'zero.png'}: is a device; give a regular file"


def test_a_pipe_among_parquet_files_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet: is a pipe"):
        load_images(ParquetConfig(kind="parquet", path=tmp_path, classes=2))


def circle(folder: Path) -> None:
    (folder / "a" / "again").symlink_to(folder / "a")


def wide_circles(folder: Path) -> None:
    for number in range(12):
        (folder / "a" / f"again{number}").symlink_to(folder / "a")


def two_that_lead_to_each_other(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / "a" / name).mkdir()
    (folder / "a" / "x" / "to").symlink_to(folder / "a" / "y")
    (folder / "a" / "y" / "to").symlink_to(folder / "a" / "x")


def doubling(folder: Path) -> None:
    """2^20 ways to the last of 20 folders, without a circle."""
    for number in range(20):
        (folder / f".{number}").mkdir(exist_ok=True)
        (folder / f".{number + 1}").mkdir(exist_ok=True)
        for way in "lr":
            (folder / f".{number}" / way).symlink_to(folder / f".{number + 1}")
    (folder / "a" / "start").symlink_to(folder / ".0")


@pytest.mark.parametrize("tangle", [circle, wide_circles, two_that_lead_to_each_other, doubling])
def test_links_in_circles_end_and_count_each_image_once(folder: Path, tangle: Callable[[Path], None]) -> None:
    tangle(folder)
    counts = load_images(ImageFolderConfig(kind="image_folder", path=folder, size=8)).splits["counts"]
    assert sum(counts.values()) == 20


def idx(folder: Path, images: bytes, labels: int = 50) -> IdxConfig:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, labels) + bytes(labels))
    return IdxConfig(kind="idx", path=folder)


def test_a_gzip_file_that_inflates_beyond_its_header_is_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    original = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal read
        content = original(self, size)
        read += len(content)
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    content = struct.pack(">4i", 0x0803, 50, 8, 8) + bytes(50 * 64) + bytes(100_000_000)
    with pytest.raises(ConfigError, match=r"the header says 50x8x8 = 3200 bytes; more follow it"):
        load_images(idx(tmp_path, gzip.compress(content, 1)))
    assert read < 10_000


def test_a_header_that_promises_more_than_memory_holds_is_refused_with_the_bound(tmp_path: Path) -> None:
    content = struct.pack(">4i", 0x0803, 2**31 - 1, 2**20, 2**10)
    with pytest.raises(ConfigError, match=r"images-idx3-ubyte\.gz: the header says .* bytes of memory are free"):
        load_images(idx(tmp_path, gzip.compress(content)))


def test_a_pipe_and_a_device_are_no_idx_files(tmp_path: Path) -> None:
    config = idx(tmp_path, b"")
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    os.mkfifo(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(ConfigError, match="neither train-images-idx3-ubyte nor"):
        load_images(config)
