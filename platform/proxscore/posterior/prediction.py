"""Predictive distributions: averages over posterior draws, streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proxscore.inference import noise
from proxscore.posterior.posterior import Posterior

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass
class CategoricalPredictive:
    """p(y | x) = 1/S sum_s softmax(f(x; theta_s)) for the rows of a data set, on the CPU.

    Attributes:
        log_probabilities: (N, C) or (N, C, ...), natural logarithm of the predictive probabilities.
        expected_entropy: (N,) or (N, ...), mean over draws of the entropy of softmax(f), in nats.
        targets: (N,) or (N, ...), as the data gave them.
    """

    log_probabilities: Tensor
    expected_entropy: Tensor
    targets: Tensor

    @property
    def mean(self) -> Tensor:
        """Predictive probabilities, shaped as ``log_probabilities``."""
        return self.log_probabilities.exp()

    @property
    def log_density(self) -> Tensor:
        """Log-probability of each target, shaped as ``targets``."""
        return self.log_probabilities.gather(1, self.targets.long().unsqueeze(1)).squeeze(1)


@torch.no_grad()
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | None = None,
    autocast: torch.dtype | None = None,
) -> CategoricalPredictive:
    """The predictive distribution of a classifier for all rows of a data set.

    Each of S fixed draws is put into the weights once and run over the whole data set; what is kept is a running
    log-sum-exp of N x C log-probabilities and N entropies, never S x N x C. With ``draws=0``, or without a posterior, it
    is the prediction of the mean weights (or of the weights as they are).

    Args:
        module: the network; its training mode and weights are as before afterwards.
        batches: called once per draw; yields (inputs, targets). If there are fewer targets than inputs, the inputs
            beyond are padding (so that all ranks of a sharded module run equally many forwards).
        posterior: where the draws come from.
        draws: S; a set of samples gives at most those that it holds, evenly spaced.
        seed: of the draws: equal seeds give equal draws.
        refresh: batches to estimate the running statistics of BatchNorm layers from, anew for every draw; without, they
            stay what training left.
        autocast: compute dtype of the forward passes.
    """
    log_sum: list[Tensor] = []
    entropy_sum: list[Tensor] = []
    targets: list[Tensor] = []
    indices = draw_indices(posterior, draws)
    for draw, device in each_draw(module, posterior, indices, seed, refresh, autocast):
        for row, (inputs, labels) in enumerate(batches()):
            outputs = module(inputs.to(device, non_blocking=True))[: len(labels)]
            log_probabilities = outputs.float().log_softmax(1)
            entropy = -(log_probabilities.exp() * log_probabilities).sum(1)
            if draw == 0:
                log_sum.append(log_probabilities.cpu())
                entropy_sum.append(entropy.cpu())
                targets.append(labels.cpu())
            else:
                torch.logaddexp(log_sum[row], log_probabilities.cpu(), out=log_sum[row])
                entropy_sum[row] += entropy.cpu()
    count = len(indices)
    return CategoricalPredictive(
        torch.cat(log_sum) - math.log(count), torch.cat(entropy_sum) / count, torch.cat(targets)
    )


def draw_indices(posterior: Posterior | None, draws: int) -> list[int | None]:
    """Indices of so many draws, or of those that there are; without draws ``[None]``: the mean weights, or the module's."""
    return list(posterior.indices(draws)) if posterior is not None and draws and posterior.random else [None]


def each_draw(
    module: nn.Module,
    posterior: Posterior | None,
    indices: list[int | None],
    seed: int,
    refresh: Batches | None,
    autocast: torch.dtype | None,
) -> Iterator[tuple[int, torch.device]]:
    """Put the draws of :func:`draw_indices` into the module, one after another, in evaluation mode.

    Weights, modes of the layers and statistics of BatchNorm are as before afterwards. Other arguments as of :func:`predict`.

    Yields:
        The draw's position, from 0 on, and the module's device.
    """
    device = next(module.parameters()).device
    modes = {layer: layer.training for layer in module.modules()}  # layers may differ: frozen ones stay in evaluation
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    context = torch.autocast(device.type, autocast) if autocast else nullcontext()
    try:
        for position, index in enumerate(indices):
            with posterior.use(module, index, seed) if posterior is not None else nullcontext(module), context:
                if refresh is not None:
                    refresh_batch_norm(module, refresh, device)
                module.eval()
                yield position, device
    finally:
        for layer, training in modes.items():
            layer.training = training
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


def refresh_batch_norm(module: nn.Module, batches: Batches, device: torch.device) -> None:
    """Running statistics of BatchNorm layers under the weights as they are, averaged over all ranks' batches.

    A running mean under other weights (those of past draws) is not that of this draw.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    inputs = (inputs for inputs, _ in batches())
    try:
        torch.optim.swa_utils.update_bn(inputs, module, device)
    finally:  # where a batch fails, update_bn leaves the layers without their momentum
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if dist.is_initialized() and dist.get_world_size() > 1:
        for layer in layers:
            if layer.running_mean is not None:
                for statistic in (layer.running_mean, layer.running_var):
                    assert statistic is not None
                    dist.all_reduce(noise.local(statistic))
                    statistic /= dist.get_world_size()
