"""The posteriors of reference_data.py in torch: densities, mini-batches, and the modules they belong to.

    target = load("network")
    target.log_joint(theta)                                # theta (D,), float64
    target.log_prior(theta) - target.nll(theta, rows).sum() * target.rows / len(rows)   # unbiased, for random rows
    target.predict(theta, target.test_inputs)              # what stored("network")["predictive"] summarises

or as a user's training loop has it:

    model = target.module()                                # its parameters, in order, are theta
    optimizer = ProximalScore(model.named_parameters(), target.rows, prior=target.prior(), metric="posterior", ...)
    target.row_nll(model(target.inputs[rows]), rows).mean().backward()
    target.join(model.named_parameters())                  # theta again

Nothing here but :meth:`Target.prior` uses the code under test.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from reference_data import SCHOOLS, WIDTH, Array, Problem, problem
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import functional_call

from proxscore.inference import Prior


class Target:
    """p(y | x, theta) p(theta) of one problem, with independent rows and a Gaussian prior; all tensors are float64.

    Args:
        task: data and prior.

    Attributes:
        dimension: D.
        rows: N.
        inputs: what the module takes, (N, inputs), or (N,) integers.
        targets: (N,).
        test_inputs: (M, inputs) or (M,).
        prior_mean: (D,).
        prior_scale: (D,), standard deviations.
    """

    def __init__(self, task: Problem) -> None:
        self.task = task
        self.name, self.dimension, self.rows = task.name, task.dimension, len(task.targets)
        self.inputs, self.test_inputs = self._inputs(task.inputs), self._inputs(task.test_inputs)
        self.targets = torch.from_numpy(task.targets)
        self.prior_mean, self.prior_scale = torch.from_numpy(task.prior_mean), torch.from_numpy(task.prior_scale)
        self._module = self.module()

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(inputs, targets), as a TensorDataset takes them."""
        return self.inputs, self.targets

    def module(self, theta: Tensor | None = None) -> nn.Module:
        """A new module with theta (D,) in its parameters; the prior mean by default."""
        module = self._empty_module()
        with torch.no_grad():
            named = self.split(self.prior_mean if theta is None else theta)
            for name, parameter in module.named_parameters():
                parameter.copy_(named[name])
        return module

    def _empty_module(self) -> nn.Module:
        """Inputs to the likelihood's outputs; float64, with the blocks of theta for parameters."""
        raise NotImplementedError

    def row_nll(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """-log p(y_i | output_i) of the given rows (all by default), (B,): outputs are the module's, of these rows."""
        raise NotImplementedError

    def prediction(self, outputs: Tensor) -> Tensor:
        """What is summarised in the reference, (M,), from the module's outputs at M inputs."""
        return outputs.reshape(-1)

    def nll(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """-log p(y_i | x_i, theta) of the given rows (all by default): (B,)."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        return self.row_nll(self.outputs(theta, inputs), rows)

    def log_prior(self, theta: Tensor) -> Tensor:
        """log p(theta), a scalar."""
        return Normal(self.prior_mean, self.prior_scale).log_prob(theta).sum()

    def log_joint(self, theta: Tensor) -> Tensor:
        """log p(y | x, theta) + log p(theta), a scalar, with all constants."""
        return self.log_prior(theta) - self.nll(theta).sum()

    def predict(self, theta: Tensor, x: Tensor) -> Tensor:
        """The predictive function of one theta (D,) at x: (M,). For draws (S, D): torch.vmap."""
        return self.prediction(self.outputs(theta, x))

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """The module's outputs with theta (D,) for its parameters."""
        return functional_call(self._module, self.split(theta), (x,))

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """The module's parameters by name: views of theta."""
        parts = theta.split([block.size for block in self.task.blocks])
        return {block.name: part.view(block.shape) for block, part in zip(self.task.blocks, parts, strict=True)}

    def join(self, parameters: Iterable[tuple[str, Tensor]]) -> Tensor:
        """theta (D,) from named tensors of the parameters' shapes, in any order: undoes :meth:`split`."""
        named = dict(parameters)
        return torch.cat([named[block.name].reshape(-1) for block in self.task.blocks])

    def prior(self) -> Prior:
        """The same prior as the optimizer takes it."""
        return Prior(
            scales={block.name: block.scale for block in self.task.blocks},
            mean={
                block.name: torch.full(block.shape, block.mean, dtype=torch.float64)
                for block in self.task.blocks
                if block.mean
            },
        )

    def _inputs(self, values: Array) -> Tensor:
        return torch.from_numpy(values)

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(self.rows) if rows is None else rows

    def _gaussian(self, outputs: Tensor, rows: Tensor | None) -> Tensor:
        assert self.task.noise is not None
        index = self._rows(rows)
        return -Normal(outputs, torch.from_numpy(self.task.noise)[index]).log_prob(self.targets[index])


class Logistic(Target):
    """Logistic regression. Outputs are logits (B, 1), predictions the probability of y = 1."""

    def _empty_module(self) -> nn.Module:
        return nn.Linear(10, 1, dtype=torch.float64)

    def row_nll(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        targets = self.targets[self._rows(rows)]
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets, reduction="none")

    def prediction(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid().reshape(-1)


class Schools(nn.Module):
    """School number (B,) -> mu + exp(log_tau) eta (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.log_tau = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.eta = nn.Parameter(torch.zeros(SCHOOLS, dtype=torch.float64))

    def forward(self, schools: Tensor) -> Tensor:
        return self.mu + self.log_tau.exp() * self.eta[schools]


class EightSchools(Target):
    """The hierarchical model. Outputs and predictions are the schools' effects (B,)."""

    def _empty_module(self) -> nn.Module:
        return Schools()

    def row_nll(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._gaussian(outputs, rows)

    def _inputs(self, values: Array) -> Tensor:
        return torch.from_numpy(values).long()


class Network(Target):
    """The Bayesian neural network. Outputs (B, 1) and predictions are the function without noise.

    At the prior mean, zero, all units are alike: start a fit elsewhere, for example ``module(draw of the prior)``.
    """

    def _empty_module(self) -> nn.Module:
        layers = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        return layers.double()

    def row_nll(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._gaussian(outputs.squeeze(-1), rows)


def load(name: str) -> Target:
    """One of NAMES: ``logistic``, ``eight_schools``, ``network``."""
    return {"logistic": Logistic, "eight_schools": EightSchools, "network": Network}[name](problem(name))
