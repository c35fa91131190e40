"""Likelihoods: the negative log-density of targets given network outputs, one number per data point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Categorical(nn.Module):
    """Categorical likelihood over classes, from logits: -log softmax(logits)[target].

    With trailing dimensions (segmentation: N x C x H x W) a data point is the whole image, and its negative
    log-likelihood the sum over positions.

    Args:
        smoothing: epsilon of label smoothing. The log-likelihood becomes its average over noisy labels, of which each is
            with probability epsilon replaced by one drawn uniformly from all classes:
            (1 - epsilon) log p(y) + epsilon / C sum_c log p(c). Szegedy et al., arXiv 1512.00567.
        class_weights: (C,), what a data point of each class counts: its log-likelihood times so much, as if it had been
            observed so often. Weights whose mean over the data is one leave the number of data points what it is.

    Raises:
        ValueError: a smoothing outside [0, 1), or weights that are not positive.
    """

    class_weights: Tensor | None

    def __init__(self, smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"label smoothing is {smoothing}; it must lie in [0, 1)")
        if class_weights is not None and not (class_weights > 0).all():
            raise ValueError("class weights must be positive")
        self.smoothing = smoothing
        self.register_buffer("class_weights", class_weights)

    @property
    def plain(self) -> bool:
        """Whether it is the log-probability of the labels, without smoothing and weights."""
        return not self.smoothing and self.class_weights is None

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
        nll = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        if self.class_weights is not None:
            nll = nll * self.class_weights.to(nll)[targets]
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


class MultiLabel(nn.Module):
    """Independent Bernoulli likelihoods of C labels, any number of which may hold: -sum_c log sigmoid(+-logits[c])."""

    def nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats of all labels of a data point together.

        Args:
            logits: (N, C), any floating dtype; evaluated in float32 or better.
            targets: zeros and ones, (N, C).

        Returns:
            (N,) tensor.
        """
        if logits.shape != targets.shape or logits.ndim != 2:
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} and logits of shape {tuple(logits.shape)}; both must be (N, C)"
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)


class HeteroscedasticGaussian(nn.Module):
    """Gaussian likelihood whose mean and noise both are the network's, in units of the data's spread.

        y ~ N(location + scale f, (scale exp(g))^2),      (f, g) the two halves of the outputs

    Nix and Weigend, Estimating the mean and variance of the target probability distribution (ICNN, 1994).

    Args:
        location, scale: (D,) mean and standard deviation of the training targets, in units of the target.

    Raises:
        ValueError: a scale that is not positive.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, location: Tensor, scale: Tensor) -> None:
        super().__init__()
        if not (scale > 0).all():
            raise ValueError("the scale of a likelihood must be positive")
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the targets, (N, D) each, in units of the target, from outputs (N, 2 D)."""
        if outputs.ndim != 2 or outputs.shape[1] != 2 * len(self.location):
            raise ValueError(f"outputs of shape {tuple(outputs.shape)}; needed are (N, {2 * len(self.location)})")
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        mean, log_noise = outputs.chunk(2, dim=1)
        scale = self.scale.to(mean)
        return self.location.to(mean) + scale * mean, scale * log_noise.exp()

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-density in nats: outputs (N, 2 D) and targets (N, D) to an (N,) tensor."""
        mean, noise = self.moments(outputs)
        if targets.shape != mean.shape:
            raise ValueError(f"targets of shape {tuple(targets.shape)} do not fit {tuple(mean.shape)}")
        return (0.5 * ((targets - mean) / noise) ** 2 + noise.log() + 0.5 * math.log(2 * math.pi)).sum(1)
