"""Likelihoods against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions

from proxscore.inference import Categorical, Gaussian


def test_the_categorical_nll_is_that_of_torch_distributions() -> None:
    logits, targets = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    expected = -distributions.Categorical(logits=logits).log_prob(targets)
    torch.testing.assert_close(Categorical().nll(logits, targets), expected)


def test_the_categorical_nll_of_an_image_is_the_sum_over_its_positions() -> None:
    logits, targets = torch.randn(3, 4, 6, 5), torch.randint(4, (3, 6, 5))
    expected = -distributions.Categorical(logits=logits.movedim(1, -1)).log_prob(targets).sum((1, 2))
    result = Categorical().nll(logits, targets)
    assert result.shape == (3,)
    torch.testing.assert_close(result, expected)


def test_low_precision_outputs_are_evaluated_in_single_precision() -> None:
    logits, targets = torch.randn(50, 10).bfloat16(), torch.randint(10, (50,))
    result = Categorical().nll(logits, targets)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, -distributions.Categorical(logits=logits.float()).log_prob(targets))
    assert Gaussian().nll(logits, logits).dtype == torch.float32


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2)])
@pytest.mark.parametrize("learned", [False, True])
def test_the_gaussian_nll_is_that_of_torch_distributions_summed_over_outputs(
    shape: tuple[int, ...], learned: bool
) -> None:
    outputs, targets = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    likelihood = Gaussian(0.3, learned=learned).double()
    noise = likelihood.log_noise.exp().item()
    expected = -distributions.Normal(outputs, noise).log_prob(targets).reshape(6, -1).sum(1)
    torch.testing.assert_close(likelihood.nll(outputs, targets), expected)
    assert [name for name, _ in likelihood.named_parameters()] == (["log_noise"] if learned else [])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets of shape \(3, 1\) do not fit logits of shape \(3, 4\)"):
        Categorical().nll(torch.randn(3, 4), torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(3, 1\) and targets of shape \(3,\) differ"):
        Gaussian().nll(torch.randn(3, 1), torch.randn(3))  # would broadcast to 3 x 3


def test_a_noise_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="likelihood noise is 0"):
        Gaussian(0.0)
