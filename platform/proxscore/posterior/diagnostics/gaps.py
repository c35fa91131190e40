"""How far a posterior is from its target: score-matching loss, evidence lower bound, Pareto k-hat.

All three compare q with the target p(theta) = p(data | theta)^(1 / temperature) p(theta) at draws from q, by one forward
and backward pass over the data per draw; or with a density that is a function of named tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError
from proxscore.inference import MeanField, Prior
from proxscore.inference.families import Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.names import named_parameters
from proxscore.posterior.calls import Batches, outputs_of, pairs_of, to_device
from proxscore.posterior.diagnostics.pareto import FEWEST_DRAWS, pareto_k
from proxscore.posterior.posterior import Posterior


class Likelihood(Protocol):
    """Anything with a negative log-likelihood per row, as those of :mod:`proxscore.inference.likelihoods`."""

    def nll(self, outputs: Tensor, targets: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Gaps:
    """Distances of a posterior q from its target; of S draws.

    Attributes:
        dimension: D, the numbers that are sampled.
        score_losses: (S,), 1/(2 D) || C^T (grad log q(theta) - s-hat(theta)) ||^2 of each draw.
        log_ratios: (S,), log p(data | theta) / temperature + log p(theta) - log q(theta) of each draw, in nats.
        full_data: whether each draw was scored on all rows.
        flat: names of the sampled parameters with a flat prior; log p(theta) is without them.
    """

    dimension: int
    score_losses: Tensor
    log_ratios: Tensor
    full_data: bool
    flat: tuple[str, ...]

    @property
    def score_loss(self) -> float:
        """Score-matching loss per number, in whitened units: 0 where q is the target, 1/2 where the target is flat.

        Of a Gaussian target with precision A and mean m + C delta, it is (||C^T A C - I||_F^2 + ||C^T A C delta||^2) / (2 D).
        With scores of mini-batches it holds their noise power, too, which no q can lower.
        """
        return self.score_losses.mean().item()

    @property
    def score_loss_error(self) -> float:
        """Standard error of ``score_loss`` over the draws."""
        return _standard_error(self.score_losses)

    @property
    def elbo(self) -> float:
        """Evidence lower bound in nats: E_q[log p(data | theta) / temperature + log p(theta) - log q(theta)]

        = log evidence - KL(q || posterior). At temperature 1, with no flat prior and no point estimates, the evidence is
        p(data); with flat priors the bound is up to a constant, and point estimates are held at their values.
        """
        return self.log_ratios.mean().item()

    @property
    def elbo_error(self) -> float:
        """Standard error of ``elbo`` over the draws; zero where q is the posterior."""
        return _standard_error(self.log_ratios)

    @property
    def pareto_k(self) -> float:
        """Pareto k-hat of the importance ratios; see :mod:`proxscore.posterior.diagnostics.pareto`.

        For tens of numbers (a small model, a last layer): among thousands every approximation is above 0.7.

        Raises:
            ValueError: fewer than 100 draws, or mini-batch scores, whose noise would be taken for the tail.
        """
        if not self.full_data:
            raise ValueError("Pareto k-hat needs every draw scored on all rows: leave batches_per_draw out")
        return pareto_k(self.log_ratios)

    def metrics(self) -> dict[str, float]:
        """The numbers to record, by name; k-hat only where it can be had."""
        names = ("score_loss", "score_loss_error", "elbo", "elbo_error")
        found = {name: getattr(self, name) for name in names}
        return found | ({"pareto_k": self.pareto_k} if self._has_tail else {})

    @property
    def _has_tail(self) -> bool:
        return self.full_data and len(self.log_ratios) >= FEWEST_DRAWS

    def lines(self) -> list[str]:
        """The lines that tell a user of each distance."""
        noise = "" if self.full_data else "; it holds the noise of mini-batch scores"
        flat = f"; without the flat prior of {_some(self.flat)}" if self.flat else ""
        lines = [
            f"score-matching loss {self.score_loss:.4g} +- {self.score_loss_error:.2g} for each of {self.dimension:,} numbers "
            f"(0: the exact posterior){noise}",
            f"ELBO {self.elbo:.6g} +- {self.elbo_error:.2g} nats{flat}",
        ]
        try:
            k = self.pareto_k
        except ValueError as error:
            return [*lines, str(error)]
        verdict = "q misses a part of the posterior" if k > 0.7 else "q is usable" if k > 0.5 else "q is close"
        return [*lines, f"Pareto k-hat {k:.2f}: {verdict} (good below 0.5, usable below 0.7)"]


@dataclass
class _Part:
    """Parameters that a family describes together, and their prior. The mean-field ones come one by one."""

    family: Family
    state: State
    parameters: dict[str, nn.Parameter]
    prior_precision: dict[str, float]
    prior_mean: dict[str, Tensor]

    def compare(self, likelihood_score: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """|| C^T (grad log q - s-hat) ||^2 and log p(theta) - log q(theta), at the weights."""
        like = self.family.mean(self.state)
        weights = torch.cat([p.detach().reshape(-1).to(like) for p in self.parameters.values()])
        log_prior, scores = like.new_zeros((), dtype=torch.float64), []
        for name, parameter in self.parameters.items():
            score, precision = likelihood_score[name].to(like).reshape(-1), self.prior_precision[name]
            if precision > 0:
                offset = parameter.detach().to(like) - self.prior_mean.get(name, like.new_zeros(())).to(like)
                score = score - precision * offset.reshape(-1)
                constant = 0.5 * offset.numel() * math.log(precision / (2 * math.pi))
                log_prior += constant - 0.5 * precision * offset.double().square().sum()
            scores.append(score)
        difference = self.family.score(self.state, weights, whole) - torch.cat(scores)
        log_q = self.family.log_prob(self.state, weights, whole)
        return self.family.norm(self.state, difference, whole).double(), log_prior - log_q


@overload
def gaps(
    log_density: Callable[[dict[str, Tensor]], Tensor], posterior: Posterior, /, *, draws: int = 16, seed: int = 0
) -> Gaps: ...


@overload
def gaps(
    module: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    posterior: Posterior,
    *,
    data_size: float,
    prior: Prior,
    temperature: float = 1.0,
    draws: int = 16,
    seed: int = 0,
    batches_per_draw: int | None = None,
) -> Gaps: ...


def gaps(module: Any, likelihood: Any, *arguments: Any, **settings: Any) -> Gaps:
    """Score-matching loss, ELBO and Pareto k-hat of a posterior, at independent draws from it.

    ``gaps(log_density, posterior)`` compares it with a log density of named tensors (a dictionary, as
    :meth:`Posterior.draw` gives them) to a scalar, which holds its own prior; see :func:`proxscore.density.fit`. Constants that
    it leaves out shift the ELBO. ``draws`` and ``seed`` are as below. The other form is for networks:

    Costs one forward and backward pass over the data per draw, in the precision of the weights and in evaluation mode
    (BatchNorm's running statistics are constants), and the memory of one more gradient.

    Args:
        module: the network, whole on one device; its weights, gradients and modes are as before afterwards.
        likelihood: of the targets given its outputs; its own parameters are constants.
        batches: a loader, or a function that gives one; read once per draw: (inputs, targets) of the training data. If there
            are fewer targets than inputs, the inputs beyond are padding.
        posterior: q.
        data_size, prior, temperature: as in training (:class:`proxscore.inference.ProximalScore`). A ``data_size`` other
            than the number of rows counts each row more (or less) than once, as in training.
        draws: S, at least 2; k-hat needs 100.
        seed: of the draws.
        batches_per_draw: score each draw on the next so many batches instead of all of them. Unbiased for the ELBO if
            batches are random; the score-matching loss then holds the scores' noise power, and there is no k-hat.

    Raises:
        ConfigError: a sharded module or posterior, a point estimate, a posterior of another prior or architecture, no
            batches, or a setting outside its range; in one line.
    """
    if isinstance(likelihood, Posterior):
        return _of_density(module, likelihood, *arguments, **settings)
    return _of_module(module, likelihood, *arguments, **settings)


def _check_draws(draws: int) -> None:
    if draws < 2:
        raise ConfigError(f"draws is {draws}; it must be at least 2, for standard errors")


def _of_density(
    log_density: Callable[[dict[str, Tensor]], Tensor], posterior: Posterior, *, draws: int = 16, seed: int = 0
) -> Gaps:
    _check_draws(draws)
    if not posterior.random:
        raise ConfigError("the posterior is a point estimate: it has no distance from a target")
    families = list(_families(posterior, next(iter(posterior.mean.values())).device))
    dimension = sum(posterior.mean[name].numel() for _, names, _ in families for name in names)
    losses, log_ratios = [], []
    for index in range(draws):
        tensors = {name: value.detach().requires_grad_() for name, value in posterior.draw(index, seed).items()}
        with torch.enable_grad():
            value = log_density(tensors)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ConfigError("log_density must give one number, the log density of all tensors together")
            found = torch.autograd.grad(value.reshape(()), list(tensors.values()), materialize_grads=True)
        score = dict(zip(tensors, found, strict=True))
        loss, log_ratio = 0.0, value.item()
        for family, names, state in families:
            like = family.mean(state)
            at, target = (torch.cat([t[n].detach().reshape(-1).to(like) for n in names]) for t in (tensors, score))
            loss += family.norm(state, family.score(state, at, whole) - target, whole).item()
            log_ratio -= family.log_prob(state, at, whole).item()
        losses.append(loss / (2 * dimension))
        log_ratios.append(log_ratio)
    score_losses, ratios = (torch.tensor(values, dtype=torch.float64) for values in (losses, log_ratios))
    return Gaps(dimension, score_losses, ratios, True, ())


def _of_module(
    module: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    posterior: Posterior,
    *,
    data_size: float,
    prior: Prior,
    temperature: float = 1.0,
    draws: int = 16,
    seed: int = 0,
    batches_per_draw: int | None = None,
) -> Gaps:
    positive = {"data_size": data_size, "temperature": temperature, "batches_per_draw": batches_per_draw or 1}
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}; it must be positive")
    _check_draws(draws)
    parts = _parts(module, posterior, prior)
    parameters = {name: p for part in parts for name, p in part.parameters.items()}
    dimension = sum(parameter.numel() for parameter in parameters.values())
    stream = None if batches_per_draw is None else _endless(batches)
    modes = {layer: layer.training for layer in module.modules()}
    losses, log_ratios = [], []
    rows: int | None = None
    try:
        module.eval()
        for index in range(draws):
            chosen = pairs_of(batches) if stream is None else (next(stream) for _ in range(batches_per_draw or 0))
            with posterior.use(module, index, seed):
                log_likelihood, score, seen = _score(module, likelihood, chosen, parameters, data_size / temperature)
                if stream is None and rows not in (None, seen):
                    raise ConfigError(
                        f"batches gave {rows} rows for one draw and {seen} for the next: give a function that returns a new pass "
                        "over the same training data"
                    )
                rows = seen
                with torch.no_grad():
                    compared = [part.compare(score) for part in parts]
            losses.append(sum(norm.item() for norm, _ in compared) / (2 * dimension))
            log_ratios.append(log_likelihood + sum(ratio.item() for _, ratio in compared))
    finally:
        for layer, training in modes.items():
            layer.training = training
    flat = tuple(name for part in parts for name, precision in part.prior_precision.items() if not precision > 0)
    score_losses, ratios = (torch.tensor(values, dtype=torch.float64) for values in (losses, log_ratios))
    return Gaps(dimension, score_losses, ratios, stream is None, flat)


def _score(
    module: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[tuple[Tensor, Tensor]],
    parameters: dict[str, nn.Parameter],
    scale: float,
) -> tuple[float, dict[str, Tensor], int]:
    """scale times the mean over the batches' rows of log p(y | x, theta), its gradient, and the number of rows."""
    targets = list(parameters.values())
    device = targets[0].device
    gradients = [torch.zeros_like(parameter) for parameter in targets]
    nll, rows = torch.zeros((), dtype=torch.float64, device=device), 0
    for inputs, labels in batches:
        with torch.enable_grad():
            outputs = outputs_of(module, to_device(inputs, device))[: len(labels)]
            loss = likelihood.nll(outputs, labels.to(device, non_blocking=True))
            found = torch.autograd.grad(loss.sum(), targets, allow_unused=True)
        for total, gradient in zip(gradients, found, strict=True):
            if gradient is not None:
                total += gradient
        nll += loss.detach().double().sum()
        rows += len(labels)
    if rows == 0:
        raise ConfigError("batches gave no rows: a posterior is compared with its training data")
    score = {n: -scale / rows * g for n, g in zip(parameters, gradients, strict=True)}
    return -scale / rows * nll.item(), score, rows


def _parts(module: nn.Module, posterior: Posterior, prior: Prior) -> list[_Part]:
    named = named_parameters(module)
    if any(isinstance(tensor, DTensor) for tensor in (*named.values(), *posterior.mean.values())):
        raise ConfigError("diagnostics take no sharded module: use posterior.gather() and a whole module on one device")
    if not posterior.random:
        raise ConfigError("the posterior is a point estimate: it has no distance from a target")
    with posterior.use(module):  # refuses a module of another architecture
        pass
    assigned = prior.assign((name, parameter) for name, parameter in named.items() if parameter.requires_grad)
    parts = []
    for family, names, state in _families(posterior, next(iter(named.values())).device):
        for name in names:
            if name not in assigned or not assigned[name].sampled:
                raise ConfigError(
                    f"the posterior samples {name}, but the prior does not (or it is frozen): pass the prior of the training run"
                )
        parameters = {name: named[name] for name in names}
        means = {name: prior.mean[name].detach() for name in names if name in prior.mean}
        parts.append(_Part(family, state, parameters, {name: assigned[name].precision for name in names}, means))
    return parts


def _families(posterior: Posterior, device: torch.device) -> Iterator[tuple[Family, list[str], State]]:
    """Every family of a posterior with its state; a mean-field one's is a copy: in training its mean is the weights."""
    for name, precision in posterior.precision.items():
        flat = {"mean": posterior.mean[name], "precision": precision}
        state = {key: value.detach().reshape(-1).to(device, torch.float64, copy=True) for key, value in flat.items()}
        yield MeanField(), [name], state
    for joint in posterior.joint:
        state = {key: value.detach().to(device) for key, value in joint.state.items()}
        yield joint.layout.family, joint.names, state


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in pairs_of(batches):
            empty = False
            yield batch
        if empty:
            raise ConfigError("batches gave no rows: a posterior is compared with its training data")


def _standard_error(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item()


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
