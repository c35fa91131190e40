"""Likelihoods: the negative log-density of targets given network outputs, one number per data point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Categorical(nn.Module):
    """Categorical likelihood over classes, from logits: -log softmax(logits)[target].

    With trailing dimensions (segmentation: N x C x H x W) a data point is the whole image, and its negative
    log-likelihood the sum over positions.
    """

    def nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats.

        Args:
            logits: (N, C) or (N, C, ...), any floating dtype; evaluated in float32 or better.
            targets: integer class indices, (N,) or (N, ...).

        Returns:
            (N,) tensor.
        """
        if targets.shape != logits.shape[:1] + logits.shape[2:]:
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}"
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nll = nn.functional.cross_entropy(logits, targets, reduction="none")
        return nll.flatten(1).sum(1) if nll.ndim > 1 else nll


class Bernoulli(nn.Module):
    """Bernoulli likelihood of two classes from one logit f: -log sigmoid(f) for target 1, -log sigmoid(-f) for target 0."""

    def nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats.

        Args:
            logits: (N,) or (N, 1), any floating dtype; evaluated in float32 or better.
            targets: zeros and ones of any dtype, (N,) or (N, 1).

        Returns:
            (N,) tensor.
        """
        if logits.shape not in ((len(logits),), (len(logits), 1)):
            raise ValueError(f"logits of shape {tuple(logits.shape)}; a Bernoulli likelihood needs (N,) or (N, 1)")
        if targets.shape not in ((len(logits),), (len(logits), 1)):
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}"
            )
        known = ((targets == 0) | (targets == 1)).all()
        if targets.is_cuda:
            torch._assert_async(known, "targets of a Bernoulli likelihood must be 0 or 1")  # no wait for the device
        elif not known:
            raise ValueError("targets of a Bernoulli likelihood must be 0 or 1")
        logits = (logits if logits.dtype == torch.float64 else logits.float()).reshape(-1)
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets.reshape(-1).to(logits.dtype), reduction="none"
        )


class Gaussian(nn.Module):
    """Gaussian likelihood with homoscedastic noise: (y - f)^2 / (2 s^2) + log s + log(2 pi) / 2, summed over outputs.

    Args:
        noise: standard deviation s, in units of the target.
        learned: make log s a parameter (``log_noise``) to be estimated with the weights; the default ``Prior`` takes
            it as a point estimate. Hand it to the optimizer: ``[*model.named_parameters(), *likelihood.named_parameters()]``.

    Raises:
        ValueError: ``noise`` is not positive.
    """

    log_noise: Tensor

    def __init__(self, noise: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not noise > 0:
            raise ValueError(f"likelihood noise is {noise}; it must be positive")
        log_noise = torch.tensor(math.log(noise))
        if learned:
            self.log_noise = nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats: outputs and targets of one shape (N, ...) to an (N,) tensor."""
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} differ"
            )
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        log_noise = self.log_noise.to(outputs.dtype)
        squared = ((targets - outputs) * torch.exp(-log_noise)) ** 2
        return (0.5 * squared + log_noise + 0.5 * math.log(2 * math.pi)).reshape(len(outputs), -1).sum(1)
