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
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.inference import ProximalScore
from proxscore.inference.convergence import Probed
from proxscore.posterior.convergence import Verdict

#: Root-mean-square of k - 1: of a tensor that has arrived, and what it must be told from (half the right sds everywhere).
ARRIVED, HALVED = 0.4, 0.75
#: Of the average of k, beyond twice its standard error.
BIASED = 0.2
#: NLL of the start (or nats) by which a trained network may be worse than it, and from which on it has diverged.
BEHIND, LOST = 0.1, 10.0
#: Standard deviations that a mean may be away, and what it must be told from.
NEAR, AWAY = 0.5, 1.0
#: Factor between variances beyond which a single number counts, and share of a tensor's numbers from which on.
ONE_OFF, MANY = 1.5**2, 0.05
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


@dataclass
class _Judged:
    """A tensor or block: S^2 and U^2 with their standard errors, and what else is said of it."""

    probed: Probed
    spread: float
    spread_error: float
    outside: float
    score: float
    score_error: float
    lag: float

    @property
    def precision_off(self) -> bool:
        """Certainly."""
        far = self.spread > ARRIVED**2 and self.spread - 2 * self.spread_error > 0
        return far or self.biased or self.outside > MANY

    @property
    def biased(self) -> bool:
        """All of them alike, by little."""
        k, errors = self.probed.curvature, self.probed.curvature_error
        off, error = abs(k.mean().item() - 1), (2 * errors.square().sum()).sqrt().item() / len(k)
        return off > BIASED and 2 * error < off

    @property
    def precision_told(self) -> bool:
        return self.spread + 2 * self.spread_error < HALVED**2

    @property
    def mean_off(self) -> bool:
        far = self.score > NEAR**2 and self.score - 2 * self.score_error > 0
        return far or self.lag > NEAR

    @property
    def mean_told(self) -> bool:
        return self.score + 2 * self.score_error < AWAY**2


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
    found = _merged(_gathered(optimizer))
    shared = dict(temperature=optimizer.temperature, data_size=float(optimizer.data_size), rows=rows)
    notes, metrics = _notes(optimizer, rows), _of_losses(losses, pareto_k)
    broken = [p.name for p in found if not bool((p.log_precision.isfinite() & p.lag.nan_to_num().isfinite()).all())]
    if broken:
        return Verdict("diverged", (f"the posterior of {_some(broken)} is not finite",), (), notes, metrics, **shared)  # type: ignore[arg-type]
    judged = [_judge(each) for each in found]
    seen = [each for each in judged if each.probed.steps > 1]
    if not seen:
        few: tuple[str, ...] = ("too few steps to tell: train longer",) if found else ()
        failures = tuple(_losses_failed(losses, pareto_k))
        return Verdict("still moving" if found else "converged", few, failures, notes, metrics, **shared)  # type: ignore[arg-type]
    reasons = (*_precision(optimizer, seen), *_mean(optimizer, seen))
    answer = "diverged" if losses is not None and losses.lost > LOST else "still moving" if reasons else "converged"
    moving = {name for each in seen if each.precision_off or not each.precision_told for name in [each.probed.name]}
    failures = (*_losses_failed(losses, pareto_k), *_collapsed(optimizer, seen, moving), *_too_tight(seen))
    metrics = {name: value for name, value in (_metrics(seen) | metrics).items() if math.isfinite(value)}
    return Verdict(answer, reasons, failures, notes, metrics, **shared)  # type: ignore[arg-type]


# ------------------------------------------------------------ what was seen


def _gathered(optimizer: ProximalScore) -> list[Probed]:
    found = list(optimizer.probed())
    sharded = any(isinstance(parameter, DTensor) for _, parameter in optimizer.named_parameters())
    if not (sharded and dist.is_initialized() and dist.get_world_size() > 1):
        return found
    everywhere: list[list[Probed]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, found)
    once = {(probed.name, probed.first): probed for each in everywhere for probed in each if len(probed.curvature)}
    return list(once.values())


