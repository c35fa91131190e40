"""Predictives of several labels and of numbers with a noise of their own: averages over draws, written out."""

from __future__ import annotations

import torch
from torch import distributions as D
from torch import nn

from proxscore.inference import HeteroscedasticGaussian, MultiLabel
from proxscore.posterior import Posterior, predict


def setting() -> tuple[nn.Linear, Posterior, torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 4), torch.randn(7, 3)
    precision = {name: torch.full_like(p, 4.0) for name, p in model.named_parameters()}
    posterior = Posterior({name: p.detach().clone() for name, p in model.named_parameters()}, precision)
    draws = [posterior.draw(index) for index in range(5)]
    return model, posterior, inputs, [inputs @ w["weight"].T + w["bias"] for w in draws]


def test_several_labels() -> None:
    model, posterior, inputs, outputs = setting()
    targets = torch.randint(2, (7, 4))
    found = predict(
        model, [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])], posterior, likelihood=MultiLabel(), draws=5
    )
    each = [D.Independent(D.Bernoulli(logits=f), 1) for f in outputs]
    torch.testing.assert_close(found.probabilities, torch.stack([d.mean for d in each]).mean(0))
    torch.testing.assert_close(found.expected_entropy, torch.stack([d.entropy() for d in each]).mean(0))
    density = torch.stack([d.log_prob(targets.float()).exp() for d in each]).mean(0).log()
    torch.testing.assert_close(found.log_density, density)


def test_numbers_with_a_noise_of_their_own() -> None:
    model, posterior, inputs, outputs = setting()
    likelihood = HeteroscedasticGaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    targets = torch.randn(7, 2)
    found = predict(model, [(inputs, targets)], posterior, likelihood=likelihood, draws=5)
    each = D.MixtureSameFamily(
        D.Categorical(probs=torch.ones(7, 2, 5)),
        D.Normal(*(torch.stack(column, -1) for column in zip(*(likelihood.moments(f) for f in outputs), strict=True))),
    )
    torch.testing.assert_close(found.mean, each.mean)
    torch.testing.assert_close(found.sd.square(), each.variance)
    density = torch.stack([-likelihood.nll(f, targets) for f in outputs]).exp().mean(0).log()
    torch.testing.assert_close(found.log_density, density)
