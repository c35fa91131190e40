"""Data and priors of three posteriors that long NUTS runs have sampled: numpy only, for torch and jax alike.

Every model is a likelihood of independent rows and an independent Gaussian prior over theta (D,), the concatenation of
named blocks in the order of the torch module's parameters:

    logistic       y_i ~ Bernoulli(sigmoid(w . x_i + b));  w_j, b ~ N(0, 1).  N = 569, D = 10 + 1.
                   x: the first ten columns (means over cell nuclei) of the breast cancer data of Wisconsin (W. Wolberg,
                   O. Mangasarian and W. Street, 1995) as scikit-learn carries it, standardised; y = 1: benign.
    eight_schools  y_j ~ N(mu + tau eta_j, sigma_j^2), tau = exp(log_tau);
                   mu ~ N(0, 5^2), log_tau ~ N(log 5, 1), eta_j ~ N(0, 1).  N = 8, D = 1 + 1 + 8.
                   Not centred. y and sigma: D. Rubin (1981), "Estimation in parallel randomized experiments".
    network        y_i ~ N(f(x_i), 0.2^2), f: 1 -> 14 -> 14 -> 1 with tanh; weights ~ N(0, 1 / fan-in), biases ~ N(0, 1).
                   N = 140, D = 28 + 210 + 15 = 253.
                   x on two grids, [-3, -1] and [0.5, 3], with a gap between; y = sin(2 x) + x / 4 + noise.

Data are rounded to 6 decimals: then a checksum does not depend on the last bits of a machine's arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = ("logistic", "eight_schools", "network")
SCHOOLS = 8
WIDTH = 14
NETWORK_NOISE = 0.2


@dataclass(frozen=True)
class Block:
    """A parameter of the module: its name, its shape, and its prior N(mean, scale^2), the same for all entries."""

    name: str
    shape: tuple[int, ...]
    scale: float
    mean: float = 0.0

    @property
    def size(self) -> int:
        """The number of entries of theta."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Problem:
    """Data and prior.

    Args:
        name: one of NAMES.
        inputs: (N, inputs), or (N,) school numbers as floats.
        targets: (N,).
        noise: (N,), the known standard deviations of the targets; None for a Bernoulli likelihood.
        test_inputs: (M, inputs) or (M,), where the predictive functions are compared.
        blocks: what theta is made of, in its order.
    """

    name: str
    inputs: Array
    targets: Array
    noise: Array | None
    test_inputs: Array
    blocks: tuple[Block, ...]

    @property
    def dimension(self) -> int:
        """D."""
        return sum(block.size for block in self.blocks)

    @property
    def prior_mean(self) -> Array:
        """(D,)."""
        return np.concatenate([np.full(block.size, block.mean) for block in self.blocks])

    @property
    def prior_scale(self) -> Array:
        """(D,), standard deviations."""
        return np.concatenate([np.full(block.size, block.scale) for block in self.blocks])

    def checksum(self) -> str:
        """SHA-256 of data, test inputs and prior (the prior in 12 digits)."""
        digest = hashlib.sha256()
        for label in ("inputs", "targets", "noise", "test_inputs"):
            if (array := getattr(self, label)) is not None:
                digest.update(f"{label} {array.shape} ".encode())
                digest.update((array + 0.0).astype("<f8").tobytes())  # + 0.0: no negative zeros
        for block in self.blocks:
            digest.update(f"{block.name} {block.shape} {block.mean:.12g} {block.scale:.12g} ".encode())
        return digest.hexdigest()


def problem(name: str) -> Problem:
    """The data and the prior of one of NAMES."""
    return {"logistic": _logistic, "eight_schools": _eight_schools, "network": _network}[name]()


def stored(name: str) -> dict[str, Any]:
    """What the NUTS run of this problem left: see nuts.py for the fields."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())


def _logistic() -> Problem:
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    columns = table.data[:, :10]
    inputs = np.round((columns - columns.mean(0)) / columns.std(0), 6)
    return Problem(
        "logistic",
        inputs,
        table.target.astype(np.float64),
        None,
        inputs[::19],  # 30 rows
        (Block("weight", (1, 10), 1.0), Block("bias", (1,), 1.0)),
    )


def _eight_schools() -> Problem:
    schools = np.arange(SCHOOLS, dtype=np.float64)
    return Problem(
        "eight_schools",
        schools,
        np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        schools,
        (
            Block("mu", (1,), 5.0),
            Block("log_tau", (1,), 1.0, mean=math.log(5.0)),
            Block("eta", (SCHOOLS,), 1.0),
        ),
    )


def _network() -> Problem:
    inputs = np.round(np.concatenate([np.linspace(-3.0, -1.0, 60), np.linspace(0.5, 3.0, 80)]), 6)
    # The legacy generator: numpy promises that its streams never change, which it does not of default_rng's.
    noise = NETWORK_NOISE * np.random.RandomState(0).standard_normal(len(inputs))
    hidden = WIDTH**-0.5
    return Problem(
        "network",
        inputs[:, None],
        np.round(np.sin(2 * inputs) + inputs / 4 + noise, 6),
        np.full(len(inputs), NETWORK_NOISE),
        np.round(np.linspace(-4.0, 4.0, 33), 6)[:, None],
        (
            Block("0.weight", (WIDTH, 1), 1.0),
            Block("0.bias", (WIDTH,), 1.0),
            Block("2.weight", (WIDTH, WIDTH), hidden),
            Block("2.bias", (WIDTH,), 1.0),
            Block("4.weight", (1, WIDTH), hidden),
            Block("4.bias", (1,), 1.0),
        ),
    )
