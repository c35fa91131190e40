"""Networks by name: GluonTS's estimators say how series become inputs and make the network; Koopa and the MLP are our own.

A new network of GluonTS is one line in ``_ESTIMATORS``.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gluonts.dataset.field_names import FieldName
from gluonts.torch.model.d_linear import DLinearEstimator
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.estimator import PyTorchLightningEstimator
from gluonts.torch.model.lag_tst import LagTSTEstimator
from gluonts.torch.model.patch_tst import PatchTSTEstimator
from gluonts.torch.model.simple_feedforward import SimpleFeedForwardEstimator
from gluonts.torch.model.tft import TemporalFusionTransformerEstimator
from gluonts.torch.model.tide import TiDEEstimator
from gluonts.transform import AddObservedValuesIndicator, AddTimeFeatures, Chain, SelectFields
from torch import nn

from proxscore.config import ConfigError
from proxscore.forecasting.anchored import ResidualMLP
from proxscore.forecasting.anchors import LONGEST, Anchor, GivenAnchor, LinearAnchor, Units
from proxscore.forecasting.blueprint import Blueprint
from proxscore.forecasting.calendar import waves
from proxscore.forecasting.features import Features
from proxscore.forecasting.koopa import Koopa
from proxscore.forecasting.likelihoods.gluonts_output import output_of
from proxscore.forecasting.likelihoods.names import LIKELIHOODS, check
from proxscore.forecasting.network import PointForecaster
from proxscore.forecasting.windows import FOLD, OBSERVED, Field, Packing, given

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Estimator:
    """An estimator of GluonTS: its class, the features of the data that it takes and how, and our defaults (context given)."""

    kind: type[PyTorchLightningEstimator]
    takes: tuple[str, ...] = ()
    keywords: Callable[[Features], dict[str, Any]] = lambda _: {}
    defaults: Callable[[int], dict[str, Any]] = lambda _: {}


def _static_and_known(features: Features) -> dict[str, Any]:
    return {
        "num_feat_dynamic_real": features.known,
        "num_feat_static_cat": len(features.categories),
        "num_feat_static_real": features.real,
        "cardinality": list(features.categories) or None,
    }


def _all_one_by_one(features: Features) -> dict[str, Any]:
    return {
        "dynamic_dims": [1] * features.known,
        "past_dynamic_dims": [1] * features.past,
        "static_cardinalities": list(features.categories),
        "static_dims": [1] * features.real,
    }


_ESTIMATORS = {
    "DLinear": _Estimator(DLinearEstimator),
    "DeepAR": _Estimator(DeepAREstimator, ("known", "categories", "real"), _static_and_known),
    "LagTST": _Estimator(LagTSTEstimator),
    "PatchTST": _Estimator(
        PatchTSTEstimator,
        ("known",),
        lambda features: {"num_feat_dynamic_real": features.known},
        lambda context: {"patch_len": min(16, context)},
    ),
    "SimpleFeedForward": _Estimator(SimpleFeedForwardEstimator),
    "TFT": _Estimator(TemporalFusionTransformerEstimator, ("known", "past", "categories", "real"), _all_one_by_one),
    "TiDE": _Estimator(TiDEEstimator, ("known", "categories", "real"), _static_and_known),
}
NAMES = (*_ESTIMATORS, "Koopa", "MLP")
AUTOREGRESSIVE = ("DeepAR",)


def takes(name: str) -> tuple[str, ...]:
    """Features of series that a network takes: of known, past, categories and real."""
    if name == "MLP":
        return "known", "past", "categories", "real"
    return _ESTIMATORS[name].takes if name in _ESTIMATORS else ()


# Keywords of estimators that are not the user's: they come from the data or the task, belong to the method and the
# training loop, or give something else than a distribution per step.
_DATA = {"freq", "cardinality", "num_feat_dynamic_real", "num_feat_static_cat", "num_feat_static_real"}
_DATA |= {"dynamic_dims", "past_dynamic_dims", "static_dims"}
_DATA |= {"dynamic_cardinalities", "past_dynamic_cardinalities", "static_cardinalities"}
_TASK = {"self", "prediction_length", "context_length", "distr_output", "context", "horizon", "channels"}
_TASK |= {"likelihood", "others", "categories"}
_TRAINING = {"lr", "weight_decay", "patience", "batch_size", "num_batches_per_epoch", "trainer_kwargs"}
_TRAINING |= {"train_sampler", "validation_sampler"}
_OBJECTS = {"num_parallel_samples", "quantiles", "nonnegative_pred_samples", "imputation_method", "time_features"}
_TAKEN = _DATA | _TASK | _TRAINING | _OBJECTS


def plan(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    frequency: str,
    horizon: int,
    context: int,
    features: Features,
    likelihood: str = "student_t",
    anchor: str | None = None,
    seasons: Sequence[int] = (),
) -> Blueprint:
    """Plan how a network fits data and task.

    It is built once, and two empty windows are sent through it, so that what cannot work is refused here.

    Args:
        name: one of ``NAMES``.
        kwargs: keywords of the GluonTS estimator (or of :class:`Koopa`) that shape the network.
        frequency: of the series, a pandas alias; GluonTS derives time features and lags from it.
        horizon: H, steps to forecast.
        context: steps that the network looks back to; lags may reach further.
        features: of the series. What a network does not take is left out, and a warning says so.
        likelihood: a key of ``LIKELIHOODS``.
        anchor: what its windows bring for an anchor: ``linear`` (their block of time), ``given`` (a forecast) or nothing.
        seasons: that training parts repeat, of which the MLP is told the calendar.

    Raises:
        ConfigError: an unknown name or keyword (the nearest are named), or values that the network refuses.
    """
    _known("task.model.name", name, NAMES)
    _known("task.model.likelihood", likelihood, tuple(LIKELIHOODS))
    check(likelihood, name)
    if anchor is None and name == "MLP":
        raise ConfigError("task.model.anchor: the MLP predicts what an anchor leaves; choose auto or linear")
    if anchor is not None and name in AUTOREGRESSIVE:
        raise ConfigError(f"task.model.anchor: {name} forecasts step by step, and takes none; choose auto or none")
    estimator = _ESTIMATORS.get(name)
    _check_keywords(name, kwargs, estimator.kind if estimator else {"Koopa": Koopa, "MLP": ResidualMLP}[name])
    left_out = [kind for kind in ("known", "past", "categories", "real") if getattr(features, kind)]
    left_out = [kind for kind in left_out if kind not in takes(name)]
    if left_out:
        log.warning("%s takes no %s features of the series: they are left out", name, ", ".join(left_out))
    try:
        with torch.random.fork_rng([]):  # trials draw nothing from the stream that initial weights come from
            if name == "MLP":
                blueprint = _mlp(kwargs, frequency, seasons, horizon, context, features, likelihood)
            elif estimator is None:
                blueprint = _koopa(kwargs, horizon, context, likelihood)
            else:
                keywords = {**estimator.defaults(context), **kwargs, **estimator.keywords(features)}
                blueprint = _gluonts(name, estimator.kind, keywords, frequency, horizon, context, likelihood)
            if anchor is not None:
                blueprint = replace(blueprint, packing=_with_anchor(blueprint.packing, anchor, horizon))
            _check_forward(blueprint, anchor, context)
    except ConfigError:
        raise
    except Exception as error:  # each network checks its keywords in its own way: assert, pydantic, RuntimeError, ...
        shown = ", ".join(f"{key}={value}" for key, value in {"context": context, **kwargs}.items())
        text = " ".join(str(error).split())
        raise ConfigError(f"task.model {name} with {shown}: {type(error).__name__}: {text}"[:400]) from error
    return blueprint


def _with_anchor(packing: Packing, anchor: str, horizon: int) -> Packing:
    """With what an anchor reads of a window, beside the past."""
    names = {field.name: field for field in packing.fields}
    fields = [*packing.fields, FOLD if anchor == "linear" else given(horizon)]
    if "past_observed_values" not in names:
        past = names["past_target"]
        fields.append(Field(OBSERVED, FieldName.OBSERVED_VALUES, past.shape, torch.float32, past.first))
    return Packing(tuple(fields))


def _known(setting: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        lower = {name.lower(): name for name in names}
        near = [lower[hit] for hit in difflib.get_close_matches(value.lower(), list(lower), n=2, cutoff=0.5)]
        hint = f"nearest: {', '.join(near)}" if near else f"one of {', '.join(names)}"
        raise ConfigError(f"{setting} is {value!r}, which is not known; {hint}")


def _check_keywords(name: str, kwargs: Mapping[str, Any], kind: Any) -> None:
    found = set(inspect.signature(kind.__init__).parameters)
    free = sorted(found - _TAKEN)
    for key in kwargs:
        if key in free:
            continue
        if key in found:
            raise ConfigError(f"task.model.kwargs.{key}: {name} has it from the data or another setting; leave it out")
        near = difflib.get_close_matches(key, free, n=2, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"it has {', '.join(free)}"
        raise ConfigError(f"task.model.kwargs.{key} is no keyword of {name}; {hint}")


def _gluonts(
    name: str, kind: Any, keywords: Mapping[str, Any], frequency: str, horizon: int, context: int, likelihood: str
) -> Blueprint:
    keywords = {
        **keywords,
        "prediction_length": horizon,
        "context_length": context,
        "distr_output": output_of(likelihood),
    }
    if "freq" in inspect.signature(kind.__init__).parameters:
        keywords["freq"] = frequency
    estimator = kind(**keywords)

    def make() -> nn.Module:
        return estimator.create_lightning_module().model

    net: Any = make()
    inputs = {key: (tuple(spec.shape[1:]), spec.dtype) for key, spec in net.describe_inputs(1).items()}
    autoregressive = kind is DeepAREstimator
    if autoregressive:
        inputs["future_target"] = ((horizon,), torch.float)
    packing = Packing.of(inputs, horizon)
    return Blueprint(
        name, horizon, likelihood, estimator.create_transformation(), packing, autoregressive, make, estimator
    )


def _koopa(kwargs: Mapping[str, Any], horizon: int, context: int, likelihood: str) -> Blueprint:
    transformation = Chain(
        [
            SelectFields([FieldName.ITEM_ID, FieldName.START, FieldName.TARGET], allow_missing=True),
            AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES),
        ]
    )
    inputs = {f"past_{field}": ((context,), torch.float) for field in (FieldName.TARGET, FieldName.OBSERVED_VALUES)}

    def make() -> nn.Module:
        return PointForecaster(Koopa(context, horizon, **kwargs), LIKELIHOODS[likelihood]())

    return Blueprint("Koopa", horizon, likelihood, transformation, Packing.of(inputs, horizon), False, make)


def _mlp(
    kwargs: Mapping[str, Any],
    frequency: str,
    seasons: Sequence[int],
    horizon: int,
    context: int,
    features: Features,
    likelihood: str,
) -> Blueprint:
    calendar = waves(frequency, seasons)
    kept = [FieldName.FEAT_DYNAMIC_REAL, FieldName.PAST_FEAT_DYNAMIC_REAL, FieldName.FEAT_STATIC_CAT]
    kept += [FieldName.FEAT_STATIC_REAL]
    transformation = Chain(
        [
            SelectFields([FieldName.ITEM_ID, FieldName.START, FieldName.TARGET, *kept], allow_missing=True),
            AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES),
            AddTimeFeatures(FieldName.START, FieldName.TARGET, FieldName.FEAT_TIME, list(calendar), horizon),
        ]
    )
    inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        f"past_{field}": ((context,), torch.float) for field in (FieldName.TARGET, FieldName.OBSERVED_VALUES)
    }
    others: dict[str, tuple[int, ...]] = {}
    if calendar:
        others[f"future_{FieldName.FEAT_TIME}"] = (1, len(calendar))
    if features.known:
        others[f"future_{FieldName.FEAT_DYNAMIC_REAL}"] = (horizon, features.known)
    if features.past:
        others[f"past_{FieldName.PAST_FEAT_DYNAMIC_REAL}"] = (min(horizon, context), features.past)
    if features.real:
        others[FieldName.FEAT_STATIC_REAL] = (features.real,)
    inputs |= {name: (shape, torch.float) for name, shape in others.items()}
    if features.categories:
        inputs[FieldName.FEAT_STATIC_CAT] = ((len(features.categories),), torch.long)
    sizes = {name: math.prod(shape) for name, shape in others.items()}

    def make() -> nn.Module:
        return ResidualMLP(context, horizon, LIKELIHOODS[likelihood](), sizes, features.categories, **kwargs)

    return Blueprint("MLP", horizon, likelihood, transformation, Packing.of(inputs, horizon), False, make)


def _check_forward(blueprint: Blueprint, kind: str | None, context: int) -> None:
    anchor: Anchor | None = None
    if kind is not None:
        units = Units(1, 1, 1.0)
        anchor = (
            LinearAnchor(units, min(context, LONGEST), blueprint.horizon)
            if kind == "linear"
            else GivenAnchor(units, min(context, LONGEST), "theta", 1)
        )
    network = blueprint.build(anchor=anchor).eval()
    weight = next(network.parameters())
    with torch.no_grad():
        outputs = network(torch.zeros(2, blueprint.packing.size, device=weight.device))
    expected = (2, blueprint.horizon, network.likelihood.size)
    if outputs.shape != expected:
        raise ConfigError(f"task.model {blueprint.name} returns {tuple(outputs.shape)} for 2 windows, not {expected}")
