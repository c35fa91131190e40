"""What the scripts of studies share: rows are kept, options refused in a line, spreads as pages show them."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import pytest

from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command, lines, spread
from proxscore.tracking import Study


def test_a_row_is_measured_once_and_a_line_that_was_cut_again(tmp_path: Path) -> None:
    file, measured = tmp_path / "rows.jsonl", []

    def measure(key: dict[str, int]) -> dict[str, float]:
        measured.append(key["seed"])
        return {"nll": float(key["seed"]), "worst": math.inf}

    keys = [{"seed": seed} for seed in range(2)]
    found = list(Rows(file).each(keys, measure))
    assert [row for _, row in found] == [{"nll": 0.0, "worst": math.inf}, {"nll": 1.0, "worst": math.inf}]
    file.write_text(file.read_text()[:-5])  # killed while it wrote the second one
    assert list(Rows(file).each(keys, measure)) == found
    assert list(Rows(file).each(keys, measure)) == found
    assert measured == [0, 1, 1]


def test_a_study_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    output = tmp_path / "out"

    def measure(options: Namespace, record: Study, rows: Rows) -> None:
        if options.limit == 0:
            raise ConfigError("--limit is 0")
        record.table("limits", ["limit", "seeds"], [[rows.row("limit", lambda: options.limit), options.seeds]])

    limit = {"limit": {"type": int, "default": 5}}
    arguments = ["--output", str(output), "--quick"]
    assert command("limits", None, measure, limit | {"seeds": {"default": 7}}, arguments) == 0
    assert "| 5 | 7 |" in capsys.readouterr().out
    assert sorted(file.name for file in output.iterdir()) == ["limits.csv", "limits.md", "rows-quick.jsonl"]
    assert command("limits", None, measure, limit, [*arguments, "--limit", "0"]) == 2
    assert capsys.readouterr().err == "error: --limit is 0\n"
    with pytest.raises(SystemExit):
        command("limits", None, measure, None, ["--seeds", "0"])


def test_spreads_are_as_pages_show_them() -> None:
    assert spread([]) == ""
    assert spread([0.25]) == "0.250"
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert spread([1.0, 3.0], 1, error=True) == "2.0 ± 1.0"
    assert spread([1.0, math.inf]) == "diverged"


def test_lines_leave_out_what_is_not_finite() -> None:
    figure = lines({"a": {"one": [(1, 2, 0), (10, math.nan, 0)]}, "b": {"one": []}}, "x", "y", y="symlog")
    assert [len(axis.get_lines()[0].get_xdata()) for axis in figure.axes] == [1, 0]
    assert figure.axes[0].get_yscale() == "symlog"
