"""What is wrong with a posterior though nothing moves: collapsed to the prior, bound by it, or worse than what it began as."""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxscore.inference import ProximalScore
from proxscore.posterior.diagnostics.judged import Judged, some

#: NLL of the start (or nats) by which a trained network may be worse than it, and from which on it has diverged.
BEHIND, LOST = 0.1, 10.0
#: Nats per row by which the draws' average, or a single draw, may be worse than the mean.
WORSE, WORSE_ALONE = 0.1, 1.0
#: Share of the prior in the precision, and share of the numbers, of what has collapsed to it.
PRIOR_SHARE, MOST = 0.8, 0.95
#: Prior standard deviations (root-mean-square) from the prior's mean, which no weights of that prior are.
FAR_FROM_PRIOR = 4.0


@dataclass(frozen=True)
class Losses:
    """Validation NLL (nats per row): of the mean weights, of a single draw (average over draws), of the draws' average.

    And the training NLL of the first step, where it is known: what the network was before it learned anything.
    """

    mean: float
    draw: float
    average: float
    start: float | None = None

    @property
    def lost(self) -> float:
        """How much worse the mean is than the network at the start, relative to the NLL there, or to one nat."""
        return 0.0 if self.start is None else (self.mean - self.start) / max(abs(self.start), 1.0)


def collapsed(optimizer: ProximalScore, judged: list[Judged], moving: set[str]) -> list[str]:
    """Tensors that do not move and whose precision is the prior's, in a line; ``moving``: names of those that do."""
    rows = [each.probed for each in judged if each.probed.name not in moving]
    at_prior = [p for p in rows if (p.prior_share > PRIOR_SHARE).double().mean().item() >= MOST]
    if not at_prior:
        return []
    share = sum(p.numbers for p in at_prior) / sum(each.probed.numbers for each in judged)
    advice = (
        f"the data say little there at temperature {optimizer.temperature:g}: widen the prior (prior.scales), lower the "
        "temperature, or take point estimates (prior.point)"
    )
    if share >= MOST:
        return [f"the whole posterior has collapsed to the prior ({100 * share:.0f} % of its numbers); {advice}"]
    return [f"the posterior of {some([p.name for p in at_prior])} has collapsed to the prior; {advice}"]


def too_tight(judged: list[Judged]) -> list[str]:
    """Tensors whose weights the prior does not allow, in a line."""
    distances = {each.probed.name: each.probed.prior_distance.square().mean().sqrt().item() for each in judged}
    far = {name: distance for name, distance in distances.items() if distance > FAR_FROM_PRIOR}
    if not far:
        return []
    return [
        f"the prior of {some(list(far))} is tighter than its weights need: they are {max(far.values()):.2g} of its standard "
        "deviations from its mean; widen it (prior.scales), or centre it on the initial weights (prior.mean)"
    ]


def losses_failed(losses: Losses | None, pareto_k: float | None) -> list[str]:
    """What validation data and Pareto k-hat say against a posterior: a line for each."""
    lines = []
    if losses is not None and losses.lost > BEHIND:
        lines.append(
            f"its mean predicts validation data worse (NLL {losses.mean:.4g}) than the network did the training data at the "
            f"first step ({losses.start:.4g}): lower lr or max_mean_step, or look for bad inputs"
        )
    if losses is not None:
        average, alone = losses.average - losses.mean, losses.draw - losses.mean
        if average > WORSE or alone > WORSE_ALONE or math.isnan(average + alone):
            lines.append(
                f"its draws predict much worse than its mean (validation NLL {losses.average:.3f} of their average, "
                f"{losses.draw:.3f} of one, {losses.mean:.3f} of the mean): it is too wide for this network: use a larger "
                "initial_precision or effective data size, or a tighter prior"
            )
    if pareto_k is not None and pareto_k > 0.7:
        lines.append(f"Pareto k-hat is {pareto_k:.2f}: q misses a part of the posterior; take a richer family")
    return lines
