"""How far the past of a window lies from those of training: for the width of a linear regression's forecast, and to say so.

Of z (L), a past in units of its own, the distance is q = z' (Z'Z / n + r)^-1 z, with the ridge r of the regression: n times the
leverage of the window. What is usual are the distances of training windows, each measured by the windows of other blocks of
time: by those that were in the sum themselves every new window would seem far, as is measured in jobs/studies/noticing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FAR = 0.999  # quantile of the distances of training windows, beyond which a window is unlike them
FACTOR = 3.0  # beyond the least and the largest scale of training windows, at which another one is unlike them
SEEN = 0.5  # of the least share of steps that is observed of a training window, below which another one is unlike them


@dataclass(frozen=True)
class Moments:
    """Weighted sums of some windows: z'z (L, L), z't (L, H), and of weights."""

    squares: Tensor
    products: Tensor
    count: Tensor

    @classmethod
    def of(cls, z: Tensor, target: Tensor, weight: Tensor) -> Moments:
        weighted = z * weight[:, None]
        return cls(weighted.T @ z, weighted.T @ target, weight.sum())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.squares + other.squares, self.products + other.products, self.count + other.count)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.squares - other.squares, self.products - other.products, self.count - other.count)

    def decomposed(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (L,) and vectors (L, L) of the mean of z z'; computed once."""
        if "eigen" not in self.__dict__:
            object.__setattr__(self, "eigen", torch.linalg.eigh(self.squares / self.count.clamp_min(1e-12)))
        found: tuple[Tensor, Tensor] = self.__dict__["eigen"]
        return found

    def solved(self, start: Tensor, shrinkage: float) -> Tensor:
        """(L, H) that minimises the squared error and ``shrinkage`` times the distance from ``start``."""
        values, vectors = self.decomposed()
        left = (self.products - self.squares @ start) / self.count.clamp_min(1e-12)
        return start + vectors @ ((vectors.T @ left) / (values + self._ridge(values, shrinkage))[:, None])

    def whitening(self, shrinkage: float) -> Tensor:
        """(L, L), so that q = |z whitening|^2."""
        values, vectors = self.decomposed()
        ridge = self._ridge(values, min(shrinkage, 1.0))
        return vectors / (values + ridge).sqrt()

    @staticmethod
    def _ridge(values: Tensor, shrinkage: float) -> Tensor:
        return (shrinkage * values.mean()).clamp_min(1e-9)


class Distance(nn.Module):
    """Of windows from those of training; before :meth:`set` it knows none, and says so.

    Args:
        length: L, steps that are looked at.

    Attributes:
        whitening: (L, L).
        usual: of training windows the mean of q, its quantile ``FAR``, the number of windows without overlap, the least and the
            largest scale, and the least share of steps that is observed.
    """

    whitening: Tensor
    usual: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.zeros(length, length))
        self.register_buffer("usual", torch.tensor([0.0, torch.inf, 1.0, 0.0, torch.inf, 0.0]))

    @property
    def known(self) -> bool:
        """Whether there were windows enough to say what is usual."""
        return bool(torch.isfinite(self.usual[1]))

    def set(
        self,
        z: Tensor,
        scale: Tensor,
        observed: Tensor,
        fold: Tensor,
        without: Sequence[Moments],
        whole: Moments,
        shrinkage: float,
        apart: float,
    ) -> None:
        """Learn what is usual.

        Args:
            z: (N, L), of training windows.
            scale: (N, 1).
            observed: (N, L), flags.
            fold: (N,), their blocks of time, from 1.
            without: moments without each block.
            whole: of all.
            shrinkage: of the regression.
            apart: how many windows there is room for without overlap.
        """
        far = torch.cat(
            [(z[fold == k] @ part.whitening(shrinkage)).square().sum(1) for k, part in enumerate(without, 1)]
        )
        limit = far.sort().values[min(int(FAR * len(far)), len(far) - 1)]
        self.whitening.copy_(whole.whitening(shrinkage))
        share = (observed > 0).double().mean(1).min()
        found = [far.mean(), limit, torch.tensor(apart), scale.min(), scale.max(), share]
        self.usual.copy_(torch.stack([each.double() for each in found]))

    def forward(self, z: Tensor) -> Tensor:
        """q (B,), of z (B, L)."""
        return (z @ self.whitening).square().sum(1)

    def wider(self, z: Tensor) -> Tensor:
        """(B, 1) how much wider than on average the forecast of a linear regression is: its variance goes with 1 + q / n."""
        mean, count = self.usual[0], self.usual[2]
        return ((1 + self(z) / count) / (1 + mean / count)).sqrt()[:, None]

    def unlike(self, z: Tensor, scale: Tensor, observed: Tensor) -> Tensor:
        """(B,) bool: further than training windows are, far calmer or wilder than all of them, or with far less of a past.

        The level of a series is not looked at: what is forecast moves with it, and series may grow. A constant past has q = 0,
        and is told by its scale.

        Args:
            z: (B, L).
            scale: (B, 1).
            observed: (B, L), flags.
        """
        _, limit, _, calm, wild, share = self.usual
        scale = scale[:, 0]
        odd = (scale * FACTOR < calm) | (scale > FACTOR * wild)
        few = (observed > 0).to(scale.dtype).mean(1) < SEEN * share
        return (self(z) > limit) | odd | few
