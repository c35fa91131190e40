"""New series for a network that was trained on others: the same features, and categories by the codes it knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from proxscore.config import ConfigError
from proxscore.forecasting.anchors import check_described
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.likelihoods.names import LIKELIHOODS
from proxscore.forecasting.networks import AUTOREGRESSIVE, takes
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.base import MAX_CONTEXT


def features(data: SeriesData) -> dict[str, Any]:
    """What a run records of the features of its series."""
    return {
        "known": list(data.known),
        "past": list(data.past),
        "categories": {name: list(values) for name, values in data.categories.items()},
        "static_real": list(data.static_real),
    }


def check_trained(trained: Any, where: str) -> None:
    """Whether a description says of its data what forecasts need.

    Args:
        trained: its section ``data``.
        where: its file, for the message.

    Raises:
        ConfigError: it does not; names the file.
    """
    if not isinstance(trained, dict):
        raise ConfigError(f"{where}: has no section 'data', which says what series the posterior was trained on")
    frequency = trained.get("frequency")
    if not isinstance(frequency, str):
        raise ConfigError(f"{where}: data.frequency is {frequency!r}; it must be a pandas alias, as h or D")
    Grid.of(frequency, f"{where}: data.frequency")
    found = trained.get("features")
    kinds = {"known": list, "past": list, "categories": dict, "static_real": list}
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise ConfigError(
            f"{where}: data.features must have the lists known, past and static_real, and categories by name"
        )
    if not all(isinstance(values, list) for values in found["categories"].values()):
        raise ConfigError(f"{where}: data.features.categories must have a list of values by name")
    context = trained.get("context", 1)
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= MAX_CONTEXT:
        raise ConfigError(f"{where}: data.context is {context!r}; it must be a number of steps")
    lengths = trained.get("seasons", [])
    if not isinstance(lengths, list) or not all(isinstance(each, int) and 1 <= each <= MAX_CONTEXT for each in lengths):
        raise ConfigError(f"{where}: data.seasons is {lengths!r}; it must be a list of numbers of steps")
    check_described(trained.get("anchor"), f"{where}: data.anchor")
    likelihood = trained.get("likelihood", "student_t")
    if likelihood not in LIKELIHOODS:
        raise ConfigError(f"{where}: data.likelihood is {likelihood!r}; it must be one of {', '.join(LIKELIHOODS)}")
    for name, least in (("scale_floor", 0.0), ("unit", 1e-300)):
        value = trained.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise ConfigError(f"{where}: data.{name} is {value!r}; it must be a positive number")


def trained_unit(trained: Mapping[str, Any]) -> float:
    """What a trained network counts targets in; where its description does not say, in theirs."""
    return float(trained.get("unit", 1.0))


def trained_likelihood(model: Any, trained: Mapping[str, Any]) -> str:
    """Of a trained network: as its section says, or, where that leaves it to the data, as its description does."""
    return str(trained.get("likelihood", "student_t") if model.likelihood == "auto" else model.likelihood)


def trained_context(trained: Mapping[str, Any] | None, horizon: int) -> int | None:
    """Steps that a trained network looks back to, by its description; none of a network that is to be trained."""
    return None if trained is None else int(trained.get("context", 2 * horizon))


def anchor_kind(model: Any, trained: Mapping[str, Any] | None) -> str | None:
    """What a network starts from: as it was trained, or as its section says."""
    if trained is not None:
        found = trained.get("anchor")
        return None if found is None else str(found["kind"])
    return None if model.anchor == "none" or (model.anchor == "auto" and model.name in AUTOREGRESSIVE) else "linear"


def as_trained(data: SeriesData, trained: Mapping[str, Any], network: str) -> SeriesData:
    """The series with codes of categories as in training.

    Args:
        data: new series, of any number, any length, and any of the trained values of categories.
        trained: what :meth:`proxscore.forecasting.series_task.SeriesTask.describe` said of the data of training.
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
