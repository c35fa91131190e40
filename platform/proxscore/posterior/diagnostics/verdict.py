"""The convergence verdict: converged, still moving, or diverged, from what the optimizer saw of its last steps.

For each sampled tensor, over the last tenth to fifth of the steps (:mod:`proxscore.inference.convergence`), with averages
of the curvature statistic k_i in units of the current precision, their standard errors e_i, and averages u_i of the score:

    precision   S^2 = mean_i (k_i - 1)^2 - e_i^2         k_i = (sd_i / sd*_i)^2
    mean        U^2 = mean_i u_i^2 - f_i^2,              and the mean's distance from its average over the window

S is below 0.4 where standard deviations are right within about 20 %, and 0.75 where all of them are half of what they should
be: a tensor has arrived if S < 0.4 and S^2 plus two of its own standard errors is below 0.75^2. Where the error is too large
for that, tensors are judged together. A number that is off by more than half by itself, three standard errors from being
less, counts too, and so does an average of k that is off by 0.2 and by two of its standard errors. Of a full covariance,
(k - 1)^2 is that of the eigenvalues of C^T Lambda* C, whose mean is the Frobenius norm of the statistic's average less one;
families of the gradient solver are judged by the average of all k. The mean has arrived if U and its distance are below half a
standard deviation.

What it cannot see: a direction of strongly correlated numbers in which a mean field moves slowly shows as drift alone; and
whether q's family can describe the posterior is no matter of convergence: Pareto k-hat tells of that (necessary, and not
sufficient), and the loss of draws against that of the mean.
"""

from __future__ import annotations

import math

import torch

from proxscore.inference import ProximalScore
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics.failures import LOST, Losses, collapsed, losses_failed, too_tight
from proxscore.posterior.diagnostics.judged import gathered, judge, merged, some
from proxscore.posterior.diagnostics.measures import metrics_of, metrics_of_losses
from proxscore.posterior.diagnostics.reasons import mean_reasons, precision_reasons


@torch.no_grad()
def verdict(
    optimizer: ProximalScore,
    *,
    losses: Losses | None = None,
    pareto_k: float | None = None,
    rows: int | None = None,
) -> Verdict:
    """Whether an optimizer's posterior arrived, from its last tenth to fifth of the steps; no forward passes.

    With sharded parameters every rank must call it: what the ranks saw is gathered once.

    Args:
        losses: on validation data.
        pareto_k: of :func:`proxscore.posterior.diagnostics.gaps`: above 0.7 q misses a part of the posterior.
        rows: of the training data: a posterior of more data, or of a temperature below one, is cold.
    """
    found = merged(gathered(optimizer))
    shared = dict(temperature=optimizer.temperature, data_size=float(optimizer.data_size), rows=rows)
    notes, metrics = _notes(optimizer, rows), metrics_of_losses(losses, pareto_k)
    broken = [p.name for p in found if not bool((p.log_precision.isfinite() & p.lag.nan_to_num().isfinite()).all())]
    if broken:
        return Verdict("diverged", (f"the posterior of {some(broken)} is not finite",), (), notes, metrics, **shared)  # type: ignore[arg-type]
    judged = [judge(each) for each in found]
    seen = [each for each in judged if each.probed.steps > 1]
    if not seen:
        few: tuple[str, ...] = ("too few steps to tell: train longer",) if found else ()
        failures = tuple(losses_failed(losses, pareto_k))
        return Verdict("still moving" if found else "converged", few, failures, notes, metrics, **shared)  # type: ignore[arg-type]
    reasons = (*precision_reasons(optimizer, seen), *mean_reasons(optimizer, seen))
    answer = "diverged" if losses is not None and losses.lost > LOST else "still moving" if reasons else "converged"
    moving = {name for each in seen if each.precision_off or not each.precision_told for name in [each.probed.name]}
    failures = (*losses_failed(losses, pareto_k), *collapsed(optimizer, seen, moving), *too_tight(seen))
    metrics = {name: value for name, value in (metrics_of(seen) | metrics).items() if math.isfinite(value)}
    return Verdict(answer, reasons, failures, notes, metrics, **shared)  # type: ignore[arg-type]


def _notes(optimizer: ProximalScore, rows: int | None) -> tuple[str, ...]:
    notes = []
    cold = rows is not None and optimizer.scale > rows * (1 + 1e-6)  # said beside the answer
    if not cold and (optimizer.temperature != 1 or (rows is not None and not math.isclose(optimizer.data_size, rows))):
        notes.append("the likelihood counts other than once for each row: intervals are not credible intervals")
    solved = sorted({b.family.kind for b in optimizer.blocks() if b.probes.coarse})
    if solved:
        notes.append(f"{', '.join(solved)}: judged by the scale of all numbers together, and by drift")
    return tuple(notes)
