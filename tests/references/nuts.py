"""Sample the reference posteriors by NUTS, and store summaries beside this file.

In an environment of its own (the project does not depend on NumPyro), from the repository's root:

    python3 -m venv /tmp/nuts-venv && /tmp/nuts-venv/bin/pip install numpyro scikit-learn
    /tmp/nuts-venv/bin/python tests/references/nuts.py                  # all; or name some: ... nuts.py network

The log joints are written here once more, in jax and independently of the torch ones. Each name gets a JSON file:

    target, dimension, rows, data_sha256, seed, chains, warmup, draws (per chain), target_accept, dense_mass, versions,
    seconds, divergences, mean_steps (leapfrog steps per draw, at most 1023), log_joint_r_hat, log_joint_ess
    log_joint      points (3, D) drawn around the prior, values (3,): log p(y | x, theta) + log p(theta), with constants
    parameters     of theta: a summary as below, and (not for the network) covariance (D, D)
    predictive     of the function at test_inputs (M, ...): a summary
    a summary      mean, sd, mean_mcse, sd_mcse, ess (of the mean), r_hat (the larger of two split R-hats: of the value
                   and of its squared deviation)

The network's weights are not identified (units permute and flip sign), so only its function is summarised.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before jax starts: one core, which is faster than many for matrices of this size.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from reference_data import NAMES, WIDTH, Array, Problem, problem

CHAINS = 4


@dataclass(frozen=True)
class Run:
    """Settings of one run."""

    warmup: int
    draws: int
    target_accept: float
    dense_mass: bool
    seed: int = 0


RUNS = {
    "logistic": Run(2000, 10_000, 0.8, True),
    "eight_schools": Run(2000, 20_000, 0.95, False),
    "network": Run(1000, 4000, 0.8, False),
}


def normal(x: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Sum of log N(x; mean, scale^2)."""
    return -jnp.sum(0.5 * ((x - mean) / scale) ** 2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi))


def linear(theta: jax.Array, x: jax.Array) -> jax.Array:
    """Logits w . x + b, (M,)."""
    return x @ theta[:-1] + theta[-1]


def school_effect(theta: jax.Array, schools: jax.Array) -> jax.Array:
    """mu + exp(log_tau) eta_j, (M,)."""
    return theta[0] + jnp.exp(theta[1]) * theta[2:][schools.astype(int)]


def network(theta: jax.Array, x: jax.Array) -> jax.Array:
    """Two hidden layers of tanh, (M,)."""
    cuts = np.cumsum([WIDTH, WIDTH, WIDTH * WIDTH, WIDTH, WIDTH])
    first, first_bias, second, second_bias, last, last_bias = jnp.split(theta, cuts)
    hidden = jnp.tanh(x * first + first_bias)
    hidden = jnp.tanh(hidden @ second.reshape(WIDTH, WIDTH).T + second_bias)
    return hidden @ last + last_bias


def density(task: Problem) -> Callable[[jax.Array], jax.Array]:
    """theta (D,) -> log p(y | x, theta) + log p(theta)."""
    x, y = jnp.asarray(task.inputs), jnp.asarray(task.targets)
    prior_mean, prior_scale = jnp.asarray(task.prior_mean), jnp.asarray(task.prior_scale)

    def log_joint(theta: jax.Array) -> jax.Array:
        prior = normal(theta, prior_mean, prior_scale)
        if task.name == "logistic":
            logits = linear(theta, x)
            return prior + jnp.sum(y * jax.nn.log_sigmoid(logits) + (1 - y) * jax.nn.log_sigmoid(-logits))
        function = {"eight_schools": school_effect, "network": network}[task.name]
        return prior + normal(y, function(theta, x), jnp.asarray(task.noise))

    return log_joint


def predictive(task: Problem) -> Callable[[jax.Array], jax.Array]:
    """theta (D,) -> what is predicted at the test inputs (M,): a probability, a school's effect, or f(x)."""
    x = jnp.asarray(task.test_inputs)
    if task.name == "logistic":
        return lambda theta: jax.nn.sigmoid(linear(theta, x))
    function = {"eight_schools": school_effect, "network": network}[task.name]
    return lambda theta: function(theta, x)


