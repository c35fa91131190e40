"""What a submitted job would write into its own folder is said once, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxscore.config.files import check_file_destination, tell_if_it_vanishes


def test_a_place_in_a_submitted_jobs_folder_is_named_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"  # as Ray 2.60 names it
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_file_destination("--result", Path("result.json"))  # the same name in a folder that stays
    monkeypatch.chdir(folder)
    for place in ("s3://bucket/runs", str(tmp_path / "runs")):
        tell_if_it_vanishes("training.storage", place)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        check_file_destination("--result", Path("result.json"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "note: --result result.json is in this submitted job's own folder, which the cluster removes: "
    )