def _merged(pieces: Iterable[Probed]) -> list[Probed]:
    """Shards of a tensor together."""
    by_name: dict[str, list[Probed]] = {}
    for piece in pieces:
        if len(piece.curvature):
            by_name.setdefault(piece.name, []).append(piece)
    merged = []
    for shards in by_name.values():
        columns: dict[str, Any] = {
            name: torch.cat([getattr(shard, name) for shard in shards])
            for name, value in vars(shards[0]).items()
            if isinstance(value, Tensor) and not name.startswith("square")
        }
        numbers, steps = sum(shard.numbers for shard in shards), max(shard.steps for shard in shards)
        merged.append(replace(shards[0], numbers=numbers, steps=steps, **columns))
    return merged


def _judge(p: Probed) -> _Judged:
    spread, error = _second_moment(p.curvature - 1, p.curvature_error)
    low, high = p.curvature + 3 * p.curvature_error, p.curvature - 3 * p.curvature_error
    outside = ((low < 1 / ONE_OFF) | (high > ONE_OFF)).double().mean().item()
    if p.coarse:
        count = len(p.curvature)
        off = p.curvature.mean() - 1
        noise = p.curvature_error.square().sum().mul(2).sqrt() / count  # numbers of a pair share their noise
        spread, error, outside = off.square().item(), (2 * off.abs() * noise + noise**2).item(), 0.0
    elif p.square is not None and p.square_error is not None:
        side, diagonal = len(p.square), torch.eye(len(p.square), dtype=torch.bool)
        weight = torch.where(diagonal, 1.0, (p.size - 1) / max(side - 1, 1)).double()
        off, noise = p.square - diagonal.double(), p.square_error
        spread = ((off.square() - noise.square()) * weight).sum().item() / side
        variance = (4 * off.square() * noise.square() + 2 * noise**4) * weight**2
        error = (2 * variance.sum()).sqrt().item() / side  # each number off the diagonal stands there twice
        eigenvalues, edge = torch.linalg.eigvalsh(p.square), 2 * (noise.square().mean() * side).sqrt()
        alone = (eigenvalues + 1.5 * edge < 1 / ONE_OFF) | (eigenvalues - 1.5 * edge > ONE_OFF)
        outside = 1.0 if bool(alone.any()) else 0.0
    score, score_error = _second_moment(p.score, p.score_error)
    lag = p.lag.square().mean().sqrt().item()
    return _Judged(p, spread, error, outside, score, score_error, lag)


def _second_moment(values: Tensor, errors: Tensor) -> tuple[float, float]:
    """mean_i of values^2 without what their errors add, and its standard error."""
    if not bool((values.isfinite() & errors.isfinite()).all()):
        return math.inf if bool(errors.isfinite().all()) else 0.0, math.inf
    moment = (values.square() - errors.square()).mean().item()
    error = (4 * values.square() * errors.square() + 2 * errors**4).sum().sqrt().item() / len(values)
    return moment, error


# ------------------------------------------------------------ what moves


def _precision(optimizer: ProximalScore, judged: list[_Judged]) -> list[str]:
    off = [each for each in judged if each.precision_off]
    lines = []
    for wide in (False, True):
        chosen = [each for each in off if (_center(each) > 1) is wide]
        if chosen:
            lines.append(_precision_line(optimizer, chosen, wide))
    unsure = [each for each in judged if not each.precision_off and not each.precision_told]
    if unsure and not _together(unsure, "spread", HALVED):
        steps = max(each.probed.steps for each in unsure)
        lines.append(
            f"the curvature of {_names(unsure)} is too noisy after {steps:.0f} steps to tell the standard deviations from half "
            "or twice as much: train longer, or use more draws, pairs or larger batches"
        )
    return lines


def _together(unsure: list[_Judged], which: str, limit: float) -> bool:
    """Whether tensors that say too little one by one have arrived as a whole."""
    sizes = [float(len(each.probed.curvature)) for each in unsure]
    total = sum(sizes)
    moment = sum(n * getattr(each, which) for n, each in zip(sizes, unsure, strict=True)) / total
    errors = [n * getattr(each, f"{which}_error") for n, each in zip(sizes, unsure, strict=True)]
    error = math.sqrt(sum(value**2 for value in errors)) / total
    arrived = ARRIVED if which == "spread" else NEAR
    return moment < arrived**2 and moment + 2 * error < limit**2