def summary(draws: Array) -> dict[str, list[float]]:
    """Moments of draws (chains, draws, M), with the Monte Carlo standard errors of the mean and of sd."""
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    squares = (draws - mean) ** 2
    ess = effective_sample_size(draws)
    # sd = sqrt(v): an error of v is one of sd times 2 sd.
    variance_mcse = squares.std((0, 1)) / np.sqrt(effective_sample_size(squares))
    columns = {
        "mean": mean,
        "sd": sd,
        "mean_mcse": sd / np.sqrt(ess),
        "sd_mcse": variance_mcse / (2 * sd),
        "ess": ess,
        "r_hat": np.maximum(split_gelman_rubin(draws), split_gelman_rubin(squares)),
    }
    return {name: digits(column) for name, column in columns.items()}


def digits(values: Array) -> Any:
    """Nested lists, 8 significant digits."""
    return np.vectorize(lambda value: float(f"{value:.8g}"))(np.asarray(values)).tolist()


def sample(name: str) -> dict[str, Any]:
    """Run NUTS on a problem and summarise it."""
    task, run = problem(name), RUNS[name]
    log_joint = density(task)
    kernel = NUTS(
        potential_fn=lambda theta: -log_joint(theta), target_accept_prob=run.target_accept, dense_mass=run.dense_mass
    )
    sampler = MCMC(
        kernel,
        num_warmup=run.warmup,
        num_samples=run.draws,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    generator = np.random.RandomState(run.seed)
    # Chains start from draws of the prior: dispersed.
    starts = task.prior_mean + task.prior_scale * generator.standard_normal((CHAINS, task.dimension))
    # Rounded, so that the file has them exactly.
    points = np.round(task.prior_mean + task.prior_scale * generator.standard_normal((3, task.dimension)), 3)
    began = time.monotonic()
    sampler.run(
        jax.random.PRNGKey(run.seed),
        init_params=jnp.asarray(starts),
        extra_fields=("diverging", "num_steps", "potential_energy"),
    )
    theta = np.asarray(sampler.get_samples(group_by_chain=True))
    extra = {key: np.asarray(value) for key, value in sampler.get_extra_fields(group_by_chain=True).items()}
    seconds = time.monotonic() - began
    function = jax.jit(jax.vmap(predictive(task)))
    predicted = np.stack([np.asarray(function(chain)) for chain in theta])
    energy = extra["potential_energy"]
    parameters = {}
    if name != "network":
        flat = theta.reshape(-1, task.dimension)
        parameters = {"parameters": summary(theta) | {"covariance": digits(np.cov(flat.T, bias=True))}}
    return {
        "target": name,
        "dimension": task.dimension,
        "rows": len(task.targets),
        "data_sha256": task.checksum(),
        "chains": CHAINS,
        **asdict(run),
        "versions": {"numpyro": numpyro.__version__, "jax": jax.__version__, "numpy": np.__version__},
        "seconds": round(seconds, 1),
        "divergences": int(extra["diverging"].sum()),
        "mean_steps": round(float(extra["num_steps"].mean()), 1),
        "log_joint_r_hat": round(float(split_gelman_rubin(energy)), 5),
        "log_joint_ess": round(float(effective_sample_size(energy)), 1),
        "log_joint": {"points": points.tolist(), "values": [float(log_joint(jnp.asarray(each))) for each in points]},
        **parameters,
        "predictive": summary(predicted),
    }


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:] or NAMES:
        result = sample(name)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
        Path(__file__).with_name(f"{name}.json").write_text("{\n" + lines + "\n}\n")
        worst = max(result["predictive"]["r_hat"])
        print(name, f"{result['seconds']} s, {result['divergences']} divergences, predictive R-hat {worst:.4f}")


if __name__ == "__main__":
    main()
