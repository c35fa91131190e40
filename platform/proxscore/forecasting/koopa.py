"""Koopa: forecasts by Koopman operators, one learned for what all windows share and one fitted to each window.

Liu, Li, Wang, Long, "Koopa: Learning non-stationary time series dynamics with Koopman predictors", NeurIPS 2023,
arXiv:2305.18803. A window X (L, C) is normalised; each of B blocks then takes what the blocks before left of it:

    X_inv, X_var = Fourier filter of X^(b)           the dominant frequencies of the training data, and the rest
    Y_inv        = decode(K encode(X_inv))           K learned; encoder over time, channel by channel
    z_1 .. z_F   = encode(segments of X_var)         K_loc = argmin_K sum_i |z_i K - z_(i+1)|^2, for this window
    Y_var        = decode(z_F K_loc, z_F K_loc^2, ..)
    X^(b+1)      = X^(b) - decode(z_1, z_1 K_loc, .., z_(F-1) K_loc)

and the forecast is the sum of all Y_inv + Y_var, with the window's mean and scale put back. Encoders and decoders are shared
by the blocks, so that operators of all blocks live in one space. What a block passes on is as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError

_VARIANCE_FLOOR = 1e-5  # of the normalisation, as in the authors' code
_RIDGE = 1e-5  # of the trace; see least_squares_operator


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Compute without autocast, which the meta device does not know."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def normalise(x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / scale over time, with scale^2 = variance + 1e-5; steps that are missing become 0, the mean.

    Args:
        x: (B, L, C).
        observed: (B, L, C), 1 where the value is observed and 0 where it is missing; without, all are.

    Returns:
        (B, L, C) normalised, (B, 1, C) mean, (B, 1, C) scale; the last two carry no gradient. float32 or better.
    """
    x = x if x.dtype == torch.float64 else x.float()
    weights = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    with torch.no_grad():
        count = weights.sum(1, keepdim=True).clamp_min(1)
        mean = (weights * x).sum(1, keepdim=True) / count
        scale = ((weights * (x - mean).square()).sum(1, keepdim=True) / count + _VARIANCE_FLOOR).sqrt()
    return (x - mean) / scale * weights, mean, scale


def split_frequencies(x: Tensor, dominant: Tensor) -> tuple[Tensor, Tensor]:
    """The time-invariant part of x (its dominant frequencies) and the rest, which add up to x.

    Args:
        x: (B, L, C), float32 or better.
        dominant: (L // 2 + 1,) bool, by frequency of the real Fourier transform.
    """
    spectrum = torch.fft.rfft(x, dim=1)
    variant = torch.fft.irfft(spectrum * ~dominant[:, None], n=x.shape[1], dim=1)
    return x - variant, variant


def dominant_frequencies(windows: Iterable[tuple[Tensor, Tensor]], context: int, alpha: float) -> Tensor:
    """The floor(alpha (L // 2 + 1)) frequencies with the largest mean amplitude over windows, normalised one by one.

    The authors average amplitudes of the windows as they are, of data that were standardised as a whole. Normalised
    windows let series of every scale count alike, and are what the filter meets.

    Args:
        windows: batches of values (B, L, C) and observed flags (B, L, C).
        context: L.
        alpha: fraction of the frequencies, in (0, 1].

    Returns:
        (L // 2 + 1,) bool; at least one is set.
    """
    count = context // 2 + 1
    total = torch.zeros(count, dtype=torch.float64, device="cpu")
    for values, observed in windows:
        amplitude = torch.fft.rfft(normalise(values, observed)[0], dim=1).abs().mean(2)
        total += amplitude.sum(0).double().cpu()
    dominant = torch.zeros(count, dtype=torch.bool, device="cpu")
    dominant[total.topk(max(1, int(alpha * count))).indices] = True
    return dominant


