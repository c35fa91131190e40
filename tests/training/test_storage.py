"""Places for runs: folders, what pyarrow reads, and what fsspec reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxscore.config import ConfigError
from proxscore.storage import UNREACHABLE, filesystem
from proxscore.training import checks, launch

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("scheme", ["", "file://", "local://"], ids=["path", "pyarrow", "fsspec"])
def test_what_is_written_through_a_place_is_found_on_the_disk(scheme: str, tmp_path: Path) -> None:
    files, path = filesystem(f"{scheme}{tmp_path}/here")
    files.create_dir(path, recursive=True)
    with files.open_output_stream(f"{path}/file") as stream:
        stream.write(b"bytes")
    assert (tmp_path / "here" / "file").read_bytes() == b"bytes"


def test_a_place_that_nothing_reads_is_refused_by_its_uri() -> None:
    with pytest.raises(UNREACHABLE, match="nowhere"):
        filesystem("nowhere://bucket/runs")
    assert "nowhere" in (checks.probe_storage("nowhere://bucket/runs", "probe") or "")
    with pytest.raises(ConfigError, match=r"training\.storage nowhere://bucket: cannot be written"):
        launch.RunMemory("nowhere://bucket", "run")
