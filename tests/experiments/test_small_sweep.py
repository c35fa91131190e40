"""``proxscore tune`` from its file to its winner: two trials of two workers.

In this process, and on its cluster; as a process of its own, which is killed and goes on, it is in ``test_sweep_job.py``.
"""

from __future__ import annotations

from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml
from small_sweeps import Swept, ledger, tree

from proxscore import config as configuration
from proxscore.commands.tune import main as tune


def tuned(folder: Path) -> str:
    """What the job prints on the folder's sweep.yaml."""
    with chdir(folder), redirect_stdout(StringIO()) as output:
        assert tune(["--config", "sweep.yaml"]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def swept(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    content = tree(folder, training={"epochs": 2}) | {"tune": {"trials": 2, "top": 1, "seeds": [0]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    output = tuned(folder)
    return Swept(folder, {}, ledger(folder), [output])


def test_trials_are_children_of_the_sweep_with_every_step_once(swept: Swept) -> None:
    trials = swept.ended["trials"]
    assert [trial["number"] for trial in trials] == [0, 1]
    assert trials[0]["params"] == {}  # as given
    assert trials[1]["params"]  # from the default space
    assert swept.parent.info.status == "FINISHED"
    for trial in trials:
        run = swept.client.get_run(trial["run_id"])
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial["status"]]
        assert run.data.tags["mlflow.parentRunId"] == swept.parent.info.run_id
    points = swept.client.get_metric_history(trials[0]["run_id"], "nll/train")
    assert [point.step for point in points] == list(range(1, 9))
    assert [row["epoch"] for row in trials[0]["curve"]] == [1.0]  # what comes at the end is the result


def test_the_winner_alone_is_tested_and_its_configuration_is_left(swept: Swept) -> None:
    finished = [trial for trial in swept.ended["trials"] if trial["status"] == "finished"]
    winner = min(finished, key=lambda trial: trial["final"]["nll"])
    parent = swept.parent
    tested = [run for run in swept.runs if "test/nll" in run.data.metrics and run.info.run_id != parent.info.run_id]
    assert [run.info.run_id for run in tested] == [winner["run_id"]]
    assert parent.data.tags["best.run_id"] == winner["run_id"]
    assert parent.data.metrics["best/nll"] == pytest.approx(winner["final"]["nll"])
    best = configuration.load(swept.folder / "runs" / "sweep" / "best.yaml")
    flat = configuration.flatten(best)
    assert {key: flat[key] for key in winner["params"]} == winner["params"]
    figures = {Path(item.path).stem for item in swept.client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {
        *("objective_over_time", "learning_curves", "slices", "parallel_coordinates", "importance", "schedules")
    }
    assert "leaderboard, validation split" in swept.outputs[0]


def test_a_finished_sweep_prints_its_results_and_ends(swept: Swept) -> None:
    def points() -> dict[str, int]:
        return {
            f"{run.info.run_id} {name}": len(swept.client.get_metric_history(run.info.run_id, name))
            for run in swept.runs
            for name in run.data.metrics
        }

    before = points()
    output = tuned(swept.folder).splitlines(keepends=True)
    assert output[1].startswith("sweep is finished: these are its results")
    assert output[-6:] == swept.outputs[0].splitlines(keepends=True)[-6:]
    assert points() == before
    assert ledger(swept.folder) == swept.ended
