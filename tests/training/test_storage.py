"""Places for runs: folders, what pyarrow reads, and what fsspec reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.storage import UNREACHABLE, filesystem
from proxscore.storage.probe import probe_storage
from proxscore.training.run_memory import RunMemory


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
    assert "nowhere" in (probe_storage("nowhere://bucket/runs", "probe") or "")
    with pytest.raises(ConfigError, match=r"training\.storage nowhere://bucket: cannot be written"):
        RunMemory("nowhere://bucket", "run")


def test_a_run_of_an_earlier_version_goes_on_without_the_settings_that_it_did_not_know(tmp_path: Path) -> None:
    def with_multipliers(values: list[float]) -> Config:
        return configuration.parse({"method": {"penalty": {"mean_schedule": {"multipliers": values}}}})

    config = with_multipliers([])
    memory = RunMemory(str(tmp_path), "run")
    memory.write(config, config.method, 1.0, "known")
    file = tmp_path / "run" / "run.json"
    kept = json.loads(file.read_text())
    del kept["settings"]["method.penalty.mean_schedule.multipliers"]
    file.write_text(json.dumps(kept))
    assert memory.read(config, config.method, 1.0) == "known"
    other = with_multipliers([2.0])
    with pytest.raises(ConfigError, match=r"mean_schedule\.multipliers=None, now it is \[2\.0\]"):
        memory.read(other, other.method, 1.0)
