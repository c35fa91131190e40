"""The draws of a posterior, put into a module one after another, as often as one likes.

A data set is read once, however many draws there are: each batch goes through the network under every draw. Of draws that fit
into ``SNAPSHOTS`` bytes together, the weights are made once and copied; larger ones are made anew for every batch, which
takes little beside a large network's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.inference.buffers import kept_buffers
from proxscore.inference.gathered import reshard
from proxscore.inference.names import named_buffers, named_parameters
from proxscore.posterior.calls import Batches, batches_of, call, outputs_of, to_device
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.posterior import Posterior

SNAPSHOTS = 2**30
#: Attribute of a BatchNorm layer whose statistics stay what they are: it is frozen as a whole.
KEEPS = "keeps_statistics"


@dataclass
class _Kept:
    """What one draw puts into the module: local shards of weights (none: they are made anew), and buffers."""

    weights: dict[str, Tensor] | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)


class Drawn:
    """Draws that are ready; see :func:`drawn`.

    Attributes:
        device: of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        posterior: Posterior | None,
        indices: list[int | None],
        seed: int,
        autocast: torch.dtype | None,
    ) -> None:
        self.device = next(module.parameters()).device
        self._module, self._posterior, self._indices, self._seed = module, posterior, indices, seed
        self._autocast = autocast
        self._kept: list[_Kept] = []
        varying = posterior.varying if posterior is not None else None
        parameters = named_parameters(module)
        size = sum(noise.local(p).nbytes for name, p in parameters.items() if varying and name in varying)
        #: Parameters to keep copies of, or none.
        self._copied = {n: parameters[n] for n in varying} if varying and size * len(indices) <= SNAPSHOTS else None

    def __len__(self) -> int:
        return len(self._indices)

    def outputs(self, inputs: Any) -> Iterator[Tensor]:
        """The network's outputs for a batch that is on its device, under one draw after another."""
        for position in range(len(self)):
            with self.use(position):
                yield outputs_of(self._module, inputs)

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    @property
    def copied(self) -> bool:
        """Whether the weights of all draws are kept; else they are made anew for every batch."""
        return self._copied is not None

    def kept(self) -> list[dict[str, Tensor]] | None:
        """What each draw puts into the module, weights and buffers by name; none: its weights are made anew every time."""
        shapes = {name: parameter.shape for name, parameter in (self._copied or {}).items()}
        found = []
        for kept in self._kept:
            if kept.weights is None or any(kept.weights[name].numel() != shapes[name].numel() for name in shapes):
                return None  # or they are shards
            found.append({name: kept.weights[name].view(shape) for name, shape in shapes.items()} | kept.buffers)
        return found

    def statistics(self) -> dict[int | None, dict[str, Tensor]]:
        """The buffers that :meth:`prepare` set for each draw, by its index and by name."""
        return {index: kept.buffers for index, kept in zip(self._indices, self._kept, strict=True)}

    def prepare(self, refresh: Batches | DrawStatistics | None) -> None:
        """Look at every draw once: its weights, and the running statistics of BatchNorm under them."""
        before = {name: buffer.clone() for name, buffer in named_buffers(self._module).items()}
        changed: set[str] = set()
        for index in self._indices:
            with self._weights(index):
                if isinstance(refresh, DrawStatistics):
                    refresh.put_into(self._module, index, self._seed)
                elif refresh is not None:
                    refresh_batch_norm(self._module, refresh, self.device)
                kept = _Kept()
                for name, buffer in named_buffers(self._module).items():
                    if name in before and buffer.shape == before[name].shape and not torch.equal(buffer, before[name]):
                        kept.buffers[name] = buffer.clone()
                if self._copied is not None:
                    kept.weights = {name: noise.local(p).clone() for name, p in self._copied.items()}
            with torch.no_grad():  # the next draw's statistics start where this one's did
                for name, buffer in named_buffers(self._module).items():
                    if name in kept.buffers:
                        buffer.copy_(before[name])
            changed |= kept.buffers.keys()
            self._kept.append(kept)
        for kept in self._kept:
            kept.buffers |= {name: before[name] for name in changed - kept.buffers.keys()}

    def _weights(self, index: int | None) -> Any:
        return nullcontext() if self._posterior is None else self._posterior.use(self._module, index, self._seed)

    def first(self) -> Any:
        """A context for all passes: where weights are copied, what all draws have in common is in the module."""
        return nullcontext() if self._copied is None else self._weights(self._indices[0])

    @contextmanager
    def use(self, position: int) -> Iterator[nn.Module]:
        """Within the context, the module is that of the draw at this position, in evaluation mode."""
        kept = self._kept[position]
        with ExitStack() as stack:
            if kept.weights is None:
                stack.enter_context(self._weights(self._indices[position]))
            else:
                assert self._copied is not None
                reshard(self._module)
                targets = [noise.local(parameter) for parameter in self._copied.values()]
                torch._foreach_copy_(targets, [kept.weights[name] for name in self._copied])
            buffers = named_buffers(self._module) if kept.buffers else {}
            for name, value in kept.buffers.items():
                buffers[name].copy_(value)
            torch.clear_autocast_cache()
            if self._autocast:
                stack.enter_context(torch.autocast(self.device.type, self._autocast))
            yield self._module


def most_copied(posterior: Posterior) -> int | None:
    """How many draws' weights are kept at most; none: they are of no weights, and nothing is to be kept."""
    varying = posterior.varying
    size = 0 if varying is None else sum(noise.local(posterior.mean[name]).nbytes for name in varying)
    return SNAPSHOTS // size if size else None


@contextmanager
@torch.no_grad()
def drawn(
    module: nn.Module,
    posterior: Posterior | None,
    draws: int,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[Drawn]:
    """Within the context, draws of a posterior are ready to be put into a module, which is in evaluation mode.

    Weights, modes of the layers and buffers are as before afterwards. Arguments as of :func:`proxscore.posterior.predict`.
    """
    indices: list[int | None] = [None]  # the mean weights, or the module's
    if posterior is not None and draws and posterior.random:
        indices = list(posterior.indices(draws))
    modes = {layer: layer.training for layer in module.modules()}  # layers may differ: frozen ones stay in evaluation
    found = Drawn(module, posterior, indices, seed, autocast)
    try:
        with kept_buffers(module):
            found.prepare(refresh)
            module.eval()
            with found.first():
                yield found
    finally:
        for layer, training in modes.items():
            layer.training = training


def refresh_batch_norm(module: nn.Module, batches: Batches, device: torch.device) -> None:
    """Running statistics of BatchNorm layers under the weights as they are, averaged over all ranks' batches.

    A running mean under other weights (those of past draws) is not that of this draw. Layers with an attribute ``KEEPS`` that
    is true are left alone.

    Raises:
        ConfigError: there are no batches: statistics would be those of no data.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.running_mean is not None and not getattr(layer, KEEPS, False)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    count = 0
    module.train()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the batches
        for inputs, _ in batches_of(batches):
            call(module, to_device(inputs, device))
            count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if not count:
        raise ConfigError(
            "refresh gave no batches for the statistics of BatchNorm under a draw: give a function that returns a new pass "
            "over them, as there is one for every draw"
        )
    if dist.is_initialized() and dist.get_world_size() > 1:
        for layer in layers:
            for statistic in (layer.running_mean, layer.running_var):
                assert statistic is not None
                dist.all_reduce(noise.local(statistic))
                statistic /= dist.get_world_size()
