"""Whether a posterior can be trusted: whether it arrived, its distance from the target, and how far its precisions moved."""

from proxscore.posterior.diagnostics.drift import Drift, drift
from proxscore.posterior.diagnostics.failures import Losses
from proxscore.posterior.diagnostics.gaps import Gaps, gaps
from proxscore.posterior.diagnostics.pareto import pareto_k
from proxscore.posterior.diagnostics.verdict import verdict

__all__ = ["Drift", "Gaps", "Losses", "drift", "gaps", "pareto_k", "verdict"]
