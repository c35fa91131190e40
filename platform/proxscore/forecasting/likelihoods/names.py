"""Likelihoods by the name that ``task.model.likelihood`` has, and which networks know which.

A new family is a file beside this one, a line in ``LIKELIHOODS``, and its name in :mod:`proxscore.forecasting.task`.
"""

from __future__ import annotations

from proxscore.config import ConfigError
from proxscore.forecasting.distributions import Normal, StepDistribution, StudentT
from proxscore.forecasting.likelihoods.amounts import ZeroInflatedLogNormal
from proxscore.forecasting.likelihoods.counts import NegativeBinomial, ZeroInflatedNegativeBinomial
from proxscore.forecasting.likelihoods.lognormal import LogNormal
from proxscore.forecasting.likelihoods.normal_mixture import NormalMixture
from proxscore.forecasting.likelihoods.quantiles import Quantiles
from proxscore.forecasting.likelihoods.truncated import TruncatedNormal, TruncatedStudentT

LIKELIHOODS: dict[str, type[StepDistribution]] = {
    "student_t": StudentT,
    "normal": Normal,
    "truncated_student_t": TruncatedStudentT,
    "truncated_normal": TruncatedNormal,
    "lognormal": LogNormal,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
    "zero_inflated_lognormal": ZeroInflatedLogNormal,
    "normal_mixture": NormalMixture,
    "quantiles": Quantiles,
}

#: Which take the place of one that a network does not know.
_NEXT = {
    "zero_inflated_negative_binomial": "negative_binomial",
    "zero_inflated_lognormal": "truncated_student_t",
    "negative_binomial": "truncated_student_t",
    "truncated_student_t": "student_t",
}


def known(network: str) -> tuple[str, ...]:
    """The likelihoods that a network can have: DeepAR samples by those of GluonTS, step by step; Koopa has the same noise for all
    windows, which is a width and, of Student's t, degrees of freedom."""
    if network == "DeepAR":
        return "student_t", "normal"
    if network == "Koopa":
        return tuple(name for name, family in LIKELIHOODS.items() if {*family.names} <= {"df", "loc", "scale"})
    return tuple(LIKELIHOODS)


def check(name: str, network: str) -> None:
    """Refuse a likelihood that a network does not know.

    Raises:
        ConfigError: names those that it knows.
    """
    if name not in known(network):
        raise ConfigError(
            f"task.model.likelihood={name}: {network} does not know it; take {', '.join(known(network))}, or another network"
        )


def nearest(name: str, network: str) -> str:
    """The likelihood itself, or the one that takes its place with this network."""
    while name not in known(network):
        name = _NEXT[name]
    return name