def least_squares_operator(x: Tensor, y: Tensor) -> Tensor:
    """K = argmin |x K - y|^2 + r |K|^2 for each member of a batch, in float32 (float64 stays).

    Windows have fewer segments n than embeddings have dimensions E, so that the plain least-squares solution is not
    unique, and its gradient is unbounded where embeddings of segments are alike. The ridge r = 1e-5 tr(x x') picks
    the smallest K and bounds both; directions with singular values above 1% of the root of the trace lose less than 10%
    of K, those above 10% less than 0.1%. It is solved by Cholesky factors of the smaller of x x' + r I (n, n) and
    x' x + r I (E, E):

        K = x' (x x' + r I)^-1 y = (x' x + r I)^-1 x' y

    Args:
        x: (B, n, E).
        y: (B, n, E).

    Returns:
        (B, E, E).
    """
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    transposed = x.mT
    dual = x.shape[-2] < x.shape[-1]
    gram = x @ transposed if dual else transposed @ x
    ridge = _RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-10  # all-zero embeddings have the operator 0
    # No check of the factors: it would wait for the device, and numbers that are not finite show in the loss anyway.
    factor, _ = torch.linalg.cholesky_ex(gram + ridge[:, None, None] * torch.eye(gram.shape[-1]).to(gram))
    if dual:
        return transposed @ torch.cholesky_solve(y, factor)
    return torch.cholesky_solve(transposed @ y, factor)


