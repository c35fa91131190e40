"""Whether a posterior can be trusted: its distance from the target, and whether its precisions moved at all."""

from proxscore.posterior.diagnostics.drift import Drift, drift, stuck
from proxscore.posterior.diagnostics.gaps import Gaps, gaps
from proxscore.posterior.diagnostics.pareto import pareto_k

__all__ = ["Drift", "Gaps", "drift", "gaps", "pareto_k", "stuck"]
