"""A network that fits a task, from which any number of networks is built: :mod:`proxscore.forecasting.networks` plans it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gluonts.torch.model.estimator import PyTorchLightningEstimator
from gluonts.transform import Transformation
from torch import Tensor, nn

from proxscore.forecasting.anchored import AnchoredNetwork, ResidualMLP
from proxscore.forecasting.anchors import Anchor
from proxscore.forecasting.likelihoods.names import LIKELIHOODS
from proxscore.forecasting.network import AutoregressiveNetwork, ForecastNetwork, PointForecaster
from proxscore.forecasting.windows import Packing, Windows


@dataclass(frozen=True)
class Blueprint:
    """A network that fits a task, not yet built: :func:`proxscore.forecasting.networks.plan` makes it.

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

    def build(
        self,
        training: Windows | None = None,
        scale_floor: float = 0.0,
        unit: float = 1.0,
        anchor: Anchor | None = None,
    ) -> ForecastNetwork:
        """A network with random weights, on the default device.

        Args:
            training: windows that Koopa's filter, and the MLP's means and scales, are computed from; others have no use for
                them. A network whose state is loaded afterwards needs none: these are part of the state.
            scale_floor: least scale of a window; see :mod:`proxscore.forecasting.network`.
            unit: what the network within counts targets in.
            anchor: what it starts from; without, from the window's own scale.
        """
        net = self.make()
        if isinstance(net, PointForecaster) and training is not None:
            net.point.set_filter(
                (fields["past_target"][..., None] / unit, fields["past_observed_values"][..., None])
                for fields in _spread(training, self.packing)
            )
        if isinstance(net, ResidualMLP) and training is not None:
            net.standardise(_spread(training, self.packing))
        if anchor is not None:
            likelihood = LIKELIHOODS[self.likelihood]()
            own = copy.deepcopy(anchor).to(torch.get_default_device())
            return AnchoredNetwork(net, self.packing, likelihood, self.horizon, scale_floor, unit, own)
        kind = AutoregressiveNetwork if self.autoregressive else ForecastNetwork
        return kind(net, self.packing, LIKELIHOODS[self.likelihood](), self.horizon, scale_floor, unit)


def _spread(windows: Windows, packing: Packing, count: int = 4096, batch: int = 256) -> Iterator[dict[str, Tensor]]:
    """Fields of at most ``count`` windows, evenly spaced, in batches."""
    items = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    for first in range(0, len(items), batch):
        yield packing.unpack(windows.__getitems__(items[first : first + batch].tolist())[0])
