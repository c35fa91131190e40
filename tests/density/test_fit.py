"""Posteriors of densities over named tensors: closed forms, shapes, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.density import fit
from proxscore.inference import FullCovariance, LowRank, MeanField
from proxscore.posterior import Posterior
from proxscore.posterior.diagnostics import gaps

torch.set_num_threads(1)

DOUBLE = dict(dtype=torch.float64)


class Gaussian:
    """N(mean, precision^-1) over {a: (2, 2), b: scalar, c: the rest}, and how far a posterior is from it.

    Args:
        condition: of the correlation-like matrix; none: independent numbers.
        scales: standard deviations, (D,).
        away: distance of the means from the start, in standard deviations.
    """

    def __init__(self, numbers: int, condition: float | None, scales: Tensor, away: float, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        core = torch.eye(numbers, **DOUBLE)
        if condition is not None:
            basis, _ = torch.linalg.qr(torch.randn(numbers, numbers, generator=generator, **DOUBLE))
            core = basis * torch.logspace(0, math.log10(condition), numbers, **DOUBLE) @ basis.mT
        self.precision = core / scales[:, None] / scales
        self.covariance = torch.linalg.inv(self.precision)
        self.sd = self.covariance.diagonal().sqrt()
        self.mean = away * self.sd * torch.randn(numbers, generator=generator, **DOUBLE)

    def start(self) -> dict[str, Tensor]:
        rest = len(self.mean) - 5
        return {"a": torch.zeros(2, 2, **DOUBLE), "b": torch.zeros((), **DOUBLE), "c": torch.zeros(rest, **DOUBLE)}

    def log_density(self, t: dict[str, Tensor]) -> Tensor:
        offset = flat(t) - self.mean
        return -0.5 * offset @ self.precision @ offset

    def errors(self, posterior: Posterior, sd: Tensor | None = None) -> tuple[float, float]:
        """Largest error of the means in standard deviations, and of the standard deviations as a ratio less 1."""
        wanted = self.sd if sd is None else sd
        mean = ((flat(posterior.mean) - self.mean) / self.sd).abs().max().item()
        return mean, (flat(posterior.sd()) / wanted - 1).abs().max().item()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def spread_scales(numbers: int) -> Tensor:
    """From 1e-3 to 1e3."""
    return torch.logspace(-3, 3, numbers, **DOUBLE)


@pytest.mark.parametrize(("condition", "away"), [(1e3, 1000.0), (1e4, 1.0)])
def test_a_full_covariance_of_any_scale_and_place_is_exact(condition: float, away: float) -> None:
    """10 numbers, standard deviations from 1e-3 to 1e3, correlated: nothing is random at the fixed point of a Gaussian."""
    target = Gaussian(10, condition, spread_scales(10), away)
    posterior = fit(target.log_density, target.start(), steps=200)
    mean, sd = target.errors(posterior)
    assert mean < 0.01
    assert sd < 0.01
    scale = torch.outer(target.sd, target.sd)
    assert ((posterior.covariance() - target.covariance) / scale).abs().max() < 0.02
    assert {name: value.shape for name, value in posterior.mean.items()} == {
        name: value.shape for name, value in target.start().items()
    }


def test_a_mean_field_of_independent_numbers_is_exact() -> None:
    target = Gaussian(40, None, spread_scales(40), 1000.0)
    mean, sd = target.errors(fit(target.log_density, target.start(), family=MeanField(), steps=500))
    assert mean < 1e-3
    assert sd < 1e-3


def test_a_mean_field_of_correlated_numbers_has_the_precisions_diagonal() -> None:
    """Its fixed point; the draws' coupling leaves noise: within 10 %."""
    target = Gaussian(10, 30.0, torch.ones(10, **DOUBLE), 1.0)
    posterior = fit(target.log_density, target.start(), family=MeanField(), steps=300)
    mean, sd = target.errors(posterior, target.precision.diagonal().rsqrt())
    assert mean < 0.1
    assert sd < 0.1
    torch.testing.assert_close(posterior.covariance(), flat(posterior.sd()).square().diag())


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_a_start_of_any_width_arrives(factor: float) -> None:
    """A hundred times too narrow, or thirty times too wide, for a condition number of 1,000: within 10 % after 400 steps."""
    target = Gaussian(10, 1e3, torch.ones(10, **DOUBLE), 1.0)
    start = {name: factor * value for name, value in split(target.precision.diagonal().rsqrt(), target.start()).items()}
    mean, sd = target.errors(fit(target.log_density, target.start(), initial_sd=start, steps=400))
    assert mean < 0.1
    assert sd < 0.1


