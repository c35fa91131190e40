"""The initial noise: how wide a posterior is at the start, relative to the weights of each tensor.

A network bears noise in proportion to its weights: of a few per cent of a tensor's root mean square it costs nothing, of
30 % it destroys what was learned, whatever the layer's size. So the initial standard deviation is a fraction of

    scale = root mean square of the tensor's weights;

where they are zero (a bias, the last layer of a residual branch or of a network that starts as constant), of the standard
deviation that an initialisation would give a matrix, 1 / sqrt(fan-in), and for a vector, of the root mean square of its
layer's weight, or else of the median over all tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from proxscore.inference import noise
from proxscore.inference.buffers import kept_buffers
from proxscore.inference.gathered import reshard
from proxscore.inference.names import named_parameters

INITIAL_NOISE = 0.02
#: The root mean square of a tensor's weights up to which they count as zero, and say nothing of their scale.
_NEGLIGIBLE = 1e-8


def initial_scales(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The scale that each parameter's initial standard deviation is a fraction of, by name, in units of the weights.

    Of sharded parameters, over the whole tensors: a collective call.
    """
    found = {name: _root_mean_square(parameter) for name, parameter in parameters.items()}
    known = {name: scale for name, scale in found.items() if scale > _NEGLIGIBLE}
    for name, parameter in parameters.items():
        if name not in known and parameter.ndim > 1:
            found[name] = 1 / math.sqrt(max(parameter[0].numel(), 1))
    usual = median(known.values()) if known else 1.0
    for name, parameter in parameters.items():
        if name not in known and parameter.ndim <= 1:
            found[name] = found.get(f"{name.rpartition('.')[0]}.weight", usual) or usual
    return found


@torch.no_grad()
def _root_mean_square(parameter: Tensor) -> float:
    if parameter.is_meta:
        return 1.0
    square = parameter.detach().double().square().mean()
    return (square.full_tensor() if isinstance(square, DTensor) else square).sqrt().item()


#: How much more loss than the mean draws may have at the start: this fraction of its loss, or of a nat if that is more.
BEARABLE = 0.01
#: Relative noise below which it is not halved any more.
_SMALLEST_NOISE = 1e-4


@torch.no_grad()
def bearable_noise(module: nn.Module, losses: Callable[[], Iterable[Tensor]], largest: float, seed: int) -> float:
    """The largest relative noise, at most ``largest``, whose draws cost little: a pretrained network bears less than one that
    knows nothing yet, whose loss no noise makes worse.

    The loss of draws is compared with that of the weights as they are on the same batches, one draw for each batch, at
    ``largest``, and at half of it as long as the draws lose more than ``BEARABLE``.

    Args:
        module: its trained parameters are drawn about; as before afterwards, buffers included.
        losses: called for a pass over a few batches: average negative log-likelihood of each, evaluated when it is asked for.
            Over shards, each rank's part, such that the average over ranks is the batch's.
        seed: seed of the draws' noise.

    Raises:
        ValueError: no batches, or no batch whose loss is finite at the start; single ones are left out.
    """
    reshard(module)
    trained = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
    scales = initial_scales(trained)
    before = [parameter.detach().clone() for parameter in trained.values()]

    def losses_of_draws(relative: float) -> Tensor:
        """The loss of each batch at a draw of its own."""
        seen: list[Tensor] = []
        iterator = iter(losses())
        while True:
            _perturb(trained, before, scales, relative, noise.key(seed, "bearable", len(seen)))
            loss = next(iterator, None)
            reshard(module)  # a root that stays gathered would not see the next draw
            if loss is None:
                break
            seen.append(loss.detach().double())
        if not seen:
            raise ValueError("initial_noise: no batches to measure it on")
        each = torch.stack(seen)
        if dist.is_initialized():
            each = each.to(before[0].device)
            dist.all_reduce(each)
            each /= dist.get_world_size()
        return each.cpu()

    with kept_buffers(module):
        try:
            base = losses_of_draws(0.0)
            usable = base.isfinite()  # training skips a batch that is not
            if not usable.any():
                raise ValueError("the loss of the first batches is not finite at the start: look for bad inputs")
            without, relative = base[usable].mean().item(), largest
            while relative > _SMALLEST_NOISE:
                if losses_of_draws(relative)[usable].mean().item() <= without + BEARABLE * max(abs(without), 1.0):
                    break
                relative /= 2
        finally:
            _perturb(trained, before, scales, 0.0, 0)
    return relative


def _perturb(
    parameters: Mapping[str, Tensor], before: list[Tensor], scales: Mapping[str, float], relative: float, seed: int
) -> None:
    """Put into the parameters their values ``before``, and to these add seeded noise, ``relative`` to the parameters' scales."""
    streams = noise.Streams()
    for (name, parameter), mean in zip(parameters.items(), before, strict=True):
        parameter.copy_(mean)
        if relative > 0:
            shard, start = noise.local(parameter), noise.shard_offset(parameter, name)
            for piece, values in streams.pieces(shard, noise.key(seed, name), start):
                shard[piece].add_(values, alpha=relative * scales[name])
