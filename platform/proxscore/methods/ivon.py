"""IVON, the improved variational online Newton method, by its authors' package ``ivon-opt``.

A mean-field Gaussian N(m, 1 / (ess (h + weight_decay))) whose Hessian estimate h comes from reparametrized gradients. Shen et
al., Variational learning is effective for large deep networks, arXiv 2402.17641. The package keeps flat, concatenated
buffers, so it cannot shard: one worker.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from proxscore.config import ConfigError, MethodSection
from proxscore.methods.method import Setup
from proxscore.methods.steps import cosine


class IVONConfig(MethodSection):
    """IVON by ivon-opt, with its authors' settings for CIFAR. One worker."""

    kind: Literal["ivon"] = "ivon"
    lr: float = Field(0.2, gt=0)  # learning rate after the warm-up
    ess: float | None = Field(None, gt=0)  # effective sample size; null: the training rows
    hess_init: float = Field(0.5, gt=0)  # Hessian at the start: less is a wider start
    beta1: float = Field(0.9, ge=0, lt=1)  # momentum of the gradient
    beta2: float = Field(0.99999, ge=0, lt=1)  # of the running mean of the Hessian
    weight_decay: float = Field(1e-4, ge=0)  # prior precision divided by ess
    draws: int = Field(1, ge=1, le=10_000)  # per step
    clip_radius: float | None = Field(None, gt=0)  # largest entry of a preconditioned step; null: any
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    extra: ClassVar[str | None] = "peers"
    shards: ClassVar[bool] = False

    def evaluations_per_step(self) -> int:
        return self.draws

    def build(self, setup: Setup) -> Any:
        """IVON with warm-up and cosine decay to zero over the run.

        Raises:
            ConfigError: a setting that the package refuses.
        """
        from proxscore.methods.ivon_optimizer import IVON  # an extra

        try:
            return IVON(
                setup.module,
                cosine(self.warmup, setup.run.total_steps),
                self.max_skipped_steps,
                setup.seed,
                lr=self.lr,
                ess=self.ess or float(setup.run.data_size),
                hess_init=self.hess_init,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=self.weight_decay,
                mc_samples=self.draws,
                clip_radius=self.clip_radius or float("inf"),
            )
        except ValueError as error:
            raise ConfigError(f"method: ivon: {error}") from error