def split(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = vector.split([value.numel() for value in like.values()])
    return {name: piece.view(value.shape) for (name, value), piece in zip(like.items(), pieces, strict=True)}


@pytest.mark.parametrize("method", ["bam", "gsm"])
def test_score_matching_methods_are_offered_by_the_same_call(method: str) -> None:
    target = Gaussian(10, 100.0, spread_scales(10), 1.0)
    mean, sd = target.errors(fit(target.log_density, target.start(), method=method, steps=200))
    assert mean < 0.01
    assert sd < 0.01


def test_solved_families_are_offered_by_the_same_call() -> None:
    """By the gradient solver, which needs more steps than the closed forms: ten for each of theirs."""
    target = Gaussian(6, 4.0, torch.ones(6, **DOUBLE), 1.0)
    posterior = fit(target.log_density, target.start(), family=LowRank(2), steps=20)
    assert posterior.family == "low_rank"
    assert posterior.covariance().shape == (6, 6)


def regression(rows: int, covariates: int, sets: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, covariates, generator=generator, **DOUBLE)
    weights = torch.randn(covariates, sets, generator=generator, **DOUBLE)
    return x, x @ weights + torch.randn(rows, sets, generator=generator, **DOUBLE), weights


def log_likelihood(t: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return -0.5 * (y - x @ t["w"]).square().sum(1)


def log_prior(t: dict[str, Tensor]) -> Tensor:
    return -0.5 * (t["w"] / 10).square().sum()


def test_rows_in_mini_batches_give_the_posterior_of_all_rows() -> None:
    """1,000 rows in batches of 100, a covariance of 4: means within 0.2 standard deviations, those within 5 %."""
    x, y, _ = regression(1000, 4, 1)
    start = {"w": torch.zeros(4, 1, **DOUBLE)}
    posterior = fit(log_likelihood, start, data=(x, y), batch_size=100, log_prior=log_prior, steps=200)
    precision = x.mT @ x + torch.eye(4, **DOUBLE) / 100
    covariance = torch.linalg.inv(precision)
    sd = covariance.diagonal().sqrt()
    error = (posterior.mean["w"] - torch.linalg.solve(precision, x.mT @ y))[:, 0] / sd
    assert error.abs().max() < 0.2
    assert (posterior.sd()["w"][:, 0] / sd - 1).abs().max() < 0.05


@pytest.mark.slow
def test_intervals_of_a_linear_model_cover_as_often_as_they_say() -> None:
    """12 independent covariates, 1,000 rows in batches of 100, prior scale 10, mean field; 50 data sets of one design are 600
    numbers of one posterior. 95 % intervals: 92 to 97 % (error of the 600: 0.9 %)."""
    x, y, weights = regression(1000, 12, 50)
    start = {"w": torch.zeros(12, 50, **DOUBLE)}
    posterior = fit(
        log_likelihood, start, data=(x, y), batch_size=100, log_prior=log_prior, family=MeanField(), steps=1000
    )
    covered = (posterior.mean["w"] - weights).abs() < 1.96 * posterior.sd()["w"]
    assert 0.92 < covered.double().mean() < 0.97


def test_a_density_is_its_own_prior_and_a_parameter_may_have_any_name() -> None:
    """``log_noise`` is sampled like all others, and the prior that comes with a network plays no part."""
    start = {"module.log_noise": torch.zeros((), **DOUBLE)}
    posterior = fit(lambda t: -0.5 * ((t["module.log_noise"] - 3) / 0.2) ** 2, start, steps=100)
    assert posterior.mean["module.log_noise"].item() == pytest.approx(3.0, abs=1e-3)
    assert posterior.sd()["module.log_noise"].item() == pytest.approx(0.2, rel=1e-3)


def test_gaps_take_the_density() -> None:
    """The posterior itself has none; the ELBO is the log of the density's integral."""
    target = Gaussian(8, 10.0, torch.ones(8, **DOUBLE), 1.0)
    posterior = fit(target.log_density, target.start(), method="bam", steps=200)
    found = gaps(target.log_density, posterior, draws=100)
    assert found.score_loss < 1e-6
    log_integral = 4 * math.log(2 * math.pi) + 0.5 * torch.linalg.slogdet(target.covariance).logabsdet.item()
    assert found.elbo == pytest.approx(log_integral, abs=1e-3)
    moved = {name: value + 1.0 for name, value in posterior.draw(0).items()}
    assert moved.keys() == posterior.mean.keys()
    wide = fit(lambda t: target.log_density(t) / 4, target.start(), method="bam", steps=200)
    assert gaps(target.log_density, wide, draws=100).score_loss > 0.5  # a precision that is off by 4: 9 / 2


def test_a_run_is_a_function_of_its_seed() -> None:
    target = Gaussian(6, 10.0, torch.ones(6, **DOUBLE), 1.0)
    one, two, other = (fit(target.log_density, target.start(), steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(flat(one.mean), flat(two.mean))
    assert not torch.equal(flat(one.sd()), flat(other.sd()))


def test_a_posterior_of_a_density_is_saved_and_loaded(tmp_path: Any) -> None:
    target = Gaussian(6, 10.0, torch.ones(6, **DOUBLE), 1.0)
    posterior = fit(target.log_density, target.start(), steps=20)
    loaded = Posterior.load(posterior.save(tmp_path))
    assert torch.equal(loaded.covariance(), posterior.covariance())
    assert loaded.description["density"]["method"] == "proximal_score"


def square(t: dict[str, Tensor]) -> Tensor:
    return -t["x"].square().sum()


X = {"x": torch.ones(3)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(square, {}), "start names no tensor"),
        (lambda: fit(square, {"x": 1.0}), r"start\['x'\] is float; it must be a tensor"),  # type: ignore[dict-item]
        (lambda: fit(square, {"x": torch.ones(3, dtype=torch.int64)}), r"start\['x'\] is torch.int64"),
        (lambda: fit(square, {"x": torch.tensor([1.0, math.nan])}), r"start\['x'\] is not finite"),
        (lambda: fit(square, {**X, "y": torch.ones(2, **DOUBLE)}), r"start\['y'\] is torch.float64"),
        (lambda: fit(square, {**X, "y": torch.ones(2)}), "does not depend on 'y'"),
        (lambda: fit(square, {"y": torch.ones(2)}), "KeyError: 'x'"),
        (lambda: fit(lambda t: -t["x"].square(), X), r"log_density gives shape \(3,\); it must give one number"),
        (lambda: fit(lambda t: 0.0, X), "log_density gives float; it must give one number"),  # type: ignore[arg-type,return-value]
        (lambda: fit(lambda t: -t["x"].detach().sum(), X), "log_density has no gradient"),
        (lambda: fit(lambda t: (-t["x"]).log().sum(), X), "log_density is nan at the start"),
        (lambda: fit(lambda t: -(t["x"] - 1).abs().sqrt().sum(), X), "no finite gradient by 'x' at the start"),
        (lambda: fit(square, X, batch_size=3), "batch_size is given without data"),
        (lambda: fit(square, X, log_prior=square), "log_prior is given without data"),
        (lambda: fit(square, X, data=torch.ones(5, 1), batch_size=6), "batch_size is 6; it must be 1 to 5"),
        (lambda: fit(square, X, data=(torch.ones(5), torch.ones(4))), r"data\[1\] has 4 rows, data\[0\] has 5"),
        (lambda: fit(lambda t, d: square(t), X, data=torch.ones(5)), "with data it must give one number per row"),
        (lambda: fit(square, X, method="nuts"), "method is 'nuts'; it must be one of proximal_score, bam"),
        (lambda: fit(square, X, method="bam", family=MeanField()), "family is for method=proximal_score"),
        (
            lambda: fit(lambda t, d: -((t["x"].sum() - d) ** 2), X, data=torch.ones(5), batch_size=2, method="bam"),
            "method=bam with batch_size=2: with noisy scores",
        ),
        (lambda: fit(square, X, steps=0), "steps is 0"),
        (lambda: fit(square, X, initial_sd={"y": 1.0}), "initial_sd names 'y'"),
        (lambda: fit(square, X, initial_sd={"x": torch.ones(2)}), r"initial_sd\['x'\] has shape \(2,\)"),
        (lambda: fit(square, X, initial_sd={"x": -1.0}), r"initial_sd\['x'\] must be positive"),
    ],
)
def test_what_cannot_serve_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_density_that_ends_somewhere_says_where_it_failed() -> None:
    """An exponential density without its logarithm: draws fall below zero, where it is not finite."""
    start = {"x": torch.tensor([0.01], **DOUBLE)}
    with pytest.raises((FloatingPointError, ConfigError), match=r"take logarithms|not finite"):
        fit(
            lambda t: (t["x"].log() - 0.5 * (t["x"] - 0.01) / 0.01).sum(),
            start,
            initial_sd={"x": 1.0},
            family=FullCovariance(),
        )
