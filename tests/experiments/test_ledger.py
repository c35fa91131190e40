"""The ledger: what was written is there again, whatever happened, and only for the same settings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from proxscore.config import ConfigError
from proxscore.experiments.sweep.ledger import Ledger, Trial


def test_trials_are_there_again_and_those_that_ran_are_interrupted(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {"method.kind": "adamw"})
    ledger.run_id, ledger.search_seconds = "abc", 12.5
    first = ledger.add(Trial(0, status="finished", final={"nll": 0.5}, params={"method.lr": 0.1}, seconds=3.0))
    second = ledger.add(Trial(1, params={"method.lr": 0.2}))
    second.report({"epoch": 1.0, "nll": 2.0})
    ledger.write()
    again = Ledger(str(tmp_path / "sweep"), {"method.kind": "adamw"})
    assert again.trials[0] == first
    assert (again.run_id, again.search_seconds) == ("abc", 12.5)
    assert again.trials[1].status == "interrupted"
    assert again.trials[1].curve == [{"epoch": 1.0, "nll": 2.0}]


def test_steps_that_a_restarted_run_repeats_count_once() -> None:
    trial = Trial(0)
    for epoch, nll in ((1.0, 3.0), (2.0, 2.0), (1.0, 3.1), (2.0, 2.1), (3.0, 1.0)):
        trial.report({"epoch": epoch, "nll": nll})
    assert [row["nll"] for row in trial.curve] == [3.0, 2.0, 1.0]
    assert trial.value("nll") == 1.0
    assert Trial(1).value("nll") == math.inf


def test_a_sweep_with_other_settings_is_refused_by_the_first_that_differs(tmp_path: Path) -> None:
    Ledger(str(tmp_path / "sweep"), {"method.kind": "adamw", "seed": 0}).write()
    with pytest.raises(ConfigError, match=r"was started with seed=0, now it is 1: take another name"):
        Ledger(str(tmp_path / "sweep"), {"method.kind": "adamw", "seed": 1})


def test_a_write_that_is_cut_short_leaves_the_file_before(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {})
    ledger.add(Trial(0))
    (tmp_path / "sweep" / "sweep.json.partial").write_text('{"trials": [')  # what a killed process leaves
    assert len(Ledger(str(tmp_path / "sweep"), {}).trials) == 1
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"][0]["number"] == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"training\.storage: .*file/sweep cannot be used"):
        Ledger(str(tmp_path / "file" / "sweep"), {})


def test_a_ledger_lives_on_any_file_system_of_fsspec() -> None:
    ledger = Ledger("memory://bucket/sweep", {})
    ledger.add(Trial(0, status="finished"))
    assert [trial.number for trial in Ledger("memory://bucket/sweep", {}).trials] == [0]
