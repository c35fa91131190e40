"""``proxscore predict``: the numbers of ``load(...).predict`` in files, with failed rows, and what was stopped goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import proxscore
from proxscore.commands.predict import main as predict
from proxscore.serving import batch
from proxscore.serving.pieces import Piece, image_pieces, images_of, series_pieces

if TYPE_CHECKING:
    from photographs import Photographs


def expected(photographs: Photographs, images: object) -> pd.DataFrame:
    return proxscore.load(photographs.run, device="cpu").predict(images, errors="keep").to_frame()


def same(found: pd.DataFrame, right: pd.DataFrame) -> None:
    for name in ("confidence", "total", "aleatoric", "epistemic"):
        np.testing.assert_allclose(found[name], right[name], atol=1e-6)
    assert found["label"].fillna("").tolist() == right["label"].fillna("").tolist()
    assert [None if names is None else list(names) for names in found["set"]] == right["set"].tolist()


def test_a_folder_becomes_a_file_with_a_row_for_each_image(
    photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(photographs.tests, images)
    (images / "red" / "00.png").write_bytes(b"broken")
    output = tmp_path / "predictions.parquet"
    assert predict([str(photographs.run), str(images), "--output", str(output), "--device", "cpu"]) == 0
    found = pd.read_parquet(output)
    same(found, expected(photographs, images))
    assert found["row"].tolist() == list(range(30))
    assert [Path(path).name for path in found["path"]] == [path.name for path in photographs.files]
    (failed,) = found.index[found["error"].notna()]
    assert found["path"][failed].endswith("red/00.png")
    told = capsys.readouterr().out
    assert "this posterior is still moving" in told
    assert "1 of 30 images could not be predicted" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "predictions.parquet"]
    assert predict([str(photographs.run), str(images), "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_table_keeps_columns_and_goes_on_where_it_stopped(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = [path.read_bytes() for path in photographs.files]
    table = pa.table({"image": [{"bytes": each, "path": None} for each in encoded], "id": list(range(100, 130))})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=7)
    monkeypatch.setattr("proxscore.serving.pieces.ROWS", 8)
    monkeypatch.setattr(image_pieces, "__defaults__", (8,))
    output = tmp_path / "predictions"
    command = [
        str(photographs.run),
        str(tmp_path / "images.parquet"),
        "--output",
        str(output),
        "--keep",
        "id",
        "--device",
        "cpu",
    ]
    calls: list[int] = []
    plain = batch.Worker.__call__

    def stopped(self: batch.Worker, piece: Piece) -> batch.Done:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(piece.number)
        return plain(self, piece)

    monkeypatch.setattr(batch.Worker, "__call__", stopped)
    assert predict([*command, "--all"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(list(output.glob("part-*"))) == 2
    monkeypatch.setattr(batch.Worker, "__call__", plain)
    assert predict(command) == 2
    assert "holds predictions with all=True, now it is False" in capsys.readouterr().err
    assert predict([*command, "--all"]) == 0
    assert "16 of them predicted before" in capsys.readouterr().out
    found = pd.read_parquet(output)
    same(found, expected(photographs, photographs.files))
    assert found["id"].tolist() == list(range(100, 130))
    np.testing.assert_allclose(found[["p_red", "p_green", "p_blue"]].sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_workers_of_a_cluster_find_the_same(photographs: Photographs, tmp_path: Path, repository: Path) -> None:
    """In a process of its own, with a cluster of its own, as a user has it."""
    (tmp_path / "list.csv").write_text("path\n" + "\n".join([*map(str, photographs.files), "absent.png"]) + "\n")
    output = tmp_path / "out"
    script, device = str(repository / "jobs" / "predict.py"), ["--device", "cpu"]
    arguments = [str(photographs.run), str(tmp_path / "list.csv"), "--output", str(output), "--workers", "2", *device]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_parquet(output)
    same(found.iloc[:30], expected(photographs, photographs.files))
    assert found["error"].tolist()[30].endswith("absent.png: no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "absent"], "absent: nothing there"),
        (["{run}", "{tests}", "--draws", "-1"], "--draws is -1"),
        (["{run}", "{tests}", "--draws", "50"], "known of 5 draws"),
        (["{run}", "{tests}", "--workers", "-1"], "--workers is -1"),
        (["{run}", "{tests}", "--output", "s3://bucket/x.parquet"], "leave out .parquet"),
        (["{run}", "{tests}", "--output", "absent/x.parquet"], "does not exist"),
        (["{run}", "{table}"], "no column image"),
        (["{run}", "{table}", "--column", "images"], "no column images"),
        (["{run}", "{text}"], "no column 'path'"),
        (["{run}", "{empty}"], "no images there"),
        (["models:/nothing@champion", "{tests}"], "no registered model 'nothing'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    photographs: Photographs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", photographs.uri)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "table.parquet")
    (tmp_path / "text.csv").write_text("file\nx.png\n")
    (tmp_path / "empty").mkdir()
    places = {"run": photographs.run, "tests": photographs.tests, "table": tmp_path / "table.parquet"}
    places |= {"text": tmp_path / "text.csv", "empty": tmp_path / "empty"}
    assert predict([each.format(**places) for each in arguments]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
    assert not list(tmp_path.glob("predictions*"))


def test_a_dry_run_counts_and_leaves_nothing(
    photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert (
        predict([str(photographs.run), str(photographs.tests), "--output", str(output), "--dry-run", "--workers", "3"])
        == 0
    )
    told = capsys.readouterr().out
    assert "30 images of" in told
    assert "for one of them in this process" in told
    assert "by 3 workers" in told
    assert not list(tmp_path.iterdir())


def test_pieces_hold_every_row_once(tmp_path: Path) -> None:
    for name, rows, groups in (("a", 10, 3), ("b", 1, 1), ("c", 7, 7)):
        values = [f"{name}{row}".encode() for row in range(rows)]
        pq.write_table(pa.table({"image": values}), tmp_path / f"{name}.parquet", row_group_size=groups)
    for size in (1, 4, 100):
        pieces = image_pieces(tmp_path, None, size)
        found = [image for piece in pieces for image in images_of(piece, None, ())[0]]
        assert found == [f"{n}{row}".encode() for n, rows in (("a", 10), ("b", 1), ("c", 7)) for row in range(rows)]
        assert [piece.first for piece in pieces] == list(np.cumsum([0, *(piece.count for piece in pieces)])[:-1])
        for piece in pieces:
            from dataclasses import asdict

            assert Piece.of(json.loads(json.dumps(asdict(piece)))) == piece
    named = series_pieces([("a", 1), ("b", 2), ("c", 3)], 2)
    assert [piece.names for piece in named] == [(("a", 1), ("b", 2)), (("c", 3),)]
