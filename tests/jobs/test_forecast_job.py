"""jobs/train.py, evaluate.py and forecast.py on a table of series: what was trained forecasts new rows, or says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import script

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main


def write(path: Path, steps: int, frequency: str = "h") -> Path:
    """Two series with a season of 24 steps."""
    generator = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=steps, freq=frequency)
    season = np.sin(2 * np.pi * np.arange(steps) / 24)
    rows = [
        pd.DataFrame({"timestamp": times, "place": place, "target": level + season + generator.normal(0, 0.1, steps)})
        for place, level in (("north", 3.0), ("south", 9.0))
    ]
    pd.concat(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def trained(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, whose posterior is in ``posterior``; the data are in ``series.parquet`` beside it."""
    folder = tmp_path_factory.mktemp("forecast")
    data = write(folder / "series.parquet", 240)
    overrides = [
        *("name=demand", "task.kind=forecasting", "task.horizon=6", "task.context=24"),
        *("task.model.name=SimpleFeedForward", "task.model.kwargs={hidden_dimensions: [8]}"),
        *("task.data.kind=table", f"task.data.path={data}", "task.data.id_columns=[place]"),
        *("task.data.validation_windows=5", "task.data.test_windows=4"),
        *("training.epochs=4", "training.batch_size=20", "training.workers=0", "training.device=cpu"),
        *("evaluation.draws=4", "evaluation.validation_draws=2"),
        *(f"training.storage={folder / 'runs'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"),
        *("--result", str(folder / "result.json")),
    ]
    assert script(repository, "train")(overrides) == 0
    (run,) = json.loads((folder / "result.json").read_text())["runs"]
    (folder / "posterior").symlink_to(Path(run["folder"]) / "posterior")
    return folder


@pytest.fixture(scope="module")
def forecast(repository: Path) -> Main:
    return script(repository, "forecast")


def test_new_rows_are_forecast_from_their_end_on(trained: Path, forecast: Main, tmp_path: Path) -> None:
    output = tmp_path / "forecasts.parquet"
    new = write(tmp_path / "new.parquet", 300)
    arguments = [str(trained / "posterior"), f"task.data.path={new}", "--draws", "4", "--output", str(output)]
    assert forecast([*arguments, "--quantiles", "0.1", "0.5", "0.9"]) == 0
    rows = pq.read_table(output).to_pandas()
    assert list(rows.columns[:3]) == ["series", "timestamp", "step"]
    expected = pd.date_range("2024-01-01", periods=306, freq="h")[300:]
    for _, own in rows.groupby("series"):
        assert (own["timestamp"].to_numpy() == expected.to_numpy()).all()
        assert own["step"].tolist() == [1, 2, 3, 4, 5, 6]
    means = rows.groupby("series")["mean"].mean()
    assert means["south"] > means["north"] + 1  # 9 and 3: after four epochs, the levels at least
    assert (rows["q0.1"] < rows["q0.9"]).all()
    again = tmp_path / "again.parquet"
    assert forecast([*arguments[:-1], str(again), "--quantiles", "0.1", "0.5", "0.9"]) == 0
    assert pq.read_table(again).equals(pq.read_table(output))  # draws and samples have a seed


def test_a_name_in_csv_gives_csv(trained: Path, forecast: Main, tmp_path: Path) -> None:
    for name in ("forecasts.parquet", "forecasts.csv"):
        assert forecast([str(trained / "posterior"), "--draws", "2", "--output", str(tmp_path / name)]) == 0
    found = pd.read_csv(tmp_path / "forecasts.csv", parse_dates=["timestamp"])
    pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "forecasts.parquet"), check_dtype=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "has no section 'data'"),
        ({"frequency": "foo"}, "data.frequency 'foo' is unknown"),
        ({"frequency": None}, "data.frequency is None"),
        ({"frequency": "h"}, "data.features must have"),
        ({"features": {"known": [], "past": [], "static_real": []}}, "data.frequency is None"),
        ({"unit": 0}, "data.unit is 0"),
    ],
)
def test_a_description_without_its_data_is_refused_by_name(
    data: dict[str, object] | None,
    message: str,
    trained: Path,
    forecast: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained / "posterior", tmp_path / "posterior")
    file = tmp_path / "posterior" / "posterior.json"
    described = json.loads(file.read_text())
    described["data"] = described["data"] | data if data == {"unit": 0} else data
    file.write_text(json.dumps(described))
    assert forecast([str(tmp_path / "posterior"), "--output", str(tmp_path / "forecasts.parquet")]) == 2
    error = capsys.readouterr().err.strip()
    assert f"posterior.json: {message}" in error
    assert "\n" not in error


