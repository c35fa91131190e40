"""How wide to start: the curvature at the start, as long as it also holds at the draws that it makes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.density.target import Target
from proxscore.inference import noise

PAIRS = 4
#: The curvature at the draws may be so many times that at the start.
MOST = 3.0
TRIES = 40


def start_precision(target: Target, initial_sd: Mapping[str, Tensor | float], seed: int) -> Tensor:
    """Precisions to start from, (D,): given ones, else those of the density's curvature at the start.

    Where it curves upwards its size counts, where it does not curve the squared slope, and 1 where it is flat. All that are not
    given are raised together until the curvature at draws, (theta_+ - theta_-)^T (s(theta_-) - s(theta_+)) / 4 D = 1 for a
    Gaussian, is finite and at most 3, and half a Newton step, which is what the mean takes, finds a density that is no lower:
    a local curvature says little of a density that is another one a step away.

    Raises:
        ConfigError: an unknown name, another shape, a value that is not positive, or a density that is finite nowhere near.
    """
    vector = target.vector()
    curvature, slope = target.curvature(vector), target.score(vector)
    size = curvature.abs()
    negligible = size <= 1e-14 * slope.square()  # straight, but for rounding: scales differ from number to number
    precision = torch.where(negligible | ~size.isfinite(), slope.square(), size)
    precision = torch.where((precision > 0) & precision.isfinite(), precision, torch.ones_like(precision))
    free = torch.ones_like(precision, dtype=torch.bool)
    pieces, free_pieces = precision.split(target.sizes), free.split(target.sizes)
    by_name = dict(zip(target.start, zip(pieces, free_pieces, strict=True), strict=True))
    for name, value in initial_sd.items():
        if name not in by_name:
            raise ConfigError(f"initial_sd names {name!r}; start has {', '.join(target.start)}")
        given = torch.as_tensor(value, dtype=vector.dtype, device=vector.device)
        if given.ndim and given.shape != target.start[name].shape:
            raise ConfigError(
                f"initial_sd[{name!r}] has shape {tuple(given.shape)}; it must be a number or {tuple(target.start[name].shape)}"
            )
        if not ((given > 0) & given.isfinite()).all():
            raise ConfigError(f"initial_sd[{name!r}] must be positive and finite")
        by_name[name][0].copy_(given.square().reciprocal().expand(target.start[name].shape).reshape(-1))
        by_name[name][1].fill_(False)
    return _tightened(target, vector, precision, free, seed)


def _tightened(target: Target, vector: Tensor, precision: Tensor, free: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(noise.key(seed, "width") >> 1)
    for _ in range(TRIES):
        ratios = []
        for _ in range(PAIRS):
            e = torch.randn(target.numbers, generator=generator).to(vector) * precision.rsqrt()
            ratios.append((target.score(vector - e) - target.score(vector + e)) @ e / (2 * target.numbers))
        ratio = torch.stack(ratios).mean()
        if ratio.isfinite() and ratio <= MOST and _improves(target, vector, precision):
            return precision
        if not free.any():
            break
        factor = min(max(ratio.item(), 4.0), 100.0) if ratio.isfinite() else 100.0
        precision = torch.where(free, precision * factor, precision)
    if ratio.isfinite():
        return precision
    raise ConfigError(
        "log_density is not finite at draws about the start, however near: choose another start, or initial_sd"
    )


def _improves(target: Target, vector: Tensor, precision: Tensor) -> bool:
    step = 0.5 * target.score(vector) / precision
    before, after = (target.log_density(target.tensors(at, grad=False)) for at in (vector, vector + step))
    return bool(after >= before - 1e-6 * before.abs())
