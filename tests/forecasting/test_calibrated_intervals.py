"""Calibrated intervals of predictives: groups, short pasts, ranks, drift, and what is saved of them."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from proxscore.calibration.conformal_forecasts import LEVELS
from proxscore.config import ConfigError
from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.interval_ends import Scores
from proxscore.forecasting.intervals import Intervals
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.task import ConformalConfig

CPU, H, CONTEXT = torch.device("cpu"), 3, 8


def series(count: int = 4) -> SeriesData:
    """Of two kinds, which begin at different hours."""
    made = []
    for number in range(count):
        start = pd.Period("2024-01-01", "h") + 5 * number
        plain = Series.plain(f"s{number}", start, np.zeros(200))
        made.append(Series(plain.id, start, plain.target, plain.known, plain.past, (number % 2,)))
    return SeriesData(tuple(made), "h", 24, categories={"kind": ("a", "b")})


def windows(first: int, last: int, sd: float = 1.0, count: int = 4) -> ForecastPredictive:
    """Standard Gaussian forecasts by two draws of what has another spread, from every third origin of each series."""
    index = torch.tensor([(number, origin) for number in range(count) for origin in range(first, last, 3)])
    generator = torch.Generator().manual_seed(first)
    targets = torch.ones(len(index), 4, H)
    targets[:, 0] = sd * torch.randn(len(index), H, generator=generator)
    targets[:, 2:] = index[:, :, None].float()
    outputs = torch.zeros(2, len(index), H, 2)
    outputs[..., 1] = 1.0
    return ForecastPredictive(Normal(), outputs, None, targets)


def calibrated(config: ConformalConfig | None = None, validation: ForecastPredictive | None = None) -> Intervals:
    held = windows(30, 90) if validation is None else validation
    return Intervals.calibrated(config or ConformalConfig(), held, series(), CONTEXT, CPU)


@pytest.mark.parametrize("kind", ["split", "adaptive"])
@pytest.mark.parametrize("groups", [None, "kind", "series"])
def test_what_is_saved_is_what_was_calibrated(kind: str, groups: str | None) -> None:
    found = calibrated(ConformalConfig(kind=kind, groups=groups))  # type: ignore[arg-type]
    found = found.judged(windows(100, 150), series(), CPU).after
    again = Intervals.of_json(json.loads(json.dumps(found.as_json())), H, "posterior.json")
    assert again.as_json() == found.as_json()
    chunk = next(windows(150, 160).chunks())
    for one, other in zip(again.of_chunk(chunk, series()), found.of_chunk(chunk, series()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert len(found.thresholds.by_group) == {None: 0, "kind": 2, "series": 4}[groups]
    assert (found.adapted is None) == (kind == "split")


def test_damaged_thresholds_are_one_line() -> None:
    good = calibrated().as_json()
    for change in (
        {"kind": "none"},
        {"gamma": "x"},
        {"origins": [1]},
        {"past": None},
        {"thresholds": None},
        {"thresholds": good["thresholds"] | {"levels": {"0.9": [0.0]}}},
        {"thresholds": good["thresholds"] | {"levels": {"0.9": [0.0, -0.7, 0.0]}}},
        {"thresholds": good["thresholds"] | {"levels": {"0.9": [0.0, float("nan"), 0.0]}}},
        {"thresholds": good["thresholds"] | {"levels": {"1.5": [0.0, 0.0, 0.0]}}},
        {"adapted": {"levels": {"0.9": [0.0, 0.0, 0.0]}, "groups": {}}},
    ):
        with pytest.raises(ConfigError, match=r"^posterior.json: validation.intervals are no thresholds") as caught:
            Intervals.of_json(copy.deepcopy(good) | change, H, "posterior.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="for a horizon of 4"):
        Intervals.of_json(good, 4, "posterior.json")


def test_coverage_is_restored_and_that_of_the_model_is_not_touched() -> None:
    """Targets are twice as wide as they were said to be, in validation and test."""
    found = calibrated(validation=windows(10, 190, 2.0))
    judged = found.judged(windows(11, 190, 2.0), series(), CPU)
    coverage = judged.sums.by_horizon()["levels"]
    for level in LEVELS:
        before, after = (coverage[f"{level:g}"][name]["coverage"] for name in ("before", "after"))
        assert np.mean(after) == pytest.approx(level, abs=0.04)
        assert np.mean(before) < level - 0.15
    assert set(judged.sums.metrics()) == {
        f"calibrated/{name}_{100 * level:g}" for name in ("coverage", "width", "winkler") for level in LEVELS
    }


def test_each_kind_of_series_has_its_own_width() -> None:
    validation = windows(10, 190)
    wide = validation.targets[:, 2, 0].long() % 2 == 1
    validation.targets[wide, 0] *= 3
    found = calibrated(ConformalConfig(groups="kind"), validation)
    chunk = next(windows(190, 193).chunks())
    lower, upper = found.of_chunk(chunk, series())
    widths = (upper - lower)[LEVELS.index(0.9)].mean(1)
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.2)
    assert widths[3] == widths[1]


def test_a_shorter_past_than_any_that_calibrated_has_no_interval() -> None:
    found = calibrated(validation=windows(6, 90))  # less than the context of 8
    assert found.past == 6
    test = windows(3, 12)
    lower, upper = found.of_chunk(next(test.chunks()), series())
    short = test.targets[:, 3, 0] < 6
    assert short.any()
    assert lower[:, short].isnan().all()
    assert upper[:, ~short].isfinite().all()
    assert found.judged(test, series(), CPU).sums.steps.tolist() == [float((~short).sum())] * H
    assert calibrated().past == CONTEXT


def test_unknown_groups_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"task.conformal.groups is 'shop', .* take series, kind"):
        calibrated(ConformalConfig(groups="shop"))


def test_later_targets_do_not_move_earlier_intervals() -> None:
    """Of all series together, by the hour at which each begins."""
    found, test = calibrated(ConformalConfig(kind="adaptive")), windows(100, 160)
    times = Scores.of(test, series(), LEVELS, CPU).times
    before, _ = found.along(test, series(), CPU)
    changed, moment = windows(100, 160), int(times.median())
    later = times[:, None] + torch.arange(H) >= moment
    changed.targets[:, 0][later] = 1e3
    after, _ = found.along(changed, series(), CPU)
    assert before is not None
    assert after is not None
    early = times <= moment
    torch.testing.assert_close(before[:, early], after[:, early])
    assert (after[:, times > moment + H] > before[:, times > moment + H]).all()


def _on_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = []
    for share in (
        3,
        10_000,
    ):  # the first rank has a third of the windows, or one of those of validation, and none of test
        parts = [_part(windows(30, 90), rank, share), _part(windows(100, 150), rank, share, place=share - 1)]
        found = calibrated(ConformalConfig(kind="adaptive", groups="kind"), parts[0])
        judged = found.judged(parts[1], series(), CPU)
        results.append((judged.after.as_json(), judged.sums.metrics()))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _part(whole: ForecastPredictive, rank: int, share: int, place: int = 0) -> ForecastPredictive:
    """One of each ``share`` windows is of the first of two ranks, the others are of the second."""
    rows = torch.arange(len(whole.targets)) % share == place
    rows = rows if rank == 0 else ~rows
    return ForecastPredictive(whole.likelihood, whole.outputs[:, rows], None, whole.targets[rows])


def test_ranks_agree_with_one_process(tmp_path: Path) -> None:
    expected = calibrated(ConformalConfig(kind="adaptive", groups="kind")).judged(windows(100, 150), series(), CPU)
    mp.start_processes(_on_ranks, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        for saved, metrics in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert saved["origins"] == expected.after.as_json()["origins"]
            for name in ("thresholds", "adapted"):
                for level, values in expected.after.as_json()[name]["levels"].items():
                    np.testing.assert_allclose(saved[name]["levels"][level], values, atol=1e-6)
            assert metrics == pytest.approx(expected.sums.metrics(), abs=1e-6)
