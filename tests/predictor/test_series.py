"""Forecasts by ``proxscore.load``: those of the job ``forecast``, from tables in memory, without the series of training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import proxscore
from proxscore.commands.forecast import main as forecast
from proxscore.commands.predict import main as predict
from proxscore.commands.train import main as train
from proxscore.config import ConfigError

NETWORKS = {"SimpleFeedForward": "{hidden_dimensions: [8]}", "DeepAR": "{num_layers: 1, hidden_size: 4}"}


def panel(steps: int, names: tuple[str, ...] = ("north", "south")) -> pd.DataFrame:
    """Series with a season of 24 steps, a covariate that is known in advance, and a static category."""
    generator = np.random.default_rng(0)
    hours = np.arange(steps + 6)
    parts = []
    for level, place in enumerate(names):
        target = 3 * (level + 1) + np.sin(2 * np.pi * hours / 24) + generator.normal(0, 0.1, steps + 6)
        target[steps:] = np.nan
        parts.append(
            pd.DataFrame(
                {
                    "time": pd.date_range("2024-01-01", periods=steps + 6, freq="h"),
                    "place": place,
                    "load": target,
                    "price": np.cos(hours / 5),
                    "kind": "a" if level % 2 else "b",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module", params=NETWORKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demand")
    panel(240).to_parquet(folder / "series.parquet")
    features = ["task.data.known_covariates=[price]", "task.data.static_categories=[kind]"]
    overrides = [
        *("name=demand", "task.kind=forecasting", "task.horizon=6", "task.context=24"),
        *(f"task.model.name={request.param}", f"task.model.kwargs={NETWORKS[request.param]}"),
        *("task.data.kind=table", f"task.data.path={folder / 'series.parquet'}", "task.data.id_columns=[place]"),
        *("task.data.validation_windows=1", "task.data.test_windows=1"),
        *("task.data.timestamp_column=time", "task.data.target_column=load"),
        *(features if request.param == "DeepAR" else []),
        *("training.epochs=1", "training.batch_size=50", "training.workers=0", "training.device=cpu"),
        *("evaluation.draws=4", "evaluation.validation_draws=2"),
        *(f"training.storage={folder / 'runs'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"),
        *("--result", str(folder / "result.json")),
    ]
    assert train(overrides) == 0
    (folder / "series.parquet").unlink()
    return folder / "runs" / "demand-proximal_score"


def test_a_table_in_memory_is_forecast_as_its_file(run: Path, tmp_path: Path) -> None:
    frame = panel(300)
    frame.to_parquet(tmp_path / "new.parquet")
    arguments = [str(run), f"task.data.path={tmp_path / 'new.parquet'}", "--output", str(tmp_path / "job.parquet")]
    assert forecast([*arguments, "--draws", "4", "--quantiles", "0.1", "0.9"]) == 0
    expected = pd.read_parquet(tmp_path / "job.parquet")
    predictor = proxscore.load(run, device="cpu")
    for data in (
        frame,
        pa.Table.from_pandas(frame),
        tmp_path / "new.parquet",
        frame.assign(time=frame["time"].astype(str)),
    ):
        found = predictor.predict(data).to_frame(quantiles=(0.1, 0.9))
        assert found["verdict"].unique().tolist() == ["still moving"]
        pd.testing.assert_frame_equal(found.drop(columns="verdict"), expected, check_dtype=False, atol=1e-4)
    answer = predictor.predict(frame)
    assert len(answer) == 2
    assert answer.mean.shape == (2, 6)
    assert (answer.quantiles((0.1,)) < answer.quantiles((0.9,))).all()
    if answer.total is not None:
        assert (answer.total >= answer.aleatoric).all()


def test_a_past_unlike_those_of_training_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = panel(300)
    wild = (frame["place"] == "south") & (frame["time"] >= frame["time"].max() - pd.Timedelta(hours=16))
    frame.loc[wild, "load"] *= 9
    predictor = proxscore.load(run, device="cpu")
    answer = predictor.predict(frame)
    told = [note for note in answer.notes if "unlike any of training" in note]
    if predictor.config.task.model.name == "DeepAR":  # it has no anchor, and cannot tell
        assert answer.unlike is None
        assert not told
        assert "unlike_training" not in answer.to_frame()
        return
    assert answer.unlike.tolist() == [False, True]
    assert "1 of 2 forecasts (the first: south)" in told[0]
    rows = answer.to_frame()
    assert rows[rows["unlike_training"]]["series"].unique().tolist() == ["south"]
    frame.to_parquet(tmp_path / "new.parquet")
    page = tmp_path / "page.html"
    arguments = [str(run), f"task.data.path={tmp_path / 'new.parquet'}", "--output", str(tmp_path / "job.parquet")]
    assert forecast([*arguments, "--page", str(page)]) == 0
    assert "the first: south) go on from a past unlike any of training" in capsys.readouterr().out
    assert page.read_text().count("a past unlike any of training</span>") == 1
    assert pd.read_parquet(tmp_path / "job.parquet")["unlike_training"].sum() == 6
    (result,) = json.loads((run.parents[1] / "result.json").read_text())["runs"]
    assert result["test"]["posterior"]["unlike_training"] == 0


def test_an_interval_says_that_it_is_calibrated_or_why_it_is_not(run: Path) -> None:
    """One validation window of each of two series: enough for half of the targets, and for no more."""
    answer = proxscore.load(run, device="cpu").predict(panel(60))
    found = answer.interval(0.5)
    assert (found.lower <= found.upper).all()
    assert found.lower.shape == (2, 6)
    assert "calibrated: split conformal by 2 validation windows" in repr(found)
    assert "split conformal" in repr(answer)
    with pytest.raises(ConfigError, match=r"level 0.9: 2 validation windows at a step ahead .* 9 are needed"):
        answer.interval()
    assert "lower_90" not in answer.to_frame()
    table = answer.to_frame(levels=(0.5,))
    np.testing.assert_allclose(table["lower_50"], found.lower.flatten())
    other = proxscore.load(run, device="cpu").predict(panel(60), draws=2)
    assert any("calibrated with 4 draws of the posterior, and 2 predict" in note for note in other.notes)


def test_wrong_tables_are_one_line(run: Path) -> None:
    predictor, frame = proxscore.load(run, device="cpu"), panel(60)
    for wrong, message in (
        (frame.drop(columns="load"), "the table: no column 'load'; it has time, place"),
        (frame.assign(load="x"), "the table, row 0"),
        (frame.iloc[:0], "the table has no rows"),
        (frame.iloc[::-1], "row"),
        ([1, 2], "a list holds no series"),
        ("absent.parquet", "no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            predictor.predict(wrong)
    with pytest.raises(ConfigError, match="takes no errors of series"):
        predictor.predict(frame, errors="keep")
    renamed = frame.rename(columns={"place": "where"})
    again = predictor.predict(renamed, columns={"id_columns": ["where"]})
    assert (again.mean - predictor.predict(frame).mean).abs().max() < 1e-5


def test_the_model_in_mlflow_forecasts(run: Path) -> None:
    uri = f"sqlite:///{run.parents[1] / 'mlflow.db'}"
    (result,) = json.loads((run.parents[1] / "result.json").read_text())["runs"]
    client = mlflow.MlflowClient(uri)
    model_id = client.get_run(result["mlflow_run_id"]).outputs.model_outputs[0].model_id
    location = client.get_logged_model(model_id).artifact_location.removeprefix("file://")
    model = mlflow.pyfunc.load_model(location)
    frame = panel(60)
    expected = proxscore.load(run, device="cpu").predict(frame).to_frame()
    pd.testing.assert_frame_equal(pd.DataFrame(model.predict(frame)), expected, check_dtype=False, atol=1e-4)
    assert len(model.predict(model.input_example)) == 6  # the example is such a table


def test_batch_prediction_lists_the_series_that_fail(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = panel(60, ("north", "south", "west"))
    frame.loc[frame["place"] == "south", "load"] = np.nan  # no target at all
    frame.to_csv(tmp_path / "new.csv", index=False)
    output = tmp_path / "forecasts.parquet"
    assert predict([str(run), str(tmp_path / "new.csv"), "--output", str(output), "--device", "cpu"]) == 0
    assert "1 of 3 series could not be predicted" in capsys.readouterr().out
    found: Any = pd.read_parquet(output)
    failed = found[found["error"].notna()]
    assert failed["series"].tolist() == ["south"]
    assert "no target value" in failed["error"].iloc[0]
    good = proxscore.load(run, device="cpu").predict(frame[frame["place"] == "north"]).to_frame()
    own = found[found["series"] == "north"]
    np.testing.assert_allclose(own["mean"], good["mean"], atol=1e-4)
    assert len(found) == 13
    assert os.listdir(tmp_path).count("forecasts.parquet.parts") == 0


def test_a_network_whose_days_follow_a_clock_forecasts(tmp_path: Path) -> None:
    """Days of Berlin as text, whose offset changes: forecasts go on by that clock."""
    times = pd.date_range("2024-01-01", periods=120, freq="D", tz="Europe/Berlin")
    values = 5 + np.sin(2 * np.pi * np.arange(120) / 7) + np.random.default_rng(0).normal(0, 0.1, 120)
    frame = pd.DataFrame({"timestamp": [each.isoformat() for each in times], "target": values})
    frame.to_csv(tmp_path / "days.csv", index=False)
    overrides = [
        *("name=days", "task.kind=forecasting", "task.horizon=7", "task.data.kind=table"),
        *(f"task.data.path={tmp_path / 'days.csv'}", "task.data.time_zone=Europe/Berlin", "task.baselines=[]"),
        *("training.epochs=1", "training.workers=0", "training.device=cpu", "evaluation.draws=2"),
        *(f"training.storage={tmp_path / 'runs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"),
        *("--result", str(tmp_path / "result.json")),
    ]
    assert train(overrides) == 0
    predictor = proxscore.load(tmp_path / "runs" / "days-proximal_score", device="cpu")
    found = predictor.predict(frame).to_frame()["timestamp"]
    expected = pd.date_range("2024-04-30", periods=7, freq="D", tz="Europe/Berlin")
    assert pd.to_datetime(found, utc=True).tolist() == expected.tz_convert("UTC").tolist()
