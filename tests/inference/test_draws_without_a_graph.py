"""Nothing is differentiated through a draw, of whatever family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from block_problems import Two, evaluate
from torch import Tensor
from torch.distributions import Independent, Normal

from proxscore.config import FAMILIES
from proxscore.inference import (
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Mixture,
    Prior,
    ProximalScore,
    kernels,
)
from proxscore.inference.families import Distribution, Family, State


def watched(base: type[Family], seen: list[bool], *arguments: Any) -> Family:
    """A family that notes of each draw whether it, or the state it comes from, carries a graph."""

    class Watched(base):  # type: ignore[valid-type,misc]
        def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
            result = super().draw(state, noise, extra, sign)
            seen.append(carries_a_graph(result, *state.values()))
            return result

    return Watched(*arguments)


def carries_a_graph(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad or tensor.grad_fn is not None for tensor in tensors)


def reparametrised(parameters: Mapping[str, Tensor]) -> Independent:
    """A distribution whose ``rsample`` would carry the graph of its parameters into the draw."""
    return Independent(Normal(parameters["loc"], parameters["log_scale"].exp(), validate_args=False), 1)


ZEROS = torch.zeros(16, dtype=torch.float64)  # all weights and biases of Two
DRAWN: dict[str, tuple[type[Family], tuple[Any, ...], GradientSolver | None]] = {
    "mean_field in closed form": (MeanField, (), None),
    "full_covariance in closed form": (FullCovariance, (), None),
    "mean_field": (MeanField, (), GradientSolver(3)),
    "full_covariance": (FullCovariance, (), GradientSolver(3)),
    "low_rank": (LowRank, (2,), GradientSolver(3)),
    "kronecker": (Kronecker, (), GradientSolver(3)),
    "mixture": (Mixture, (2,), GradientSolver(3)),
    "distribution": (Distribution, (reparametrised, {"loc": ZEROS, "log_scale": ZEROS}), GradientSolver(3)),
}


def test_every_family_is_among_those_whose_draws_are_watched() -> None:
    assert {base for base, _, _ in DRAWN.values()} == {FAMILIES.component(kind) for kind in FAMILIES.kinds()} | {
        Distribution
    }


@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "single"])
@pytest.mark.parametrize("kind", list(DRAWN))
def test_nothing_is_differentiated_through_a_draw(kind: str, paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws carry no graph although the candidate's leaves do; the weights are plain leaves; one forward and one
    backward for each evaluation; the state carries no graph."""
    base, arguments, solver = DRAWN[kind]
    module = Two()
    seen: list[bool] = []
    write = kernels.sample_

    def sample_(weights: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> None:
        write(weights, mean, precision, noise)
        seen.append(carries_a_graph(weights, mean, precision))

    monkeypatch.setattr(kernels, "sample_", sample_)  # where a mean field in closed form puts its draws, in place
    optimizer = ProximalScore(
        module.named_parameters(),
        20,
        prior=Prior(biases="point" if base is Kronecker else "informative"),
        family=watched(base, seen, *arguments),
        solver=solver,
        draws=2,
        paired=paired,
        metric="posterior",
        initial_precision=0.1,
    )
    counts = {"forward": 0, "backward": 0}
    module.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    module.body.weight.register_post_accumulate_grad_hook(lambda _: counts.update(backward=counts["backward"] + 1))
    for step in range(4):
        for _ in optimizer.draws():
            assert all(p.is_leaf and p.grad_fn is None and p.requires_grad for p in module.parameters())
            evaluate(module, step).backward()
        optimizer.step()
        assert all(p.is_leaf and p.grad_fn is None and p.grad is None for p in module.parameters())
        expected = (step + 1) * optimizer.evaluations_per_step
        assert counts == {"forward": expected, "backward": expected}
        with torch.enable_grad():
            for block in optimizer.blocks():
                assert not carries_a_graph(*block.state.values(), *block.anchor.values())
        assert not carries_a_graph(
            *(v for held in optimizer.state.values() for v in held.values() if torch.is_tensor(v))
        )
    assert len(seen) >= 8
    assert not any(seen)
