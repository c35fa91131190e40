"""``fit``: the posterior of a density over named tensors, by proximal score matching or by a method for small problems."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.density.target import Function, Target
from proxscore.density.width import start_precision
from proxscore.inference import FullCovariance, MeanField, Prior, ProximalScore, noise
from proxscore.inference.convergence import RunawayError
from proxscore.inference.families import Family
from proxscore.inference.layout import Layout
from proxscore.inference.presets import exact
from proxscore.methods.references import GaussianApproximation, advi, bam, gsm
from proxscore.posterior import Posterior
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.diagnostics import verdict
from proxscore.posterior.posterior import Joint

#: Up to so many numbers, the default family is a full covariance.
FULL = 200

#: The methods of :mod:`proxscore.methods.references`, and whether noisy scores leave their fixed point where it is.
REFERENCES: dict[str, tuple[Callable[..., GaussianApproximation], bool]] = {
    "bam": (bam.fit, False),
    "gsm": (gsm.fit, False),
    "advi": (advi.fit, True),
}
METHODS = ("proximal_score", *REFERENCES)


def fit(
    log_density: Function,
    start: Mapping[str, Tensor],
    *,
    data: Sequence[Tensor] | Tensor | None = None,
    batch_size: int | None = None,
    log_prior: Function | None = None,
    family: Family | None = None,
    method: str = "proximal_score",
    steps: int | None = None,
    draws: int | None = None,
    initial_sd: Mapping[str, Tensor | float] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Posterior:
    """The posterior of a log density that is a function of named tensors.

    Whole, the density holds its own prior, and constants do not matter:

        def log_density(t):                       # a dictionary of tensors, shaped as in ``start``, to a scalar
            tau = t["log_tau"].exp()
            effects = t["mu"] + tau * t["eta"]
            return Normal(effects, sigma).log_prob(y).sum() + Normal(0, 1).log_prob(t["eta"]).sum() + ...

        posterior = fit(log_density, {"mu": torch.zeros(()), "log_tau": torch.zeros(()), "eta": torch.zeros(8)})

    In mini-batches, ``log_density(tensors, *rows)`` gives one number per row; these are **summed over all rows** (a batch's sum
    counts N / B times), and ``log_prior(tensors)`` is what is **counted once**:

        posterior = fit(log_likelihood, start, data=(x, y), batch_size=100, log_prior=log_prior)

    **Constraints** are the caller's: the tensors range over all real numbers. Of a positive scale take the logarithm, with the
    Jacobian if the prior is on the scale itself: tau = exp(log_tau), and + log_tau in the density. The posterior is then that
    of log_tau; ``posterior.sample(n)["log_tau"].exp()`` are draws of tau.

    **Which method.** ``proximal_score`` takes mini-batches, any family and any number of tensors. Of a whole density of up to
    about 100 numbers, ``bam`` (batch and match) needs fewer gradient evaluations, if the start is within a few standard
    deviations: it takes the large scores of a mean that is far away for a large precision, and crawls. With noisy scores its
    variance collapses, so it refuses batches.

    Args:
        log_density, start, data, batch_size, log_prior: see above and :class:`proxscore.density.Target`. Take float64 for small
            problems: ``torch.zeros(8, dtype=torch.float64)``.
        family: of ``proximal_score``; none: a full covariance of up to 200 numbers, beyond a mean field.
        method: ``proximal_score``, ``bam``, ``gsm`` or ``advi``. The last three have a full covariance.
        steps: none: 1,000, of ``bam`` and ``gsm`` 500, of ``advi`` 10,000.
        draws: none: for ``proximal_score`` (pairs, two gradients each) see :func:`proxscore.inference.presets.exact`; else 8.
        initial_sd: by name, the standard deviations to start from (numbers, or tensors of the tensor's shape); of the others,
            the curvature at the start decides. Some ten times too large or a thousand times too small still arrives.
        seed: of draws and rows.
        settings: of :class:`proxscore.inference.ProximalScore`, in place of the preset's.

    Returns:
        A posterior with the tensors' names and shapes: ``mean`` (a dictionary), ``sd()``, ``covariance()``, ``sample(n)``.

    Raises:
        ConfigError: a function, a start or a setting that cannot serve, in one line.
        FloatingPointError: the density is not finite where the iteration went.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    target = Target(log_density, start, data, batch_size, log_prior, seed)
    batched = bool(target.data) and target.batch_size < target.rows
    default_steps = {"proximal_score": 1000, "advi": 10_000}
    steps = default_steps.get(method, 500) if steps is None else steps
    if steps < 1 or (draws is not None and draws < 1):
        raise ConfigError(f"steps is {steps}, draws is {draws}; they must be at least 1")
    if method != "proximal_score":
        for setting, value in (("family", family), *settings.items()):
            if value is not None:
                raise ConfigError(
                    f"{setting} is for method=proximal_score; {method} has a full covariance and settings of its own"
                )
        if batched and not REFERENCES[method][1]:
            raise ConfigError(
                f"method={method} with batch_size={batch_size}: with noisy scores its variance is wrong; leave batch_size out"
            )
    precision = start_precision(target, initial_sd or {}, seed)
    description = {"density": {"method": method, "steps": steps, "seed": seed}}
    if method == "proximal_score":
        family = family or (FullCovariance() if target.numbers <= FULL else MeanField())
        return _proximal(target, precision, family, steps, draws, seed, settings, description)
    found = _reference(method, target, precision, steps, draws or 8, seed)
    return _joint_gaussian(target, found, description)


def _proximal(
    target: Target,
    precision: Tensor,
    family: Family,
    steps: int,
    draws: int | None,
    seed: int,
    settings: Mapping[str, Any],
    description: dict[str, Any],
) -> Posterior:
    tensors = target.tensors(target.vector())
    chosen = exact(steps, target.numbers, family, draws) | dict(settings)
    # Names of its own: the optimizer leaves out what wrappers of modules add to names, and a density may call a tensor so.
    names = {f"tensor{index}": name for index, name in enumerate(tensors)}
    optimizer = ProximalScore(
        list(zip(names, tensors.values(), strict=True)),
        1.0,
        prior=Prior.flat(point=()),
        initial_precision=1.0,
        seed=seed,
        **chosen,
    )
    _spread(optimizer, dict(zip(names, precision.split(target.sizes), strict=True)))
    for step, rows in enumerate(itertools.islice(target.batches(), steps)):
        for _ in optimizer.draws():
            (-target.log_density(tensors, rows)).backward()
        try:
            optimizer.step()
        except RunawayError as error:
            raise RunawayError(_told(error.name, names), error.what, error.wider) from error
        except FloatingPointError as error:
            raise FloatingPointError(
                f"log_density or its gradient is not finite at draws of step {step}: start nearer to its mode, give a smaller "
                "initial_sd, or take logarithms of what must be positive"
            ) from error
    mean = {name: tensor.detach() for name, tensor in tensors.items()}
    judged = verdict(optimizer)
    judged = replace(
        judged,
        reasons=tuple(_told(line, names) for line in judged.reasons),
        failures=tuple(_told(line, names) for line in judged.failures),
        notes=tuple(_told(line, names) for line in judged.notes),
    )
    found = Posterior(mean, description=description | {VERDICT: judged.as_json()})
    found.precision = {names[name]: state["precision"] for name, _, state in optimizer.sampled()}
    for block in optimizer.blocks():
        members = [(names[name], tensor, first) for name, tensor, first in block.layout.members]
        found.joint.append(Joint(Layout(block.family, members), block.state))
    for value in found.sd().values():
        if not value.isfinite().all():
            raise FloatingPointError("the posterior's standard deviations are not finite: the iteration diverged")
    return found.gather()


def _told(line: str, names: Mapping[str, str]) -> str:
    """Return the verdict with the density's names in place of the optimizer's."""
    return re.sub(r"\btensor\d+\b", lambda found: names.get(found[0], found[0]), line)


def _spread(optimizer: ProximalScore, precision: Mapping[str, Tensor]) -> None:
    """Start at these precisions, number by number."""
    for name, _, state in optimizer.sampled():
        state["precision"].copy_(precision[name].view_as(state["precision"]))
    for block in optimizer.blocks():
        block.set_initial_precision(torch.cat([precision[member.name] for member in block.members]))


def _reference(
    method: str, target: Target, precision: Tensor, steps: int, draws: int, seed: int
) -> GaussianApproximation:
    """In coordinates z = (theta - start) / sd at the start, so that numbers of any scale are of one."""
    solve, _ = REFERENCES[method]
    batches, origin, sd = target.batches(), target.vector(), precision.rsqrt()

    def score(z: Tensor, _: torch.Generator) -> Tensor:
        rows = next(batches)
        return torch.stack([sd * target.score(origin + sd * each.to(origin), rows) for each in z])

    generator = torch.Generator(device=precision.device).manual_seed(noise.key(seed, method) >> 1)
    rate: dict[str, Any] = {}
    if method == "bam":  # from the paper's first rate to an average over some hundred steps, at the pace of the run
        first = draws * target.numbers
        rate["learning_rate"] = lambda step: first * (100 * first) ** (-step / steps)
    unit = torch.eye(target.numbers, dtype=torch.float64, device=origin.device)
    found = solve(score, unit.new_zeros(len(unit)), unit, steps=steps, draws=draws, generator=generator, **rate)
    wide = sd.to(unit)
    return GaussianApproximation(origin.to(unit) + wide * found.mean, wide[:, None] * found.covariance * wide)


def _joint_gaussian(target: Target, found: GaussianApproximation, description: dict[str, Any]) -> Posterior:
    mean = target.tensors(found.mean, grad=False)
    like = target.vector()
    layout = Layout(FullCovariance(), [(name, tensor, 0) for name, tensor in mean.items()])
    state = {"mean": found.mean.to(like), "factor": torch.linalg.cholesky(found.covariance).to(like)}
    return Posterior(mean, description=description, joint=[Joint(layout, state)]).gather()
