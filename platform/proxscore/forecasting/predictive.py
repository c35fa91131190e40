"""Predictive distributions of windows: a mixture over posterior draws of the network's distributions.

    p(y_h | x) = 1/S sum_s p(y_h | f_h(x; theta_s))

Each batch of windows goes through the network under every one of S fixed draws. Of a draw are kept its parameters per step,
or, of an autoregressive network, sample paths: its outputs condition on the targets and are no forecasts. What is kept lies in
a file where it is much, and is read some windows at a time.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from proxscore.calibration.quantiles import quantiles_of_sorted
from proxscore.config import ConfigError
from proxscore.forecasting.distributions import Mixture, StepDistribution
from proxscore.forecasting.mixtures import StepMixture
from proxscore.forecasting.network import ForecastNetwork
from proxscore.inference import noise
from proxscore.posterior import Posterior
from proxscore.posterior.calls import Batches, pairs_of
from proxscore.posterior.drawn import Drawn, drawn
from proxscore.posterior.settled import DrawCount

SAMPLES = 200  # of each window at least, over all draws
IN_MEMORY = 2**30  # bytes of outputs, over all draws, up to which they are held in memory
CHUNK = 512  # windows whose samples are held at a time


@dataclass
class ForecastChunk:
    """Some windows: samples (n, B, H), log-density, mean, aleatoric and epistemic variance (B, H), targets (B, 4, H), the
    distribution of each step, if it is known by more than samples, and whether windows are unlike those of training (B,)."""

    samples: Tensor
    log_density: Tensor
    mean: Tensor
    aleatoric: Tensor | None
    epistemic: Tensor | None
    targets: Tensor
    steps: StepMixture | None = None
    unlike: Tensor | None = None

    @property
    def least(self) -> float | None:
        """The lowest value that can occur; none: there is none."""
        return None if self.steps is None else self.steps.likelihood.least

    @property
    def cdf(self) -> Tensor | None:
        """(B, H), the distribution function at the targets, for PIT; none: it is not known, or has jumps."""
        continuous = self.steps is not None and self.steps.likelihood.continuous
        return self.steps.cdf(self.targets[:, 0]) if self.steps is not None and continuous else None

    @property
    def width(self) -> Tensor | None:
        """(B, H), what intervals that may have no width, as those of counts, are widened by in units of: the standard deviation.

        None, where they have one."""
        if self.steps is None or self.steps.likelihood.continuous:
            return None
        assert self.aleatoric is not None
        assert self.epistemic is not None
        return (self.aleatoric + self.epistemic).double().sqrt()

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """(Q, B, H): exact, or, of sample paths, those of the samples."""
        if self.steps is None:
            return quantiles_of_sorted(self.samples.double().sort(0).values, probabilities)
        return self.steps.quantiles(probabilities)


@dataclass
class ForecastPredictive:
    """The predictive distribution of the windows of a data set, on the CPU.

    Attributes:
        likelihood: family of the parameters.
        outputs: (S, N, H, K), parameters of every draw; of an autoregressive network those given the targets.
        paths: (n, N, H), sample paths of an autoregressive network over all draws; else none.
        targets: (N, 4, H), see :class:`proxscore.forecasting.windows.Windows`.
        seed: of the samples.
        unlike: (N,) bool, whether the past of a window is unlike those of training; none: the network cannot tell.
    """

    likelihood: StepDistribution
    outputs: Tensor
    paths: Tensor | None
    targets: Tensor
    seed: int = 0
    unlike: Tensor | None = None

    @property
    def log_density(self) -> Tensor:
        """(N,), of the observed steps of each window together: log 1/S sum_s prod_h p(y_h | draw s)."""
        values, observed = self.targets[:, 0], self.targets[:, 1] > 0
        each = [
            torch.where(observed, self.likelihood.log_density(outputs, values), 0).sum(1) for outputs in self.outputs
        ]
        return torch.stack(each).double().logsumexp(0) - math.log(len(each))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The windows of all parts, one after another."""
        paths = [part.paths for part in parts if part.paths is not None]
        flags = [part.unlike for part in parts if part.unlike is not None]
        return replace(
            parts[0],
            outputs=torch.cat([part.outputs for part in parts], 1),
            paths=torch.cat(paths, 1) if paths else None,
            targets=torch.cat([part.targets for part in parts]),
            unlike=torch.cat(flags) if flags else None,
        )

    def part(self, rows: Sequence[int]) -> Self:
        """Some of its windows alone."""
        chosen = list(rows)
        return replace(
            self,
            outputs=self.outputs[:, chosen],
            paths=None if self.paths is None else self.paths[:, chosen],
            targets=self.targets[chosen],
            unlike=None if self.unlike is None else self.unlike[chosen],
        )

    def chunks(self, size: int = CHUNK) -> Iterator[ForecastChunk]:
        """All windows, some at a time. Samples are equal for an equal seed and size."""
        generator = torch.Generator().manual_seed(noise.key(self.seed, "samples") % 2**62)
        each = -(-SAMPLES // len(self.outputs))
        for first in range(0, len(self.targets), size):
            rows = slice(first, first + size)
            outputs, targets = self.outputs[:, rows], self.targets[rows]
            if self.paths is not None:
                yield self._of_paths(rows)
                continue
            mixture = Mixture(self.likelihood, targets[:, 0])
            samples = []
            for draw in outputs:
                mixture.add(draw)
                samples.append(self.likelihood.sample(draw, each, generator))
            yield ForecastChunk(
                torch.cat(samples),
                mixture.log_density.float(),
                mixture.mean.float(),
                mixture.aleatoric.float(),
                mixture.epistemic.float(),
                targets,
                StepMixture(self.likelihood, outputs),
                None if self.unlike is None else self.unlike[rows],
            )

    def _of_paths(self, rows: slice) -> ForecastChunk:
        """The density of a path belongs to all its steps together: each gets an equal part."""
        assert self.paths is not None
        part = replace(self, outputs=self.outputs[:, rows], paths=None, targets=self.targets[rows])
        observed = part.targets[:, 1] > 0
        share = part.log_density[:, None] / observed.sum(1, keepdim=True).clamp_min(1)
        paths = self.paths[:, rows]
        by_draw = paths.reshape(len(self.outputs), -1, *paths.shape[1:])
        return ForecastChunk(
            paths,
            share.float().expand(observed.shape),
            paths.mean(0),
            by_draw.var(1, correction=1).mean(0),
            by_draw.mean(1).var(0, correction=0),
            part.targets,
        )


@torch.no_grad()
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    draws: DrawCount = 16,
    seed: int = 0,
    refresh: Batches | None = None,
    autocast: torch.dtype | None = None,
) -> ForecastPredictive:
    """The predictive distribution for all windows of a data set; arguments as :func:`proxscore.posterior.predict`."""
    if not isinstance(draws, int):
        raise ConfigError(
            "draws is auto: forecasts are a mixture over draws that all windows share: give a number of draws"
        )
    with drawn(module, posterior, draws, seed, refresh, autocast) as found:
        return predicted(found, batches, seed)


