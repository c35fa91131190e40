"""The bytes that a step's update moves between a device's memory and its processors, for each number that is trained.

They are counted from the passes themselves (:mod:`proxscore.inference.kernels`), which run on tensors without numbers:
compiled, a pass reads each tensor that it needs once and writes each that it changes once; operation by operation, every
operation reads its arguments and writes its result. Memory bounds both on every device, by far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from proxscore.config import MethodSection
from proxscore.inference import kernels
from proxscore.inference.elementwise import Settings
from proxscore.methods.proximal_score import ProximalScoreConfig

ADAMW = 28.0  # reads weights, gradient and two moments, writes all but the gradient: torch's fused kernel
_COUNT = 1024


@dataclass(frozen=True)
class Moved:
    """Bytes for each number.

    Attributes:
        fused: in single passes.
        apart: operation by operation.
    """

    fused: float = 0.0
    apart: float = 0.0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.fused + other.fused, self.apart + other.apart)


class _Counted(TorchDispatchMode):
    """Notes which tensors are read before they are written, which are written, and the bytes of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.written = dict[int, int](), dict[int, int]()
        self.apart = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten.copy_.default:
            inputs, outputs = inputs[1:2], inputs[:1]
        else:
            outputs = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        for tensors, noted in ((inputs, self.read), (outputs, self.written)):
            for tensor in tensors:
                self.apart += tensor.nbytes
                place = tensor.untyped_storage()._cdata
                if noted is not self.read or place not in self.written:
                    noted[place] = tensor.nbytes
        return found


def moved_by(function: Callable[..., None], *arguments: Any, **settings: Any) -> Moved:
    """Count what a pass moves for each number; its first argument has as many as all the others."""
    counted = _Counted()
    with counted:
        function(*arguments, **settings)
    own = {a.untyped_storage()._cdata for a in arguments if isinstance(a, Tensor) and a.numel() > 3}
    fused = sum(size for noted in (counted.read, counted.written) for place, size in noted.items() if place in own)
    numbers = arguments[0].numel()
    return Moved(fused / numbers, counted.apart / numbers)


def moved_in_a_step(settings: MethodSection, groups: int = 1) -> Moved:
    """Bytes for each number in a step of a worker: of all passes over weights and state.

    Of proximal score matching, those of :class:`proxscore.inference.parts.shards.Shards`, whatever the family: other families
    than the mean field, and the noise that is made again without a separate mean, take more. AdamW's 28; of other methods as
    if they read and wrote four numbers.

    Args:
        groups: that share out the draws of a step.
    """
    method = settings.member
    if not isinstance(method, ProximalScoreConfig):
        return Moved(ADAMW, ADAMW) if method.kind == "adamw" else Moved(32.0, 32.0)
    found = Moved()
    for moved in _of_proximal_score(method, groups):
        found = found + moved
    return found


def _of_proximal_score(method: ProximalScoreConfig, groups: int) -> Iterator[Moved]:
    """Pass by pass."""
    own = method.draws // groups
    adaptive, several = method.metric == "adaptive", method.draws > 1
    t = {name: torch.empty(_COUNT, device="meta") for name in _NAMES}
    rows = [t[name].view(-1, 4) for name in ("weights", "mean", "precision")]
    key = torch.empty(3, dtype=torch.int64, device="meta")
    held = not several and not method.paired and method.keep_mean  # the only draw, until the step
    for draw in range(own):
        fused = moved_by(kernels.sample_from_key_, *rows, key, remember=draw == 0).fused
        fused += 8.0  # Inductor writes the noise of a counter's four numbers to memory, and reads it in the same kernel
        apart = moved_by(kernels.sample_, t["weights"], t["mean"], t["precision"], t["noise"]).apart
        yield Moved(fused, apart + 4.0 + (8.0 if draw == 0 else 0.0))  # the noise is written, and the mean remembered
        for second in range(0 if held else 1 + method.paired):
            if second:
                yield moved_by(kernels.reflect_, t["weights"], t["mean"])
            share, last = torch.empty((), device="meta"), bool(second) or not method.paired
            columns = [t[name] for name in ("total", "statistic", "weights", "mean", "precision")]
            flags = dict(fresh=draw == 0 and not second, paired=method.paired, last=last)
            yield moved_by(kernels.take_, *columns, share, share, share, **flags)
        if several:
            yield Moved(
                12.0 + 4.0 * (draw == 0), 12.0 + 4.0 * (draw == 0)
            )  # added to the curvature, which is cleared first
    if not held:
        yield Moved(8.0, 8.0)  # the weights are the mean again
    numbers = Settings(*(torch.empty((), device="meta") for _ in Settings._fields))
    square = t["square"] if adaptive else None
    state = [t[name] for name in ("weights", "mean", "precision", "score")]
    singles, penalty = adaptive and not method.paired, method.penalty.build(1000, 100)
    kind = dict(penalty=penalty, singles=singles, settings=numbers)
    if held:
        yield moved_by(kernels.step_from_draw_, *state, square, t["statistic"], None, scale=numbers.prior, **kind)
    else:
        yield moved_by(kernels.step_, *state, square, t["total"], t["statistic"], None, **kind)


_NAMES = ("weights", "mean", "precision", "score", "square", "total", "statistic", "noise")
