"""Runs that have diverged: precisions or means that no posterior has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Standard deviations beyond those of the prior, or those at the start where it is flat, that no posterior has.
BEYOND_PRIOR, BEYOND_START = 100.0, 1e6
#: How many steps lie between two checks on an accelerator.
CHECK_EVERY = 16


class RunawayError(FloatingPointError):
    """Precisions or means left every plausible range; ``wider``: the standard deviations are too large."""

    def __init__(self, name: str, what: str, wider: bool) -> None:
        self.name, self.what, self.wider = name, what, wider
        super().__init__(f"the posterior of {name} has diverged: {what}; {self.remedy()}")

    def remedy(self, section: str = "") -> str:
        """What to set against it, in words.

        Args:
            section: section of a configuration that the settings are in, with its dot.
        """
        larger = f"{section}penalty.precision or {section}draws, {section}paired=true"
        if self.wider:
            return f"use a larger {larger}, or a larger {section}initial_precision"
        return f"use a larger {larger}, or a smaller {section}max_log_precision_step, and look for bad inputs"


def plausible(log_precision: Tensor, prior: Tensor, initial: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Which numbers lie in a plausible range, and the smallest log-precision of it; tensors are (n,)."""
    start = initial.log()
    lowest = torch.where(prior > 0, prior.log() - 2 * math.log(BEYOND_PRIOR), start - 2 * math.log(BEYOND_START))
    lowest = torch.minimum(lowest, start - 2 * math.log(BEYOND_PRIOR))
    highest = torch.maximum(start, torch.where(prior > 0, prior.log(), start)) + 2 * math.log(BEYOND_START)
    return (log_precision > lowest) & (log_precision < highest) & mean.isfinite(), lowest


def refuse_runaway(
    names: Sequence[str], sizes: Sequence[int], log_precision: Tensor, prior: Tensor, initial: Tensor, mean: Tensor
) -> None:
    """Refuse a posterior that has left every plausible range; tensors are (n,), over the tensors of these names and sizes.

    Standard deviations beyond 100 times the prior's (or, where it is flat, a million times those at the start), or below a
    millionth of those at the start, are no posterior's.

    Raises:
        RunawayError: names the tensor.
    """
    fine, lowest = plausible(log_precision, prior, initial, mean)
    if bool(fine.all()):
        return
    index = int((~fine).nonzero()[0])
    ends = torch.tensor(sizes).cumsum(0)
    name = names[int((ends > index).nonzero()[0])]
    log, at = log_precision[index].item(), mean[index].item()
    if not math.isfinite(at) or math.isnan(log):
        raise RunawayError(
            name, f"its mean is {at:g} and its precision {math.exp(min(log, 700.0)):g} somewhere", wider=False
        )
    deviation, times = math.exp(-0.5 * log), math.exp(0.5 * (initial[index].log().item() - log))
    wider = log <= lowest[index].item()
    prior_scale = prior[index].item() ** -0.5 if prior[index] > 0 else math.inf
    beside = f", the prior's is {prior_scale:.3g}" if wider and math.isfinite(prior_scale) else ""
    raise RunawayError(
        name, f"a standard deviation is {deviation:.3g}, {times:.3g} times that at the start{beside}", wider
    )