def _precision_line(optimizer: ProximalScore, off: list[_Judged], wide: bool) -> str:
    worst = max(off, key=lambda each: abs(math.log(max(_center(each), 1e-6))))
    center, error = _center(worst), worst.probed.curvature_error.median().item()
    factor = math.sqrt(center) if wide else max(1 / math.sqrt(max(center, error, 1e-6)), 1.0)
    about = "more than " if not wide and center < error else "about "
    clipped = max(each.probed.clipped.mean().item() for each in off)
    drift = torch.cat([each.probed.drift_log_precision for each in off])
    spread = math.sqrt(max(0.0, *(each.spread for each in off)))
    jitters = drift.square().mean().sqrt().item() > 0.3 and drift.mean().abs().item() < 0.1
    if jitters and 0.5 < center < 2:
        return (
            f"precision of {_names(off)} still moves about (by {drift.square().mean().sqrt().item():.2g} in its logarithm over "
            f"the last steps, k off by {spread:.2g}): use a larger penalty.precision (now {optimizer.penalty.precision:g}), a "
            "cosine penalty.precision_schedule, or more draws"
        )
    if 0.8 < center < 1.25:
        what = f"for some of its numbers (k is off by {spread:.2g})"
    elif about == "more than " and factor < 1.5:
        what = f"by how much, the noise of k hides (k = {center:.2g} ± {error:.2g} where 1 is the optimum)"
    else:
        what = f"by a factor of {about}{factor:.2g} (k = {center:.2g} where 1 is the optimum)"
    start = "larger" if wide else "smaller"
    advice = (
        f"lower penalty.precision (now {optimizer.penalty.precision:g}) or train longer, or start at a {start} "
        "initial_precision"
    )
    if 0.5 < center < 2 and max(each.probed.clipped.mean().item() for each in off) < 0.5 and drift.abs().mean() < 0.1:
        advice = (
            f"let the precision's noise average out: a larger penalty.precision (now {optimizer.penalty.precision:g}) towards "
            "the end (a cosine penalty.precision_schedule), more draws or pairs, and train longer"
        )
    if clipped > 0.5:
        advice = f"raise max_log_precision_step (now {optimizer.max_log_precision_step:g}, which cut most steps), or {advice}"
    if any(each.probed.coarse for each in off):
        advice = "raise solver.lr or train longer"
    return f"standard deviations of {_names(off)} are too {'large' if wide else 'small'} {what}: {advice}"


def _center(judged: _Judged) -> float:
    """A typical k: the mean, where the numbers say little one by one."""
    k, error = judged.probed.curvature, judged.probed.curvature_error
    if judged.probed.square is not None and judged.outside and 0.8 < k.mean().item() < 1.25:
        values = torch.linalg.eigvalsh(judged.probed.square)
        return values[-1].item() if values[-1] * values[0].abs() > 1 else max(values[0].item(), 0.0)
    if judged.outside > MANY and judged.outside < 0.5:  # of those that are off
        chosen = ((k + 3 * error < 1 / ONE_OFF) | (k - 3 * error > ONE_OFF)) & k.isfinite()
        if bool(chosen.any()):
            return max(k[chosen].median().item(), 0.0)
    return max(k.nanmean().item(), 0.0)


def _mean(optimizer: ProximalScore, judged: list[_Judged]) -> list[str]:
    lines = []
    far = [each for each in judged if each.score > NEAR**2 and each.score - 2 * each.score_error > 0]
    if far:
        distance = math.sqrt(max(each.score for each in far))
        clipped = max(each.probed.clipped_mean.mean().item() for each in far)
        steps = (
            f"raise max_mean_step (now {optimizer.max_mean_step:g}, which cut {100 * clipped:.0f} % of the steps), "
            if clipped > 0.1
            else ""
        )
        rate = f"lower penalty.mean (now {optimizer.penalty.mean:g})"
        if optimizer.metric == "adaptive":
            rate = f"raise lr (now {optimizer.base_lr:g})"
        slower = f"{steps}{rate}"
        if any(each.probed.coarse for each in far):
            slower = "raise solver.lr"
        lines.append(
            f"mean of {_names(far)} is about {distance:.2g} standard deviations from where its score is zero: {slower} or "
            "train longer"
        )
    jitter = [each for each in judged if each not in far and each.lag > NEAR]
    if jitter:
        distance = max(each.lag for each in jitter)
        calmer = "lower lr" if optimizer.metric == "adaptive" else "raise penalty.mean"
        lines.append(
            f"mean of {_names(jitter)} still moves by {distance:.2g} standard deviations about its average over the last steps: "
            f"let its step fall to zero (a cosine penalty.mean_schedule), {calmer}, or train longer"
        )
    unsure = [each for each in judged if not each.mean_off and not each.mean_told]
    if unsure and not _together(unsure, "score", AWAY):
        lines.append(
            f"the score of {_names(unsure)} is too noisy over the last steps to tell whether the mean is within a standard "
            "deviation: train longer, or use larger batches"
        )
    return lines


