"""The passes of an iteration of the mean field over flat tensors, in place: as they are, or compiled.

The formulas are those of :mod:`proxscore.inference.elementwise`, once. As they are, each operation is a pass over tensors
that are cut to the cache's size. Compiled by ``torch.compile`` (vectorised C++ on a CPU, Triton on a GPU), each function below
is a single pass over the memory; only the draw's noise still goes through a buffer on a CPU. Both give the same numbers but
for the order in which a compiler may round: a few units in the last place in a step.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proxscore.inference.elementwise import (
    Number,
    Settings,
    curvature,
    drawn,
    normals,
    paired_curvature,
    reflected,
    stepped,
)
from proxscore.inference.penalties import Penalty

_LOG = logging.getLogger(__name__)

#: Numbers of a tensor from which on it is compiled for itself; smaller ones are joined, and stay as they are.
LARGE = 1 << 14
#: Numbers in large tensors from which on an optimizer compiles its step, where nobody has decided.
WORTH = 1 << 20
#: The same times steps, where the length of the run is known: compiling takes some ten seconds, and spares some ten nanoseconds
#: per number and step.
WORTH_OF_A_RUN = 2 * 10**9
# Kinds of calls (penalties, metrics, priors, numbers of threads) that one process may compile for.
_VARIANTS = 64


def sample_(weights: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> None:
    """weights <- mean + noise / sqrt(precision)."""
    weights.copy_(drawn(mean, precision, noise))


def sample_from_key_(weights: Tensor, mean: Tensor, precision: Tensor, key: Tensor, remember: bool) -> None:
    """The same with noise of a key and a counter, for (n, 4) numbers; see :func:`proxscore.inference.elementwise.normals`.

    Args:
        remember: whether the weights are the mean, which becomes ``mean`` first.
    """
    if remember:
        mean.copy_(weights)
    weights.copy_(drawn(mean, precision, normals(key, len(weights))))


def reflect_(weights: Tensor, mean: Tensor) -> None:
    """weights <- 2 mean - weights: the other half of an antithetic pair."""
    weights.copy_(reflected(weights, mean))


def take_(
    total: Tensor,
    statistic: Tensor,
    weights: Tensor,
    mean: Tensor,
    precision: Tensor,
    prior: Number,
    share: Number,
    scale: Number,
    fresh: bool,
    paired: bool,
    last: bool,
    home: bool = False,
) -> None:
    """Add the gradient in ``statistic`` to the step's total, and turn it into the curvature statistic k.

    After the first draw of a pair it is left negated, so that the second backward pass accumulates g- - g+ without a
    buffer; the total holds g+ then, and (g- - g+) / 2 makes it the mean.

    Args:
        share: what the gradient counts in the total.
        scale: c, or c / 2 for a pair.
        fresh: whether the total begins with this gradient.
        last: whether a draw is complete: it is a single one, or the second of a pair.
        home: whether the weights become the mean at once, as this is the step's only draw.
    """
    total.copy_(statistic * share if fresh else total + statistic * share)
    if not last:
        statistic.copy_(-statistic)
    elif paired:
        statistic.copy_(paired_curvature(statistic, weights - mean, precision, prior, scale))
    else:
        statistic.copy_(curvature(statistic, weights - mean, precision, prior, scale))
    if home:
        weights.copy_(mean)


def step_(
    weights: Tensor,
    mean: Tensor,
    precision: Tensor,
    score: Tensor,
    square: Tensor | None,
    total: Tensor,
    statistic: Tensor,
    prior_mean: Tensor | None,
    penalty: Penalty,
    singles: bool,
    settings: Settings,
    go: Tensor | None = None,
) -> None:
    """The proximal step: moves mean, precision, running means and weights, and leaves the ratio r in ``statistic``.

    Args:
        go: whether the step is taken, without dimensions: if not, all but the statistic stay as they are; none: it is.
    """
    *found, ratio = stepped(mean, precision, score, square, total, statistic, prior_mean, penalty, singles, settings)
    _move_(weights, (mean, precision, score, square), found, go)
    statistic.copy_(ratio)


def _move_(weights: Tensor, state: Sequence[Tensor | None], found: Sequence[Tensor | None], go: Tensor | None) -> None:
    """Write the mean and what follows it, if the step is taken, and the mean into the weights."""
    for own, new in zip(state, found, strict=True):
        if own is not None and new is not None:
            own.copy_(new if go is None else torch.where(go, new, own))
    mean = state[0]
    assert mean is not None
    weights.copy_(mean)


def step_from_draw_(
    weights: Tensor,
    mean: Tensor,
    precision: Tensor,
    score: Tensor,
    square: Tensor | None,
    gradient: Tensor,
    prior_mean: Tensor | None,
    penalty: Penalty,
    singles: bool,
    scale: Number,
    settings: Settings,
    go: Tensor | None = None,
) -> None:
    """``take_`` and ``step_`` of a step's only single draw at once, which is still in the weights; they become the mean.

    Args:
        gradient: at the draw; it is left as it is.
        scale: c.
    """
    k = curvature(gradient, weights - mean, precision, settings.prior, scale)
    *found, _ = stepped(mean, precision, score, square, gradient, k, prior_mean, penalty, singles, settings)
    _move_(weights, (mean, precision, score, square), found, go)


def step_from_draw_by_row_(*tensors: Any, penalty: Penalty, singles: bool, row: Tensor, go: Tensor | None) -> None:
    """``step_from_draw_`` with its scale and its settings in one tensor."""
    scale, *settings = row.unbind()
    step_from_draw_(*(*tensors, penalty, singles, scale, Settings(*settings), go))


def step_by_row_(*tensors: Any, penalty: Penalty, singles: bool, row: Tensor, go: Tensor | None) -> None:
    """``step_`` with its settings in one tensor."""
    step_(*(*tensors, penalty, singles, Settings(*row.unbind()), go))


def take_by_row_(*tensors: Any, row: Tensor, fresh: bool, paired: bool, last: bool, home: bool) -> None:
    """``take_`` with prior, share and scale in one tensor."""
    take_(*(*tensors, *row.unbind(), fresh, paired, last, home))


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    options: dict[str, Any] = {"compile_threads": 1}
    return torch.compile(function, dynamic=True, fullgraph=True, options=options)


def compiled(function: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    """Call one of the functions above, compiled for tensors of any length and settings of any value."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # takes seconds to import: only who compiles waits for it

    # A view is compiled for with the shape that it is a view of; detached, it is a vector like all others.
    arguments = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    try:
        _compiled(function)(*arguments, **settings)
    except FailOnRecompileLimitHit:  # before anything has run
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            _compiled(function)(*arguments, **settings)


@functools.cache
@torch.no_grad()
def why_not(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device here; none: it can. Tries it once, with a small draw."""
    weights = torch.zeros(LARGE, device=device).view(-1, 4)
    try:
        key = torch.zeros(3, dtype=torch.int64, device=device)
        compiled(sample_from_key_, weights, weights.clone(), weights + 1, key, remember=True)
    except Exception as error:  # whatever a compiler, a linker or its files lack
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        _LOG.warning("the step is not compiled, and takes longer: %s", reason)
        return reason
    return None
