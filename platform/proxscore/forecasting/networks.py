"""Networks by name: GluonTS's estimators say how series become inputs and make the network; Koopa is our own.

A new network of GluonTS is one line in ``_ESTIMATORS``.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gluonts.dataset.field_names import FieldName
from gluonts.torch.distributions import DistributionOutput, StudentTOutput
from gluonts.torch.distributions.distribution_output import NormalOutput
from gluonts.torch.model.d_linear import DLinearEstimator
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.estimator import PyTorchLightningEstimator
from gluonts.torch.model.lag_tst import LagTSTEstimator
from gluonts.torch.model.patch_tst import PatchTSTEstimator
from gluonts.torch.model.simple_feedforward import SimpleFeedForwardEstimator
from gluonts.torch.model.tft import TemporalFusionTransformerEstimator
from gluonts.torch.model.tide import TiDEEstimator
from gluonts.transform import AddObservedValuesIndicator, Chain, SelectFields, Transformation
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.forecasting.distributions import LIKELIHOODS
from proxscore.forecasting.koopa import Koopa
from proxscore.forecasting.network import AutoregressiveNetwork, ForecastNetwork, PointForecaster
from proxscore.forecasting.windows import Packing, Series, Windows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """What series carry beside their target.

    Attributes:
        known: covariates that are known over the horizon.
        past: covariates that are not.
        categories: numbers of values of the static categories.
        real: static numbers.
    """

    known: int = 0
    past: int = 0
    categories: tuple[int, ...] = ()
    real: int = 0

    @classmethod
    def of(cls, series: Sequence[Series], categories: Sequence[int] | None = None) -> Features:
        """Of GluonTS entries, which must all carry the same.

        Args:
            series: the entries.
            categories: numbers of values; without, one more than the largest number that occurs.

        Raises:
            ConfigError: a series that carries something else than the first, or a category out of its range.
        """
        kinds = ("feat_dynamic_real", "past_feat_dynamic_real", "feat_static_cat", "feat_static_real")
        counts = [tuple(len(entry.get(kind, ())) for kind in kinds) for entry in series]
        for entry, count in zip(series, counts, strict=True):
            if count != counts[0]:
                raise ConfigError(
                    f"series {entry.get('item_id')} carries {count} of {', '.join(kinds)}; the first series {counts[0]}"
                )
        known, past, static, real = counts[0]
        values = np.array([entry.get("feat_static_cat", ()) for entry in series], dtype=np.int64).reshape(
            len(series), static
        )
        sizes = tuple(categories) if categories is not None else tuple((values.max(0) + 1).tolist())
        for row, column in np.argwhere((values < 0) | (values >= np.array(sizes, dtype=np.int64).reshape(1, -1))):
            raise ConfigError(
                f"series {series[row].get('item_id')}: static category {column} is {values[row, column]}, outside "
                f"0..{sizes[column] - 1}"
            )
        return cls(known, past, sizes, real)


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
NAMES = (*_ESTIMATORS, "Koopa")


def takes(name: str) -> tuple[str, ...]:
    """Features of series that a network takes: of known, past, categories and real."""
    return _ESTIMATORS[name].takes if name in _ESTIMATORS else ()


_OUTPUTS: dict[str, type[DistributionOutput]] = {"student_t": StudentTOutput, "normal": NormalOutput}

# Keywords of estimators that are not the user's: they come from the data or the task, belong to the method and the
# training loop, or give something else than a distribution per step.
_DATA = {"freq", "cardinality", "num_feat_dynamic_real", "num_feat_static_cat", "num_feat_static_real"}
_DATA |= {"dynamic_dims", "past_dynamic_dims", "static_dims"}
_DATA |= {"dynamic_cardinalities", "past_dynamic_cardinalities", "static_cardinalities"}
_TASK = {"self", "prediction_length", "context_length", "distr_output", "context", "horizon", "channels"}
_TRAINING = {"lr", "weight_decay", "patience", "batch_size", "num_batches_per_epoch", "trainer_kwargs"}
_TRAINING |= {"train_sampler", "validation_sampler"}
_OBJECTS = {"num_parallel_samples", "quantiles", "nonnegative_pred_samples", "imputation_method", "time_features"}
_TAKEN = _DATA | _TASK | _TRAINING | _OBJECTS


@dataclass(frozen=True)
class Blueprint:
    """A network that fits a task, not yet built: :func:`plan` makes it.

    Attributes:
        name: of the network.
        horizon: H.
        likelihood: family of the distribution per step, a key of ``LIKELIHOODS``.
        transformation: of series, for :class:`proxscore.forecasting.windows.Panel`.
        packing: of the inputs.
        autoregressive: see :class:`proxscore.forecasting.network.ForecastNetwork`.
        make: builds the network within.
        estimator: GluonTS's, where there is one.
    """

    name: str
    horizon: int
    likelihood: str
    transformation: Transformation
    packing: Packing
    autoregressive: bool
    make: Callable[[], nn.Module]
    estimator: PyTorchLightningEstimator | None = None

    def build(self, training: Windows | None = None, scale_floor: float = 0.0, unit: float = 1.0) -> ForecastNetwork:
        """A network with random weights, on the default device.

        Args:
            training: windows that Koopa's filter is computed from; others have no use for them. A network whose state
                is loaded afterwards needs none: the filter is part of the state.
            scale_floor: least scale of a window; see :mod:`proxscore.forecasting.network`.
            unit: what the network within counts targets in.
        """
        net = self.make()
        if isinstance(net, PointForecaster) and training is not None:
            net.point.set_filter(_spread(training, self.packing, unit))
        kind = AutoregressiveNetwork if self.autoregressive else ForecastNetwork
        return kind(net, self.packing, LIKELIHOODS[self.likelihood](), self.horizon, scale_floor, unit)


def _spread(
    windows: Windows, packing: Packing, unit: float, count: int = 4096, batch: int = 256
) -> Iterable[tuple[Tensor, Tensor]]:
    """At most ``count`` windows, evenly spaced: values, by unit, and observed flags (B, L, 1), in batches."""
    items = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    for first in range(0, len(items), batch):
        fields = packing.unpack(windows.__getitems__(items[first : first + batch].tolist())[0])
        yield fields["past_target"][..., None] / unit, fields["past_observed_values"][..., None]


def plan(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    frequency: str,
    horizon: int,
    context: int,
    features: Features,
    likelihood: str = "student_t",
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
        likelihood: ``student_t`` or ``normal``.

    Raises:
        ConfigError: an unknown name or keyword (the nearest are named), or values that the network refuses.
    """
    _known("task.model.name", name, NAMES)
    _known("task.model.likelihood", likelihood, tuple(LIKELIHOODS))
    estimator = _ESTIMATORS.get(name)
    _check_keywords(name, kwargs, estimator.kind if estimator else Koopa)
    left_out = [kind for kind in ("known", "past", "categories", "real") if getattr(features, kind)]
    left_out = [kind for kind in left_out if estimator is None or kind not in estimator.takes]
    if left_out:
        log.warning("%s takes no %s features of the series: they are left out", name, ", ".join(left_out))
    try:
        with torch.random.fork_rng([]):  # trials draw nothing from the stream that initial weights come from
            if estimator is None:
                blueprint = _koopa(kwargs, horizon, context, likelihood)
            else:
                keywords = {**estimator.defaults(context), **kwargs, **estimator.keywords(features)}
                blueprint = _gluonts(name, estimator.kind, keywords, frequency, horizon, context, likelihood)
            _check_forward(blueprint)
    except ConfigError:
        raise
    except Exception as error:  # each network checks its keywords in its own way: assert, pydantic, RuntimeError, ...
        shown = ", ".join(f"{key}={value}" for key, value in {"context": context, **kwargs}.items())
        text = " ".join(str(error).split())
        raise ConfigError(f"task.model {name} with {shown}: {type(error).__name__}: {text}"[:400]) from error
    return blueprint


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
        "distr_output": _OUTPUTS[likelihood](),
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


def _check_forward(blueprint: Blueprint) -> None:
    network = blueprint.build().eval()
    weight = next(network.parameters())
    with torch.no_grad():
        outputs = network(torch.zeros(2, blueprint.packing.size, device=weight.device))
    expected = (2, blueprint.horizon, network.likelihood.size)
    if outputs.shape != expected:
        raise ConfigError(f"task.model {blueprint.name} returns {tuple(outputs.shape)} for 2 windows, not {expected}")
