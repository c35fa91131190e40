"""A forecasting network as the training loop sees it: one vector of inputs per window, parameters per step.

The network within says, as those of GluonTS do, what is predicted of the window that it has scaled: the arguments of a
distribution of x, a location a and a scale s, so that the target is y = a + s x. Outputs are the parameters of y.

Networks take s from the window. A window that is all zero (or constant, by networks that take its standard deviation) would
have a scale of 1e-5 or less, and a forecast that is certain: no scale is below a floor, which follows from the training data.

Networks have least scales of their own, and logarithms of scales among their inputs: the network within is given targets
divided by a unit, which follows from the training data too, so that forecasts of euros are those of cents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gluonts.torch.scaler import MeanScaler
from torch import Tensor, nn

from proxscore.forecasting.distributions import StepDistribution, seeded
from proxscore.forecasting.koopa import Koopa
from proxscore.forecasting.windows import Packing

_TARGETS = ("past_target", "future_target", "anchor")


class ForecastNetwork(nn.Module):
    """``forward(inputs (B, F))`` gives the parameters (B, H, K) of the predictive distribution of each step.

    Args:
        net: takes the fields of ``packing`` and returns (arguments, a, s); a GluonTS network or a :class:`PointForecaster`.
        packing: of the inputs.
        likelihood: family of the K parameters. Its last two are location and scale.
        horizon: H.
        scale_floor: least scale of a window, in the unit of the target.
        unit: what the net's targets are counted in; a and s, and samples, are multiplied by it.

    Attributes:
        autoregressive: the outputs of a step condition on the targets of the steps before it, which are among the
            inputs. Their log-densities add up to that of the whole path, but they are not forecasts of h steps ahead:
            those are samples. False for :class:`ForecastNetwork` itself, whose outputs use no target.
    """

    autoregressive = False

    def __init__(
        self,
        net: nn.Module,
        packing: Packing,
        likelihood: StepDistribution,
        horizon: int,
        scale_floor: float = 0.0,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.packing, self.likelihood, self.horizon = net, packing, likelihood, horizon
        self.scale_floor, self.unit = scale_floor, unit
        scaler = getattr(net, "scaler", None)
        if self.autoregressive and isinstance(scaler, MeanScaler):  # its samples are drawn within
            scaler.minimum_scale = max(scaler.minimum_scale, scale_floor / unit)
            if scaler.default_scale is not None:  # a keyword of the user's, in the unit of the target
                scaler.default_scale /= unit

    def forward(self, inputs: Tensor, samples: int = 0, generator: torch.Generator | None = None) -> Tensor:
        """Parameters (B, H, K); or, with ``samples`` n > 0, sample paths (n, B, H). See :meth:`sample`."""
        fields = self._unpack(inputs)
        if samples:
            return self._sample(fields, samples, generator)
        return self._outputs(fields)

    def sample(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples (n, B, H) of what comes after each window, without gradient, in units of the target.

        It calls the module, so that what is attached to its forward (sharding) takes effect.

        Args:
            inputs: (B, F); of targets among them nothing is used.
            n: samples of each window.
            generator: what they follow from; torch's own stream without.
        """
        with torch.no_grad():
            return self(inputs, samples=n, generator=generator)

    def floored(self, inputs: Tensor) -> Tensor:
        """(B,) bool: whether a window (B, F) has the floor for its scale. Weights have no part in it."""
        fields = self._unpack(inputs)
        with torch.no_grad():
            _, _, scale = self._scaled(fields)
        return (scale <= self.scale_floor).flatten(1).all(1) & (self.scale_floor > 0)

    def unlike(self, inputs: Tensor) -> Tensor | None:
        """(B,) bool: whether the past of a window (B, F) is unlike those of training; none: the network cannot tell."""
        return None

    def _unpack(self, inputs: Tensor) -> dict[str, Tensor]:
        """The net's keywords, targets among them in its unit."""
        fields = self.packing.unpack(inputs)
        return fields | {name: value / self.unit for name, value in fields.items() if name in _TARGETS}

    def _scaled(self, fields: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        """Arguments of the net, and location and scale in the unit of the target."""
        arguments, loc, scale = self._within(fields)
        return arguments, loc * self.unit, scale * self.unit

    def _within(self, fields: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        """Arguments, location and scale of the net, in its unit."""
        arguments, loc, scale = self.net(**fields)
        return arguments, loc, scale

    def _outputs(self, fields: dict[str, Tensor]) -> Tensor:
        arguments, loc, scale = self._scaled(fields)
        return stack(arguments, loc, scale.clamp_min(self.scale_floor))

    def _sample(self, fields: dict[str, Tensor], n: int, generator: torch.Generator | None) -> Tensor:
        return self.likelihood.sample(self._outputs(fields), n, generator)


class AutoregressiveNetwork(ForecastNetwork):
    """GluonTS's DeepAR: the future target is among the inputs (teacher forcing), samples are drawn step by step.

    GluonTS trains it on the steps of the context too; here, on the horizon as all others.
    """

    autoregressive = True

    def _outputs(self, fields: dict[str, Tensor]) -> Tensor:
        arguments, loc, scale = self._scaled(fields)
        return stack([part[:, -self.horizon :] for part in arguments], loc, scale)

    def _within(self, fields: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        net: Any = self.net
        arguments, scale, *_ = net.unroll_lagged_rnn(**fields)
        return arguments, torch.zeros_like(scale), scale

    def _sample(self, fields: dict[str, Tensor], n: int, generator: torch.Generator | None) -> Tensor:
        del fields["future_target"]
        with seeded(generator, fields["past_target"].device):
            return self.unit * self.net(**fields, num_parallel_samples=n).movedim(1, 0)


def stack(arguments: Sequence[Tensor], loc: Tensor, scale: Tensor) -> Tensor:
    """Parameters (B, H, K) of y = loc + scale x, from those of x, the last of which are location and scale, in float32.

    Args:
        arguments: K of shape (B, H).
        loc: (B, 1).
        scale: (B, 1).
    """
    *others, own_loc, own_scale = (part if part.dtype == torch.float64 else part.float() for part in arguments)
    return torch.stack([*others, loc + scale * own_loc, scale * own_scale], -1)


class PointForecaster(nn.Module):
    """A network that gives one number per step, and learned noise around it, in units of the window's scale.

    The noise is one vector per parameter of the family beside its location, equal for all windows: the logarithms of its
    scale and (Student's t) of its degrees of freedom less 2. They are called ``log_noise``, which the default ``Prior``
    takes as point estimates.

    Args:
        point: the network.
        likelihood: family of the noise.
    """

    def __init__(self, point: Koopa, likelihood: StepDistribution) -> None:
        super().__init__()
        self.point = point
        self.log_noise = nn.Parameter(torch.empty(likelihood.size - 1, point.horizon))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale of a normalised window, and 10 degrees of freedom."""
        with torch.no_grad():
            self.log_noise.fill_(math.log(8.0))
            self.log_noise[-1].fill_(0.0)

    def forward(self, past_target: Tensor, past_observed_values: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(B, L) twice to (arguments (B, H), location (B, 1), scale (B, 1))."""
        forecast, loc, scale = self.point(past_target[..., None], past_observed_values[..., None])
        noise = self.log_noise.exp()[:, None].expand(-1, len(forecast), -1)
        return [*(2.0 + noise[:-1]), forecast[..., 0], noise[-1]], loc[..., 0], scale[..., 0]
