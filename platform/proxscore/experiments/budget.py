"""Steps of a method for a number of gradient evaluations that is the same for all.

A gradient evaluation is a forward and backward pass over one batch. A step takes k of them (draws, or pairs of draws), an
ensemble of M members shares them: M k steps' evaluations at a time. Passes beside the steps count too: the curvature of a
Laplace approximation takes one over the training data, an initial precision that is estimated takes a few batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxscore.config import ConfigError, MethodSection


@dataclass(frozen=True)
class Budget:
    """The steps and passes that a method makes of its gradient evaluations.

    Attributes:
        steps: of all members together.
        per_step: gradient evaluations of a step.
        beside: gradient evaluations beside the steps.
        members: of an ensemble; else 1.
        steps_per_epoch: batches in the training data.
    """

    steps: int
    per_step: int
    beside: int
    members: int
    steps_per_epoch: int

    @property
    def evaluations(self) -> int:
        """The gradient evaluations of steps and of passes beside them."""
        return self.steps * self.per_step + self.beside

    @property
    def epochs(self) -> float:
        """The epochs that the loop is called with: passes over the data by the steps of all members."""
        return self.steps / self.steps_per_epoch


def equal_budget(name: str, method: MethodSection, steps_per_epoch: int, total: int) -> Budget:
    """The steps with which a method takes ``total`` gradient evaluations.

    Args:
        name: of the method, for messages.

    Raises:
        ConfigError: it cannot, to within one step.
    """
    members, inner = method.member_count(), method.member
    if members > 1 and method.member_epochs(1.0) == 1.0:
        raise ConfigError(
            f"methods.{name}: method.budget=each gives each of {members} members the whole budget, {members} times the "
            "gradient evaluations of the others: use method.budget=shared"
        )
    per_step, beside = inner.evaluations_per_step(), members * inner.evaluations_beside(steps_per_epoch)
    each = round((total - beside) / (members * per_step))
    if each < 1:
        raise ConfigError(
            f"methods.{name}: needs {members * per_step + beside} gradient evaluations for one step"
            f"{f' of each of {members} members' if members > 1 else ''}; the budget is {total}: use a larger one"
        )
    found = Budget(each * members, per_step, beside, members, steps_per_epoch)
    if abs(found.evaluations - total) > per_step:
        raise ConfigError(
            f"methods.{name}: {members} members at {per_step} gradient evaluations per step take {found.evaluations} or "
            f"{found.evaluations + members * per_step * (1 if found.evaluations < total else -1)}, the others {total}, so that "
            f"the comparison would not be equal: use a budget of whole multiples of {members * per_step}"
        )
    return found
