"""The step that training runs, in place and over many tensors at once, is the plain formula of the mean field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_step import mean_field_step
from torch import Tensor, nn

from proxscore.inference import ForwardKL, NoPenalty, Quadratic, ReverseKL, noise
from proxscore.inference.members import Member
from proxscore.inference.metric import Adaptive
from proxscore.inference.parts import flats
from proxscore.inference.parts.meanless_shards import MeanlessShards
from proxscore.inference.parts.shards import Shards
from proxscore.inference.penalties import Penalty
from proxscore.inference.priors import Assignment
from proxscore.inference.step import Draw, ProximalStep

SCALE = 50.0
SQUARES = (0, 3, 40)  # by seed; 0: the first step, whose metric is unknown
SHAPES = {"one": (5, 3), "two": (4,), "three": (3, 2, 2)}
PENALTIES = [ForwardKL(), ReverseKL(), Quadratic(), NoPenalty()]
STATE = ("precision", "score", "square", "prior_mean")


class Trial:
    """Shards in a random state, and draws with random gradients."""

    def __init__(self, seed: int, adaptive: bool, draws: int, paired: bool, kind: type[Shards]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.numbers = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.draws, self.paired, self.adaptive = draws, paired, adaptive
        self.members: list[Member] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        for name, shape in SHAPES.items():
            parameter, prior = nn.Parameter(self.numbers(*shape)), Assignment(True, 0.5 + len(self.members))
            self.members.append(Member(name, parameter, prior, 0, 1.0, self.numbers(*shape)))
            self.state[parameter] = {}
        self.shards = kind(self.members, self.state, draws, adaptive)
        for member in self.members:
            held, shape = self.state[member.parameter], member.parameter.shape
            held["precision"].copy_(30 * self.numbers(*shape).exp() + member.prior.precision)
            held["score"].copy_(self.numbers(*shape))
            if adaptive:
                held["square"].copy_(0.1 * self.numbers(*shape).square())
                held["step"].fill_(SQUARES[seed])

    def before(self, member: Member) -> dict[str, Tensor]:
        held = {
            name: noise.local(value).clone() for name, value in self.state[member.parameter].items() if name in STATE
        }
        return {"mean": member.parameter.detach().flatten().clone(), "square": torch.zeros(()), **held}

    def run(self, step: ProximalStep) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A step; by parameter, each draw's distance from the mean, and the gradients there."""
        places: dict[str, list[Tensor]] = {member.name: [] for member in self.members}
        gradients: dict[str, list[Tensor]] = {member.name: [] for member in self.members}
        means = {member.name: member.parameter.detach().flatten().clone() for member in self.members}
        self.shards.begin(self.state)
        for index in range(self.draws):
            for sign in (1.0, -1.0)[: 1 + self.paired]:
                draw = Draw(index == 0, sign, self.paired, self.draws, SCALE, 1.0, seed=17 + index)
                self.shards.sample(draw)
                for member in self.members:
                    found, parameter = self.numbers(*member.parameter.shape), member.parameter
                    if sign > 0:
                        places[member.name].append(parameter.detach().flatten() - means[member.name])
                    gradients[member.name].append(found.flatten())
                    parameter.grad = found.clone() if parameter.grad is None else parameter.grad.add_(found)
                self.shards.take(draw, self.shards.gradients())
        self.shards.restore()
        self.shards.step(step, None)
        shape = (self.draws, 2, -1) if self.paired else (self.draws, -1)
        return (
            {name: torch.stack(rows) for name, rows in places.items()},
            {name: torch.stack(rows).view(shape) for name, rows in gradients.items()},
        )


@pytest.mark.parametrize("kind", [Shards, MeanlessShards])
@pytest.mark.parametrize("limited", [True, False], ids=["trust region", "no trust region"])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "single"])
@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "posterior"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
def test_the_fast_step_is_the_plain_formula(
    penalty: Penalty,
    adaptive: bool,
    paired: bool,
    draws: int,
    limited: bool,
    kind: type[Shards],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three random states each; limits so narrow that they cut some coordinates and leave others, and buckets so small that
    a tensor is cut over several, or shares one with others."""
    monkeypatch.setitem(flats.SIZE, "cpu", 7)
    for seed in range(len(SQUARES)):
        trial = Trial(seed, adaptive, draws, paired, kind)
        limits: dict[str, Any] = dict(max_log_precision_step=0.05, max_mean_step=0.03) if limited else {}
        metric = Adaptive(0.02, SCALE, 0.9, None if paired else draws) if adaptive else None
        step = ProximalStep(penalty, (5.0, 0.7), -SCALE / 0.6, 0.8, metric, **limits)
        before = {member.name: trial.before(member) for member in trial.members}
        displacements, gradients = trial.run(step)
        for member in trial.members:
            name, held = member.name, trial.state[member.parameter]
            expected = mean_field_step(
                **before[name],
                displacement=displacements[name],
                gradients=gradients[name],
                prior_precision=member.prior.precision,
                step=step,
                scale=SCALE,
                squares=SQUARES[seed],
            )
            found = [member.parameter.detach(), *(held.get(key) for key in ("precision", "score", "square"))]
            for fast, plain in zip(found, expected, strict=True):
                if fast is not None:
                    torch.testing.assert_close(fast.flatten(), plain, rtol=1e-9, atol=1e-11)


def test_small_parameters_of_other_types_are_no_piece_together() -> None:
    """Beside one in double precision, a parameter in single precision takes the step that it takes alone, bit for bit."""

    def stepped(*dtypes: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        state: dict[Tensor, dict[str, Any]] = {}
        members = []
        for index, dtype in enumerate(dtypes):
            parameter = nn.Parameter(torch.randn(50, generator=generator).to(dtype))
            state[parameter] = {}
            members.append(Member(f"w{index}", parameter, Assignment(True, 1.0), 0, 30.0, None))
        shards = Shards(members, state, 1, True)
        for _ in range(3):
            shards.begin(state)
            draw = Draw(True, 1.0, False, 1, SCALE, 1.0, seed=3)
            shards.sample(draw)
            for member in members:
                member.parameter.grad = 0.1 * member.parameter.detach()
            shards.take(draw, shards.gradients())
            shards.restore()
            shards.step(ProximalStep(ForwardKL(), (5.0, 0.7), -SCALE, 0.8, Adaptive(0.02, SCALE, 0.9, 1)), None)
        return members[0].parameter.detach()

    assert torch.equal(stepped(torch.float32, torch.float64), stepped(torch.float32))
