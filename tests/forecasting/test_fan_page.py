"""The page of fan charts in Chromium, without a network: it shows, it finds series, and foreign text stays text."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.fans import Fan, runs, svg, ticks
from proxscore.forecasting.intervals import Intervals
from proxscore.forecasting.page import FanPage
from proxscore.forecasting.prediction import SeriesPrediction
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.task import ConformalConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
H, CPU = 4, torch.device("cpu")


def predictive(origins: dict[int, int | list[int]]) -> ForecastPredictive:
    index = [(n, o) for n, each in origins.items() for o in (each if isinstance(each, list) else [each])]
    targets = torch.zeros(len(index), 4, H)
    targets[:, 0] = torch.randn(len(index), H, generator=torch.Generator().manual_seed(0))
    targets[:, 1] = 1
    targets[:, 2:] = torch.tensor(index)[:, :, None].float()
    return ForecastPredictive(Normal(), torch.ones(1, len(index), H, 2), None, targets)


def prediction(*names: str) -> SeriesPrediction:
    """The last series has a history too short for a calibrated interval."""
    start = pd.Period("2024-01-01", "h")
    lengths = [60] * (len(names) - 1) + [5]
    series = [Series.plain(name, start, np.sin(np.arange(n))) for name, n in zip(names, lengths, strict=True)]
    data = SeriesData(tuple(series), "h", 24)
    held = Intervals.calibrated(ConformalConfig(), predictive({0: list(range(20, 56, 4))}), data, 10, CPU)
    whole = predictive(dict(enumerate(lengths)))
    whole.targets[:, 1] = 0
    return SeriesPrediction(4, 0, whole, data, held, verdict="still moving")


def test_the_page_opens_offline_and_finds_series(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    page = FanPage(3)
    page.add(prediction("north", "South", "short"))
    page.add(prediction("west", HOSTILE))
    (tmp_path / "page.html").write_text(page.html(HOSTILE, "a network", [("bad", "not converged")], {"crps": 1.0}))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        shown: Any = browser.new_context(offline=True).new_page()
        said: list[str] = []
        shown.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        shown.on("console", lambda message: said.append(message.text))
        shown.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        shown.goto(f"file://{tmp_path / 'page.html'}")
        assert shown.locator("figure.fan figcaption").all_inner_texts()[:2] == ["north", "South"]
        assert "not calibrated: the past is too short" in shown.locator("figure.fan").nth(2).inner_text()
        assert shown.locator("figure.fan svg polygon").count() == 9
        assert shown.locator("li.bad").inner_text().endswith("not converged")
        assert "2 more series have no chart here" in shown.locator("details").inner_text()
        assert "95%" not in shown.locator("p.note").nth(1).inner_text()
        shown.fill("#find", "sou")
        assert [each.is_visible() for each in shown.locator("figure.fan").all()] == [False, True, False]
        assert shown.locator("#found").inner_text() == "1 charts"
        assert HOSTILE in shown.locator("h1").inner_text()
        assert said == []
        browser.close()


def test_what_is_calibrated_and_what_is_not_is_said() -> None:
    page = FanPage()
    page.add(prediction("north", "short"))  # of nine windows: 95% needs 19, 90% 9
    html = page.html("demand", "", [])
    assert html.count("90% calibrated") == 1
    assert "split conformal by 9 validation windows at each step ahead" in html
    bare = prediction("north", "short")
    bare.calibration = None
    page = FanPage()
    page.add(bare)
    assert "90% the model&#39;s own, not calibrated" in page.html("demand", "", [])


def test_a_chart_has_gaps_where_the_data_have_and_no_number_that_is_none() -> None:
    stamps = pd.date_range("2024-01-01", periods=9, freq="h")
    history, none = np.array([1.0, math.nan, 3.0, 4.0, math.nan]), np.full(H, math.nan)
    median = np.arange(H, dtype=float)
    bands = {level: (median - level, median + level) for level in (0.9, 0.8, 0.5)}
    drawn = svg(Fan("x", history, none, median, bands, False, False, stamps[0], stamps[5], stamps[-1]))
    assert "nan" not in drawn
    assert drawn.count('class="seen"') == 2
    assert [(len(run), first) for run, first in runs(history)] == [(2, 0), (2, 2)]
    flat = svg(
        Fan(
            "x", np.ones(5), none, np.ones(H), dict.fromkeys(bands, (np.ones(H), np.ones(H))), False, False, *stamps[:3]
        )
    )
    assert "nan" not in flat
    assert "inf" not in flat


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.0), (1e6, 1.2e6), (1e-7, 3e-7)])
def test_ticks_are_few_and_between_the_ends(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 5
    assert all(low - 1e-9 <= each <= high + 1e-9 for each in found)
