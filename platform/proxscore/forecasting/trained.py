"""New series for a network that was trained on others: the same features, and categories by the codes it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from proxscore.config import ConfigError
from proxscore.forecasting.networks import takes
from proxscore.forecasting.series import SeriesData


def features(data: SeriesData) -> dict[str, Any]:
    """What a run records of the features of its series."""
    return {
        "known": list(data.known),
        "past": list(data.past),
        "categories": {name: list(values) for name, values in data.categories.items()},
        "static_real": list(data.static_real),
    }


def as_trained(data: SeriesData, trained: Mapping[str, Any], network: str) -> SeriesData:
    """The series with codes of categories as in training.

    Args:
        data: new series, of any number, any length, and any of the trained values of categories.
        trained: what :meth:`proxscore.forecasting.task.ForecastingTask.describe` said of the data of training.
        network: its name; what it does not take may differ.

    Raises:
        ConfigError: another frequency, other features that the network takes, or a category's value that it does not know,
            with the first series that has it.
    """
    known, own = trained["features"], features(data)
    found: dict[str, Any] = {"frequency": data.frequency}
    wanted: dict[str, Any] = {"frequency": trained["frequency"]}
    for kind, name in (("known", "known"), ("past", "past"), ("real", "static_real")):
        if kind in takes(network):
            found[name], wanted[name] = own[name], known[name]
    if "categories" in takes(network):
        found["categories"], wanted["categories"] = list(own["categories"]), list(known["categories"])
    for name, value in found.items():
        if value != wanted[name]:
            raise ConfigError(f"task.data has {name} {value}; the posterior was trained on {wanted[name]}")
    if "categories" not in takes(network):
        return data
    return _recoded(data, {name: tuple(values) for name, values in known["categories"].items()})


def _recoded(data: SeriesData, categories: dict[str, tuple[str, ...]]) -> SeriesData:
    codes = {name: {value: code for code, value in enumerate(values)} for name, values in categories.items()}
    series = []
    for each in data.series:
        values = {name: data.categories[name][code] for name, code in zip(codes, each.static_categories, strict=True)}
        for name, value in values.items():
            if value not in codes[name]:
                shown = ", ".join(categories[name][:5]) + (", ..." if len(categories[name]) > 5 else "")
                raise ConfigError(
                    f"series {each.id!r}: static category {name} is {value!r}, which the network was not trained on; it knows "
                    f"{shown}"
                )
        series.append(replace(each, static_categories=tuple(codes[name][value] for name, value in values.items())))
    return replace(data, series=tuple(series), categories=categories)
