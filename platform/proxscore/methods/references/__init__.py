"""Black-box variational inference for small problems: what proximal score matching is compared with.

Gaussians with a D x D covariance, in float64, on one device; one file per algorithm, each with the function

    fit(score, mean, covariance, *, steps, draws, generator, trace=None, ...) -> GaussianApproximation

    gsm    Gaussian score matching, arXiv 2307.07849
    bam    batch and match, arXiv 2402.14758
    advi   the ELBO by reparametrisation, mean-field and full-rank, arXiv 1603.00788

All see the target through its score alone, which may be noisy, and call it once per step with ``draws`` draws: at
equal ``evaluations`` (see ``trace``) they have cost the same.
"""

from proxscore.methods.references import advi, bam, gsm
from proxscore.methods.references.gaussian import GaussianApproximation, Rate, Score, Trace

__all__ = ["GaussianApproximation", "Rate", "Score", "Trace", "advi", "bam", "gsm"]
