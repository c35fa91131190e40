"""Label smoothing, class weights, several labels and a noise of the network's own, against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as D

from proxscore.inference import Categorical, HeteroscedasticGaussian, MultiLabel


def test_label_smoothing_is_the_average_over_labels_that_were_replaced_at_random() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 4), torch.randint(4, (6,))
    draws = 100_000
    noisy = torch.where(torch.rand(draws, 6) < 0.3, torch.randint(4, (draws, 6)), targets)
    each = -D.Categorical(logits=logits).log_prob(noisy)
    error = each.std(0) / draws**0.5
    assert ((Categorical(smoothing=0.3).nll(logits, targets) - each.mean(0)).abs() < 4 * error).all()
    assert torch.equal(Categorical(smoothing=0.0).nll(logits, targets), Categorical().nll(logits, targets))


def test_a_weight_of_two_is_a_row_that_was_seen_twice() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    twice = torch.cat([torch.arange(5), torch.tensor([1, 3])])
    weighted = Categorical(class_weights=torch.tensor([1.0, 2.0, 1.0])).nll(logits, targets).sum()
    torch.testing.assert_close(weighted, Categorical().nll(logits[twice], targets[twice]).sum())


def test_the_labels_of_a_row_are_independent_bernoullis() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(2, (5, 3))
    expected = -D.Independent(D.Bernoulli(logits=logits), 1).log_prob(targets.float())
    torch.testing.assert_close(MultiLabel().nll(logits, targets), expected)
    with pytest.raises(ValueError, match=r"both must be \(N, C\)"):
        MultiLabel().nll(logits, targets[:, 0])


def test_mean_and_noise_of_a_gaussian_are_the_networks_in_units_of_the_data() -> None:
    location, scale, outputs, targets = torch.randn(2), torch.rand(2) + 0.5, torch.randn(5, 4), torch.randn(5, 2)
    likelihood = HeteroscedasticGaussian(location, scale)
    expected = D.Normal(location + scale * outputs[:, :2], scale * outputs[:, 2:].exp())
    torch.testing.assert_close(likelihood.nll(outputs, targets), -expected.log_prob(targets).sum(1))
    mean, noise = likelihood.moments(outputs)
    assert torch.equal(mean, expected.mean)
    assert torch.equal(noise, expected.stddev)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Categorical(smoothing=1.0), r"must lie in \[0, 1\)"),
        (lambda: Categorical(class_weights=torch.tensor([1.0, 0.0])), "must be positive"),
        (lambda: HeteroscedasticGaussian(torch.zeros(1), torch.zeros(1)), "must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()  # type: ignore[operator]