# ------------------------------------------------------------ what is wrong though nothing moves


def _collapsed(optimizer: ProximalScore, judged: list[_Judged], moving: set[str]) -> list[str]:
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
    return [f"the posterior of {_some([p.name for p in at_prior])} has collapsed to the prior; {advice}"]


def _too_tight(judged: list[_Judged]) -> list[str]:
    distances = {each.probed.name: each.probed.prior_distance.square().mean().sqrt().item() for each in judged}
    far = {name: distance for name, distance in distances.items() if distance > FAR_FROM_PRIOR}
    if not far:
        return []
    return [
        f"the prior of {_some(list(far))} is tighter than its weights need: they are {max(far.values()):.2g} of its standard "
        "deviations from its mean; widen it (prior.scales), or centre it on the initial weights (prior.mean)"
    ]


def _losses_failed(losses: Losses | None, pareto_k: float | None) -> list[str]:
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


def _notes(optimizer: ProximalScore, rows: int | None) -> tuple[str, ...]:
    notes = []
    cold = rows is not None and optimizer.scale > rows * (1 + 1e-6)  # said beside the answer
    if not cold and (optimizer.temperature != 1 or (rows is not None and not math.isclose(optimizer.data_size, rows))):
        notes.append("the likelihood counts other than once for each row: intervals are not credible intervals")
    solved = sorted({b.family.kind for b in optimizer.blocks() if b.probes.coarse})
    if solved:
        notes.append(f"{', '.join(solved)}: judged by the scale of all numbers together, and by drift")
    return tuple(notes)


def _metrics(judged: list[_Judged]) -> dict[str, float]:
    """The metrics of all tensors: averages over their numbers, and the worst."""
    weights = [float(each.probed.numbers) for each in judged]

    def average(column: str) -> float:
        values = [getattr(each.probed, column).mean().item() for each in judged]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def rms(column: str) -> float:
        values = [getattr(each.probed, column).square().mean().item() for each in judged]
        return math.sqrt(max(sum(w * v for w, v in zip(weights, values, strict=True)), 0.0) / sum(weights))

    errors = [
        (each.probed.curvature_error.square().sum() * 2).sqrt().item() / len(each.probed.curvature) for each in judged
    ]
    return {
        "k": average("curvature"),
        "k_error": math.sqrt(sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True))) / sum(weights),
        "k_off_max": math.sqrt(max(max(each.spread, 0.0) for each in judged)),
        "score_mean_sd_max": math.sqrt(max(max(each.score, 0.0) for each in judged)),
        "lag_mean_sd_max": max(each.lag for each in judged),
        "drift_mean_sd": rms("drift"),
        "drift_log_precision": rms("drift_log_precision"),
        "clipped_precision": average("clipped"),
        "clipped_mean": average("clipped_mean"),
        "prior_share": average("prior_share"),
        "steps_seen": max(each.probed.steps for each in judged),
    } | _conditions(judged)


def _conditions(judged: list[_Judged]) -> dict[str, float]:
    values = [each.probed.condition for each in judged if math.isfinite(each.probed.condition)]
    return {"condition_max": max(values)} if values else {}


def _of_losses(losses: Losses | None, pareto_k: float | None) -> dict[str, float]:
    found = (
        {} if losses is None else {f"nll_{name}": value for name, value in vars(losses).items() if value is not None}
    )
    return found if pareto_k is None else found | {"pareto_k": pareto_k}


def _names(judged: list[_Judged]) -> str:
    return _some([name for each in judged for name in each.probed.name.split(", ")])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