@torch.no_grad()
def predicted(found: Drawn, batches: Batches, seed: int = 0) -> ForecastPredictive:
    """The predictive distribution for all windows by draws that are ready in the network; see :func:`predict`."""
    network = found.module
    assert isinstance(network, ForecastNetwork)
    generator = torch.Generator(found.device).manual_seed(noise.key(seed, "paths") % 2**62)
    outputs, paths = _Rows(), _Rows()
    targets, unlike = [], []
    each = -(-SAMPLES // len(found))
    for inputs, labels in pairs_of(batches):
        inputs = inputs.to(found.device, non_blocking=True)
        by_draw, sampled = [], []
        for position in range(len(found)):
            with found.use(position):
                by_draw.append(network(inputs)[: len(labels)].float().cpu())
                if network.autoregressive:
                    sampled.append(network.sample(inputs, each, generator)[:, : len(labels)].float().cpu())
        outputs.append(torch.stack(by_draw))
        if sampled:
            paths.append(torch.cat(sampled))
        targets.append(labels.cpu())
        flags = network.unlike(inputs)
        if flags is not None:
            unlike.append(flags[: len(labels)].cpu())
    if not targets:
        raise ConfigError("batches gave no windows: an iterator that was read before, or an empty loader")
    held = paths.joined() if paths.parts else None
    flagged = torch.cat(unlike) if unlike else None
    return ForecastPredictive(network.likelihood, outputs.joined(), held, torch.cat(targets), seed, flagged)


class _Rows:
    """Parts of a tensor along its second dimension, in memory or, where they are much together, in files."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._held = 0

    def append(self, part: Tensor) -> None:
        self._held += part.nbytes
        self.parts.append(part if self._held <= IN_MEMORY else store(*part.shape).copy_(part))

    def joined(self) -> Tensor:
        """The whole; the parts are gone afterwards."""
        first = self.parts[0]
        result = store(first.shape[0], sum(part.shape[1] for part in self.parts), *first.shape[2:])
        row = 0
        while self.parts:
            part = self.parts.pop(0)
            result[:, row : row + part.shape[1]] = part
            row += part.shape[1]
        return result


def store(*shape: int) -> Tensor:
    """Room for so many float32 numbers: in memory, or, for many windows, in a file that is gone when nothing refers to it."""
    count = math.prod(shape)
    if 4 * count <= IN_MEMORY:
        return torch.empty(shape)
    handle, path = tempfile.mkstemp(prefix="proxscore-forecasts-")
    os.close(handle)
    try:
        return torch.from_file(path, shared=True, size=count).view(shape)
    finally:
        os.unlink(path)
