"""A learned noise level finds the noise of the data, whatever it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import ForwardKL, Gaussian, Prior, ProximalScore, Schedule

N, BATCH, D, STEPS = 1000, 100, 5, 400

torch.set_num_threads(1)


def data(noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    return x, x @ (3 * torch.randn(D, 1, generator=generator)) + noise * torch.randn(N, 1, generator=generator)


def least_squares(x: Tensor, y: Tensor) -> float:
    """The residuals' unbiased standard deviation."""
    design = torch.cat([x, torch.ones(N, 1)], 1).double()
    residual = y.double() - design @ torch.linalg.lstsq(design, y.double()).solution
    return (residual.square().sum() / (N - D - 1)).sqrt().item()


@pytest.mark.parametrize("true", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_a_learned_noise_finds_the_noise_of_the_data(true: float, kind: str) -> None:
    """From 1, in 400 steps of 100 of 1,000 rows, within two standard errors 1 / sqrt(2 N) (2.2 %) of least squares.

    What is found is the level under draws from the posterior, E_q r^2, whose variance the residuals' lost degrees of freedom
    make up for. Adam at a rate of 0.001 moves its logarithm by 0.4 at most in that time.
    """
    x, y = data(true)
    torch.manual_seed(0)
    model, likelihood = nn.Linear(D, 1), Gaussian(1.0, learned=True)
    schedule = Schedule("cosine", length=STEPS) if kind == "cosine" else Schedule()
    optimizer = ProximalScore(
        [*model.named_parameters(), *likelihood.named_parameters()],
        N,
        prior=Prior(scale=10.0),
        metric="posterior",
        initial_precision=0.1,
        penalty=ForwardKL(30.0, 0.5, schedule, schedule),
        max_mean_step=1.0,
        paired=True,
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS * BATCH // N):
        for rows in torch.randperm(N, generator=generator).split(BATCH):
            for _ in optimizer.draws():
                likelihood.nll(model(x[rows]), y[rows]).mean().backward()
            optimizer.step()
    found = likelihood.log_noise.detach().exp().item()
    assert found == pytest.approx(least_squares(x, y), rel=2 * (2 * N) ** -0.5)


def test_a_noise_level_has_a_flat_prior_unless_it_is_named() -> None:
    """A prior about log noise = 0 would hold a level of 50 eighteen percent below the data's at its default scale of 0.1."""
    named = list(Gaussian(1.0, learned=True).named_parameters())
    assert Prior(scale=0.1).assign(named)["log_noise"].precision == 0.0
    assert Prior(scales={"*log_noise": 0.5}).assign(named)["log_noise"].precision == pytest.approx(4.0)


def test_noise_levels_of_a_vector_move_by_themselves() -> None:
    """Two outputs of noise 0.2 and 20, a level each, beside weights that Adam trains as before."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(N, 2, generator=generator) * torch.tensor([0.2, 20.0])
    log_noise, shift = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    cosine = Schedule("cosine", length=300)
    settings = dict(prior=Prior(scale=10.0, point=["*"]), penalty=ForwardKL(30.0, 0.5, cosine, cosine), point_lr=0.01)
    optimizer = ProximalScore(
        [("model.log_noise", log_noise), ("shift", shift)],
        N,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
    )
    for step in range(300):
        rows = y[step % 10 * BATCH : (step % 10 + 1) * BATCH]
        for _ in optimizer.draws():
            (0.5 * ((rows - shift) / log_noise.exp()).square() + log_noise).sum(1).mean().backward()
        optimizer.step()
    torch.testing.assert_close(log_noise.detach().exp(), y.std(0), rtol=2 * (2 * N) ** -0.5, atol=0)
    assert shift.detach()[0].abs() < 0.05
