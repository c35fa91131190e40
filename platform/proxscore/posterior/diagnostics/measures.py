"""The numbers behind a verdict, over all tensors, as they are recorded."""

from __future__ import annotations

import math

from proxscore.posterior.diagnostics.failures import Losses
from proxscore.posterior.diagnostics.judged import Judged


def metrics_of(judged: list[Judged]) -> dict[str, float]:
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


def _conditions(judged: list[Judged]) -> dict[str, float]:
    values = [each.probed.condition for each in judged if math.isfinite(each.probed.condition)]
    return {"condition_max": max(values)} if values else {}


def metrics_of_losses(losses: Losses | None, pareto_k: float | None) -> dict[str, float]:
    """The metrics of the losses and of Pareto k-hat, as far as they are known."""
    found = (
        {} if losses is None else {f"nll_{name}": value for name, value in vars(losses).items() if value is not None}
    )
    return found if pareto_k is None else found | {"pareto_k": pareto_k}
