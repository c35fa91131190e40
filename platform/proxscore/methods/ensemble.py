"""Ensembles: members trained one after another by the loop, each from its own seed (:mod:`proxscore.training.loop.ensemble`).

Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, arXiv 1612.01474.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from proxscore.config import METHODS, MethodSection
from proxscore.methods.method import Setup

MEMBER_METHODS = METHODS.default("adamw", without="ensemble")


class EnsembleConfig(MethodSection):
    """Members trained one after another from different seeds."""

    kind: Literal["ensemble"] = "ensemble"
    members: int = Field(5, ge=2, le=1000)  # networks, each from a seed of its own
    of: Annotated[MethodSection, MEMBER_METHODS] = Field(default_factory=MEMBER_METHODS.make)
    budget: Literal["each", "shared"] = "each"  # each member takes training.epochs, or they share them

    @property
    def shards(self) -> bool:  # type: ignore[override]
        """Whether its members do; those that are finished wait in shards, which families of joint parameters have none of."""
        family = getattr(self.of, "family", None)
        joint = bool(getattr(self.of, "families", None)) or (family is not None and family.kind != "mean_field")
        return self.of.shards and not joint

    @property
    def member(self) -> MethodSection:
        return self.of

    def member_count(self) -> int:
        return self.members

    def member_epochs(self, epochs: float) -> float:
        """The run's epochs for each member, or its part of them."""
        return epochs if self.budget == "each" else epochs / self.members

    def evaluations_per_step(self) -> int:
        """The gradient evaluations of a step of every member, if each has the whole budget; else of one member."""
        return self.of.evaluations_per_step() * (self.members if self.budget == "each" else 1)

    def about_initial_weights(self) -> MethodSection:
        return self.model_copy(update={"of": self.of.about_initial_weights()})

    def check_likelihood(self, likelihood: Any) -> None:
        self.of.check_likelihood(likelihood)

    def default_space(self, total_steps: int) -> dict[str, dict[str, Any]]:
        return {}

    def remedy(self, section: str) -> str:
        return self.of.remedy(f"{section}.of")

    def build(self, setup: Setup) -> Any:
        """The optimizer of a member."""
        return self.of.build(setup)
