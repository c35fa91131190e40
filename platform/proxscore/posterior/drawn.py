"""The draws of a posterior, put into a module one after another, as often as one likes.

A data set is read once, however many draws there are: some batches go through the network under one draw, then under the
next. Of draws that fit into ``SNAPSHOTS`` bytes together, the weights are made once and copied; larger ones are made anew for
these batches, which takes little beside a large network's forward passes, and on a GPU runs beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from proxscore.posterior.ahead import Ahead, shares_weights
from proxscore.posterior.architecture import check_parameters
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
    """Draws that are ready, or made when they are first asked for; see :func:`drawn`.

    Attributes:
        device: of the module.
        autocast: compute dtype of the forward passes, if it is not that of the weights.
        copied: whether copies of all draws' weights are kept.
        apart: whether a draw may be made while another one is in the module.
    """

    def __init__(
        self,
        module: nn.Module,
        posterior: Posterior | None,
        indices: list[int | None],
        seed: int,
        refresh: Batches | DrawStatistics | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        reshard(module)  # the parameters that are looked up now are those that draws are written into
        self.device = next(module.parameters()).device
        self._module, self._posterior, self._indices, self._seed = module, posterior, indices, seed
        self._refresh, self.autocast = refresh, autocast
        self._kept: dict[int, _Kept] = {}
        self._before = {name: buffer.clone() for name, buffer in named_buffers(module).items()}
        self._changed: set[str] = set()  # buffers that differ between draws
        self._single = len(indices) == 1
        parameters = named_parameters(module)
        if posterior is not None:
            check_parameters(posterior, parameters)
        varying = None if posterior is None or self._single else posterior.varying
        self._varying = {name: parameters[name] for name in varying} if varying else {}
        size = sum(noise.local(p).nbytes for p in self._varying.values())
        self.copied = bool(self._varying) and size * len(indices) <= SNAPSHOTS
        # Of a posterior in training the means are the module's weights: they are not there while a draw is.
        self.apart = posterior is not None and not shares_weights(posterior, parameters)
        made = posterior is not None and self.apart and self._varying
        self._made = Ahead(posterior, self._varying, seed) if posterior is not None and made else None

    def __len__(self) -> int:
        return len(self._indices)

    def outputs(self, inputs: Any) -> Iterator[Tensor]:
        """The network's outputs for a batch that is on its device, under one draw after another."""
        for _, outputs in self.passes([inputs], range(len(self))):
            yield outputs

    def together(self, inputs: Any, positions: range) -> Tensor | None:
        """None: they are taken one after another; see :class:`proxscore.posterior.stacked.StackedDraws`."""
        return None

    def passes(self, group: Sequence[Any], positions: range) -> Iterator[tuple[int, Tensor]]:
        """The network's outputs for some batches that are on its device, with the batch's place among them: all of them under
        the draw of the first position, then all under the next."""
        for position in positions:
            with self.use(position, following=position + 1 if position + 1 in positions else None):
                for place, inputs in enumerate(group):
                    yield place, outputs_of(self._module, inputs)

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    def kept(self, positions: range) -> list[dict[str, Tensor]] | None:
        """What each draw puts into the module, weights and buffers by name; none: its weights are made anew every time."""
        shapes = {name: parameter.shape for name, parameter in self._varying.items()}
        draws = [self._ready(position) for position in positions]
        found = []
        for kept in draws:
            if kept.weights is None or any(kept.weights[name].numel() != shapes[name].numel() for name in shapes):
                return None  # or they are shards
            found.append({name: kept.weights[name].view(shape) for name, shape in shapes.items()} | self._buffers(kept))
        return found

    def statistics(self) -> dict[int | None, dict[str, Tensor]]:
        """The buffers in which draws differ, by the draw's index and by name."""
        self.prepare()
        return {index: self._buffers(self._kept[position]) for position, index in enumerate(self._indices)}

    def prepare(self) -> None:
        """Look at every draw once: its weights, and the running statistics of BatchNorm under them."""
        for position in range(len(self)):
            self._ready(position)

    def _ready(self, position: int) -> _Kept:
        if position not in self._kept:
            self._kept[position] = self._look(position)
            self._changed |= self._kept[position].buffers.keys()
        return self._kept[position]

    def _buffers(self, kept: _Kept) -> dict[str, Tensor]:
        return {name: kept.buffers.get(name, self._before[name]) for name in self._changed}

    def _look(self, position: int) -> _Kept:
        kept, index = _Kept(), self._indices[position]
        if self._made is not None and self._refresh is None and type(self._posterior) is Posterior:
            if self.copied:  # whose draws are of weights alone
                kept.weights = self._made.copy(index)
            return kept
        with torch.no_grad():  # its statistics start where those of all others do
            for name, buffer in named_buffers(self._module).items():
                if name in self._changed:
                    buffer.copy_(self._before[name])
        with self._weights(index):
            if isinstance(self._refresh, DrawStatistics):
                self._refresh.put_into(self._module, index, self._seed)
            elif self._refresh is not None:
                refresh_batch_norm(self._module, self._refresh, self.device)
            for name, buffer in named_buffers(self._module).items():
                before = self._before.get(name)
                if before is not None and buffer.shape == before.shape and not torch.equal(buffer, before):
                    kept.buffers[name] = buffer.clone()
            if self.copied:
                kept.weights = {name: noise.local(p).clone() for name, p in self._varying.items()}
        with torch.no_grad():
            for name, buffer in named_buffers(self._module).items():
                if name in kept.buffers:
                    buffer.copy_(self._before[name])
        self._module.eval()
        return kept

    def _weights(self, index: int | None) -> Any:
        return nullcontext() if self._posterior is None else self._posterior.use(self._module, index, self._seed)

    def first(self) -> Any:
        """A context for all passes: what all draws have in common is in the module."""
        shared = self.copied or self._made is not None or self._single
        return self._weights(self._indices[0]) if shared else nullcontext()

    @contextmanager
    def use(self, position: int, following: int | None = None) -> Iterator[nn.Module]:
        """Within the context, the module is that of the draw at this position, in evaluation mode.

        Args:
            following: the position that will be asked for next, whose weights are made meanwhile where that gains time.
        """
        kept = self._ready(position)
        with ExitStack() as stack:
            if kept.weights is not None:
                reshard(self._module)
                targets = [noise.local(parameter) for parameter in self._varying.values()]
                torch._foreach_copy_(targets, [kept.weights[name] for name in self._varying])
            elif self._made is not None:
                reshard(self._module)
                self._made.put(self._indices[position])
            elif not self._single:
                stack.enter_context(self._weights(self._indices[position]))
            buffers = named_buffers(self._module) if self._changed else {}
            for name, value in self._buffers(kept).items():
                buffers[name].copy_(value)
            torch.clear_autocast_cache()
            if self._made is not None and not self.copied and following is not None:
                self._made.begin(self._indices[following])
            stack.enter_context(self.casting())
            yield self._module

    def casting(self) -> Any:
        """The context of forward passes: autocast, or nothing."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


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
    lazily: bool = False,
) -> Iterator[Drawn]:
    """Within the context, draws of a posterior are ready to be put into a module, which is in evaluation mode.

    Weights, modes of the layers and buffers are as before afterwards. Arguments as of :func:`proxscore.posterior.predict`, and:

    Args:
        lazily: perhaps not all are asked for: each is made when it first is, and any first ones are a fair sample.
    """
    indices: list[int | None] = [None]  # the mean weights, or the module's
    if posterior is not None and draws and posterior.random:
        indices = list(posterior.shuffled(draws, seed) if lazily else posterior.indices(draws))
    modes = {layer: layer.training for layer in module.modules()}  # layers may differ: frozen ones stay in evaluation
    try:
        with kept_buffers(module):
            found = Drawn(module, posterior, indices, seed, refresh, autocast)
            if not (lazily and found.apart):
                found.prepare()
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