def test_new_series_need_no_more_than_a_context(
    trained: Path, forecast: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows of one series, too few to split or to tell a frequency, and both constant: they have the least scale."""
    times = pd.date_range("2025-03-01 00:30", periods=2, freq="h", tz="Europe/Berlin")
    rows = [
        pd.DataFrame({"timestamp": times, "place": name, "target": value}) for name, value in (("x", 5.0), ("y", 0.0))
    ]
    pd.concat(rows).to_parquet(tmp_path / "new.parquet")
    output = tmp_path / "forecasts.parquet"
    arguments = [f"task.data.path={tmp_path / 'new.parquet'}", "task.data.id_columns=place", "--output", str(output)]
    assert forecast([str(trained / "posterior"), *arguments]) == 0
    found = pq.read_table(output).to_pandas()
    expected = pd.date_range("2025-03-01 02:30", periods=6, freq="h", tz="Europe/Berlin")
    assert found[found["series"] == "x"]["timestamp"].tolist() == expected.tolist()
    assert "2 of 2 contexts do not vary (the first: x)" in capsys.readouterr().out
    assert found[found["series"] == "y"]["aleatoric_sd"].min() > 1e-3
    assert found["lower_90"].isna().all()  # no validation window had so short a past


def test_the_evaluation_of_the_saved_posterior_is_that_of_the_run(
    trained: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script(repository, "evaluate")([str(trained / "posterior"), "--draws", "4", "--output", "scores"]) == 0
    found = json.loads((tmp_path / "scores" / "table_test_4_draws.json").read_text())["metrics"]
    (run,) = json.loads((trained / "result.json").read_text())["runs"]
    for name, value in run["test"]["posterior"].items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_all_origins_are_forecast_and_judged_as_in_the_run(
    trained: Path, forecast: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per window and step with its target; intervals cover it as often as the metrics of the run say."""
    arguments = [str(trained / "posterior"), "--origins", "--output", str(tmp_path / "forecasts.parquet")]
    assert forecast([*arguments, "--levels", "0.5", "0.9", "--page", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    rows = pd.read_parquet(tmp_path / "forecasts.parquet")
    assert len(rows) == 2 * 4 * 6
    data = pd.read_parquet(trained / "series.parquet").rename(columns={"place": "series", "target": "known"})
    both = rows.merge(data, on=["series", "timestamp"])
    assert len(both) == len(rows)
    np.testing.assert_allclose(both["target"], both["known"], rtol=1e-6)
    assert (rows["timestamp"] - rows["origin"] == pd.to_timedelta(rows["step"] - 1, unit="h")).all()
    (run,) = json.loads((trained / "result.json").read_text())["runs"]
    metrics = run["test"]["posterior"]
    for level in (50, 90):
        covered = rows["target"].between(rows[f"lower_{level}"], rows[f"upper_{level}"]).mean()
        assert covered == pytest.approx(metrics[f"calibrated/coverage_{level}"])
        width = (rows[f"upper_{level}"] - rows[f"lower_{level}"]).mean()
        assert width == pytest.approx(metrics[f"calibrated/width_{level}"], rel=1e-4)
    assert f"{metrics['calibrated/coverage_90']:.4f}" in printed
    assert "intervals are calibrated: split conformal by 10 validation windows at each step ahead" in printed
    steps = run["corrected"]["posterior"]["levels"]["0.9"]["after"]
    assert np.mean(steps["coverage"]) == pytest.approx(metrics["calibrated/coverage_90"])
    assert all(
        low <= c <= high for low, c, high in zip(*(steps[k] for k in ("lower", "coverage", "upper")), strict=True)
    )
    assert list((Path(run["folder"]) / "figures").glob("coverage_by_horizon_posterior.png"))
    page = (tmp_path / "page.html").read_text()
    assert page.count('<figure class="fan"') == 2
    assert "coverage by step ahead" in page


def test_series_that_lie_apart_are_read_as_a_whole_and_forecast_alike(
    trained: Path, forecast: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_parquet(write(tmp_path / "ordered.parquet", 100))
    frame.sort_values("timestamp", kind="stable").to_parquet(tmp_path / "mixed.parquet")
    for name in ("ordered", "mixed"):
        arguments = [
            f"task.data.path={tmp_path / name}.parquet",
            "--output",
            str(tmp_path / f"{name}_forecasts.parquet"),
        ]
        assert forecast([str(trained / "posterior"), *arguments]) == 0
        told = capsys.readouterr().out
        assert ("series 'north' goes on in" in told) == (name == "mixed")
    one, other = (pd.read_parquet(tmp_path / f"{name}_forecasts.parquet") for name in ("ordered", "mixed"))
    pd.testing.assert_frame_equal(one, other)
    assert (one["lower_90"] < one["upper_90"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "0.95"], "level 0.95: 10 validation windows at a step ahead are too few for it; 19 are needed"),
        (["--levels", "0.7"], "level 0.7 was not calibrated"),
        (["--levels", "1"], "--levels: 1 is not between 0 and 1"),
        (["--page", "page.txt"], "--page page.txt: give a name that ends in .html"),
        (["--page-series", "0"], "--page-series is 0"),
        (["--draws", "-1"], "--draws is -1"),
        (["--quantiles", "0.5", "1"], "--quantiles: 1 is not between 0 and 1"),
        (["--output", "forecasts.txt"], "--output forecasts.txt: give a name that ends in .parquet or .csv"),
        (["--output", "nowhere/forecasts.parquet"], "the folder nowhere does not exist"),
        (["task.data.path=daily.parquet"], "task.data has frequency D; the posterior was trained on h"),
        (["task.data.path=missing.parquet"], "missing.parquet"),
    ],
)
def test_what_cannot_be_forecast_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    trained: Path,
    forecast: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "daily.parquet", 240, "D")
    assert forecast([str(trained / "posterior"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "forecasts.parquet").exists()


def test_series_that_cannot_be_forecast_are_listed_and_the_others_are_written(
    trained: Path, forecast: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_parquet(write(tmp_path / "new.parquet", 100))
    bad = [frame[frame["place"] == "north"].assign(place=name) for name in ("apart", "zero")]
    bad[0] = pd.concat([bad[0], bad[0].tail(1).assign(target=7.0)])  # a timestamp twice, with another value
    pd.concat([bad[0], frame]).to_parquet(tmp_path / "bad.parquet")
    output = tmp_path / "forecasts.parquet"
    arguments = [str(trained / "posterior"), "--output", str(output)]
    assert forecast([*arguments, f"task.data.path={tmp_path / 'bad.parquet'}"]) == 1
    printed = capsys.readouterr().out
    assert "failed     1 of 3 series could not be forecast: " in printed
    listed = pd.read_csv(tmp_path / "forecasts_failed.csv")
    assert listed["series"].tolist() == ["apart"]
    assert f"failed     apart: {listed['error'][0]}" in printed
    some = pd.read_parquet(output)
    assert forecast([*arguments, f"task.data.path={tmp_path / 'new.parquet'}"]) == 0
    pd.testing.assert_frame_equal(some, pd.read_parquet(output))
    assert not (tmp_path / "forecasts_failed.csv").exists()
    bad[0].to_parquet(tmp_path / "all.parquet")
    assert forecast([*arguments, f"task.data.path={tmp_path / 'all.parquet'}"]) == 2  # none can be: refused


def test_evaluate_says_that_thresholds_are_of_other_draws(
    trained: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = script(repository, "evaluate")
    line = "note       calibrated/* are by thresholds that were calibrated with 4 draws of the posterior, and 7 predict"
    for draws in (4, 7):
        assert evaluate([str(trained / "posterior"), "--draws", str(draws), "--output", str(tmp_path)]) == 0
        assert (line in capsys.readouterr().out) == (draws == 7)
