"""Why a posterior is still moving, in words: what is off by how much, and which setting would change it."""

from __future__ import annotations

import math

import torch

from proxscore.inference import ProximalScore
from proxscore.posterior.diagnostics.judged import AWAY, HALVED, MANY, NEAR, ONE_OFF, Judged, names_of, together


def precision_reasons(optimizer: ProximalScore, judged: list[Judged]) -> list[str]:
    """Why the standard deviations of some tensors have not arrived, or cannot be told to have: a line for each reason."""
    off = [each for each in judged if each.precision_off]
    lines = []
    for wide in (False, True):
        chosen = [each for each in off if (_center(each) > 1) is wide]
        if chosen:
            lines.append(_precision_line(optimizer, chosen, wide))
    unsure = [each for each in judged if not each.precision_off and not each.precision_told]
    if unsure and not together(unsure, "spread", HALVED):
        steps = max(each.probed.steps for each in unsure)
        lines.append(
            f"the curvature of {names_of(unsure)} is too noisy after {steps:.0f} steps to tell the standard deviations from half "
            "or twice as much: train longer, or use more draws, pairs or larger batches"
        )
    return lines


def _precision_line(optimizer: ProximalScore, off: list[Judged], wide: bool) -> str:
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
            f"precision of {names_of(off)} still moves about (by {drift.square().mean().sqrt().item():.2g} in its logarithm over "
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
    return f"standard deviations of {names_of(off)} are too {'large' if wide else 'small'} {what}: {advice}"


def _center(judged: Judged) -> float:
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


def mean_reasons(optimizer: ProximalScore, judged: list[Judged]) -> list[str]:
    """Why the means of some tensors have not arrived, or cannot be told to have: a line for each reason."""
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
            f"mean of {names_of(far)} is about {distance:.2g} standard deviations from where its score is zero: {slower} or "
            "train longer"
        )
    jitter = [each for each in judged if each not in far and each.lag > NEAR]
    if jitter:
        distance = max(each.lag for each in jitter)
        calmer = "lower lr" if optimizer.metric == "adaptive" else "raise penalty.mean"
        lines.append(
            f"mean of {names_of(jitter)} still moves by {distance:.2g} standard deviations about its average over the last "
            f"steps: let its step fall to zero (a cosine penalty.mean_schedule), {calmer}, or train longer"
        )
    unsure = [each for each in judged if not each.mean_off and not each.mean_told]
    if unsure and not together(unsure, "score", AWAY):
        lines.append(
            f"the score of {names_of(unsure)} is too noisy over the last steps to tell whether the mean is within a standard "
            "deviation: train longer, or use larger batches"
        )
    return lines