def _layers(
    features: int, outputs: int, hidden: int, depth: int, activation: type[nn.Module], rate: float
) -> nn.Module:
    """``depth`` linear layers with activation and dropout between them."""
    widths = [features, *[hidden] * (depth - 1)]
    layers: list[nn.Module] = []
    for first, second in pairwise(widths):
        layers += [nn.Linear(first, second), activation(), nn.Dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class GlobalOperator(nn.Linear):
    """The learned operator of the time-invariant part, z -> K z; orthogonal at the start, so that no mode dies or grows."""

    def __init__(self, dynamic_dim: int) -> None:
        super().__init__(dynamic_dim, dynamic_dim, bias=False)

    def reset_parameters(self) -> None:
        """A random orthogonal matrix."""
        nn.init.orthogonal_(self.weight)


class LocalDynamics(nn.Module):
    """The operator of the time-variant part, fitted to the segments of each window; it has no parameters.

    Args:
        steps: segments to forecast.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded segments (B, F, E) to their one-step reconstruction (B, F, E) and forecast (B, steps, E)."""
        with full_precision(z.device):  # powers of K multiply what half precision would round away
            states = z if z.dtype == torch.float64 else z.float()
            operator = least_squares_operator(states[:, :-1], states[:, 1:])
            reconstruction = torch.cat([states[:, :1], states[:, :-1] @ operator], 1)
            forecast = [states[:, -1:] @ operator]
            for _ in range(self.steps - 1):
                forecast.append(forecast[-1] @ operator)
            return reconstruction.to(z.dtype), torch.cat(forecast, 1).to(z.dtype)


class Koopa(nn.Module):
    """Forecasts (B, H, C) of windows (B, L, C), normalised, with the windows' means and scales.

    Nothing is set in ``forward``, and the filter is a buffer: it goes with the state dict. Call :meth:`set_filter` before
    training; until then the lowest frequencies count as dominant.

    Args:
        context: L, steps of a window.
        horizon: H, steps to forecast.
        channels: C, series that are forecast jointly.
        blocks: how many.
        segment: steps of a segment; divides the context into two or more. Default: the largest such divisor, for an
            even context one half.
        dynamic_dim: E, dimensions of the embeddings.
        hidden_dim: features of the hidden layers of encoders and decoders.
        hidden_layers: linear layers of each encoder and decoder.
        alpha: fraction of the frequencies that are time-invariant.
        dropout: rate after hidden layers.

    Raises:
        ConfigError: a number out of its range, or a segment that does not divide the context.
    """

    dominant: Tensor

    def __init__(
        self,
        context: int,
        horizon: int,
        channels: int = 1,
        blocks: int = 3,
        segment: int | None = None,
        dynamic_dim: int = 128,
        hidden_dim: int = 64,
        hidden_layers: int = 2,
        alpha: float = 0.2,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        sizes = {"horizon": horizon, "channels": channels, "blocks": blocks, "dynamic_dim": dynamic_dim}
        for name, value in {**sizes, "hidden_dim": hidden_dim, "hidden_layers": hidden_layers}.items():
            if value < 1:
                raise ConfigError(f"Koopa: {name} is {value}; it must be 1 or more")
        if context < 2:
            raise ConfigError(f"Koopa: context is {context}; it must be 2 or more, to hold two segments")
        if not 0 < alpha <= 1:
            raise ConfigError(f"Koopa: alpha is {alpha}; it is a fraction of the frequencies, above 0 and at most 1")
        segment = segment or next(length for length in range(context // 2, 0, -1) if context % length == 0)
        if not 1 <= segment <= context // 2 or context % segment:
            fitting = ", ".join(str(n) for n in range(1, context // 2 + 1) if context % n == 0)
            raise ConfigError(
                f"Koopa: segment is {segment}; it must divide the context of {context} into two or more: {fitting}"
            )
        self.context, self.horizon, self.channels, self.segment, self.alpha = context, horizon, channels, segment, alpha
        width = segment * channels
        self.invariant_encoder = _layers(context, dynamic_dim, hidden_dim, hidden_layers, nn.ReLU, dropout)
        self.invariant_decoder = _layers(dynamic_dim, horizon, hidden_dim, hidden_layers, nn.ReLU, dropout)
        self.variant_encoder = _layers(width, dynamic_dim, hidden_dim, hidden_layers, nn.Tanh, dropout)
        self.variant_decoder = _layers(dynamic_dim, width, hidden_dim, hidden_layers, nn.Tanh, dropout)
        self.operators = nn.ModuleList(GlobalOperator(dynamic_dim) for _ in range(blocks))
        self.dynamics = LocalDynamics(-(-horizon // segment))
        self._lines = tuple(range(max(1, int(alpha * (context // 2 + 1)))))
        self.register_buffer("dominant", torch.zeros(context // 2 + 1, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the filter into its buffer, for a module that was built without memory; the layers see to themselves."""
        self.dominant.zero_()
        self.dominant[list(self._lines)] = True

    def set_filter(self, windows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the dominant frequencies from batches of training windows; see :func:`dominant_frequencies`."""
        dominant = dominant_frequencies(windows, self.context, self.alpha)
        self._lines = tuple(dominant.nonzero().flatten().tolist())
        self.reset_parameters()

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See the module's docstring for the formulas.

        Args:
            x: (B, L, C), in units of the series.
            observed: (B, L, C), 1 where observed.

        Returns:
            (B, H, C) normalised forecast, (B, 1, C) mean and (B, 1, C) scale: the forecast is mean + scale * forecast.
        """
        with full_precision(x.device):
            residual, mean, scale = normalise(x, observed)
        forecast = torch.zeros_like(residual[:, :1])
        for operator in self.operators:
            with full_precision(x.device):  # there is no Fourier transform in half precision
                invariant, variant = split_frequencies(residual, self.dominant)
            backcast, later = self._variant(variant)
            forecast = forecast + self._invariant(invariant, operator) + later
            residual = residual - backcast
        return forecast, mean, scale

    def _invariant(self, x: Tensor, operator: nn.Module) -> Tensor:
        """(B, L, C) to (B, H, C), channel by channel."""
        return self.invariant_decoder(operator(self.invariant_encoder(x.mT))).mT

    def _variant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, C) to its backcast (B, L, C) and the forecast (B, H, C)."""
        segments = x.reshape(len(x), -1, self.segment * self.channels)
        reconstruction, forecast = self.dynamics(self.variant_encoder(segments))
        backcast = self.variant_decoder(reconstruction).reshape(x.shape)
        later = self.variant_decoder(forecast).reshape(len(x), -1, self.channels)
        return backcast, later[:, : self.horizon]
