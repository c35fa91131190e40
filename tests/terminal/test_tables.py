"""Tables fit eighty columns, whatever they hold, and lose nothing."""

from __future__ import annotations

import pytest

from proxscore.terminal.tables import WIDTH, shown, table


def test_a_table_fits_and_its_numbers_end_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["AdamW", "0.6072", "–"], ["posterior mean, tempered", "10.4123", "still moving"]]
    shown("name: test split", table(["", "NLL", "verdict"], rows, left=(0, 2)))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "name: test split"
    assert [line.split()[-1] for line in lines[4:]] == ["–", "moving"]
    assert lines[4].index("0.6072") + 6 == lines[5].index("10.4123") + 7


def test_what_is_too_wide_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    settings = " ".join(f"method.setting_{index}=0.{index}" for index in range(20))
    shown("sweep", table(["settings", "nll", "values"], [["trial 3", "0.2000 ± 0.0100", settings]], left=(0, 2)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert all(f"g_{index}=0.{index}" in "".join(out.split()) for index in range(20))
