"""Networks with their optimizers: the time of a step and of its update alone, and the memory that both take."""

from __future__ import annotations

import copy
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from proxscore.config import parse
from proxscore.inference import ProximalScore
from proxscore.methods.method import Method, RunLength, Setup

DATA = 50_000
STEPS = 1_000  # of a run, for methods with schedules

#: Updates before the rounds: convergence is watched in every one of the first 144 steps, and in large networks less often then.
WARM_UP = 160

Build = Callable[[nn.Module], torch.optim.Optimizer]


def adamw(**form: Any) -> Build:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=1e-6, **form)


def ours(hold_draw: bool = True, **settings: Any) -> Build:
    """As a job's loop runs it, or without a draw that is held until the step."""

    def build(model: nn.Module) -> ProximalScore:
        optimizer = ProximalScore(model.named_parameters(), data_size=DATA, **settings)
        optimizer.hold_draw = hold_draw
        return optimizer

    return build


def peer(kind: str) -> Build:
    section = parse({"method": {"kind": kind, "lr": 1e-6}}).method
    setup = RunLength(total_steps=STEPS, steps_per_epoch=100, data_size=DATA)
    return lambda model: section.build(Setup(model, setup, 0))


# Steps so small that the networks stay where they are over the rounds: only the cost counts here. The first is what the others
# are compared with.
OPTIMIZERS: dict[str, Build] = {
    "AdamW, foreach": adamw(foreach=True),
    "AdamW, for-loop": adamw(foreach=False),
    "AdamW, fused": adamw(fused=True),
    "proximal score, single draws": ours(fused=True),
    "the same, weights at the mean before the step": ours(False, fused=True),
    "the same, not compiled": ours(fused=False),
    "the same, posterior's metric": ours(fused=True, metric="posterior"),
    "proximal score, pairs": ours(fused=True, paired=True),
    "ELBO": peer("elbo"),
    "IVON (ivon-opt)": peer("ivon"),
}
#: Those of the package ``posteriors``, which differentiates within its update: there is no update alone.
FUNCTIONAL = ("posteriors' VI (diagonal)", "posteriors' SGHMC")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Workload:
    """What a contestant computes its gradients on, and the clock that runs."""

    images: Tensor
    labels: Tensor
    autocast: bool
    clock: Callable[[], float]


class Functional:
    """A network under a method of ``posteriors``: functions of the parameters, without an optimizer."""

    def __init__(self, template: nn.Module, method: str, workload: Workload) -> None:
        import posteriors
        import torchopt

        model, self.workload = copy.deepcopy(template), workload

        def log_posterior(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            output = torch.func.functional_call(model, params, batch[:1])
            loss = nn.functional.cross_entropy(output, batch[1])
            return -loss - sum(p.square().sum() for p in params.values()) / 2 / DATA, output

        if method == FUNCTIONAL[0]:
            optimizer = torchopt.adam(lr=1e-6)
            self.method = posteriors.vi.diag.build(log_posterior, optimizer, temperature=1 / DATA, init_log_sds=-5.0)
        else:
            self.method = posteriors.sgmcmc.sghmc.build(log_posterior, lr=1e-6, temperature=1 / DATA)
        params = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.state = self.method.init(params)

    def timed_step(self) -> float:
        start = now(self.workload)
        self.state, _ = self.method.update(self.state, (self.workload.images, self.workload.labels))
        return now(self.workload) - start


class Contestant:
    """A network with its optimizer, and given gradients for the update alone."""

    def __init__(self, template: nn.Module, method: str, workload: Workload) -> None:
        self.model = copy.deepcopy(template)
        self.optimizer = OPTIMIZERS[method](self.model)
        self.workload = workload
        self.gradients: list[Tensor] = []

    def evaluate(self) -> None:
        """Forward and backward."""
        work = self.workload
        with torch.autocast(work.images.device.type, torch.bfloat16, enabled=work.autocast):
            loss = nn.functional.cross_entropy(self.model(work.images), work.labels)
        loss.backward()

    def give_gradients(self) -> None:
        """What a backward leaves, without its cost: new gradients where there are none, else their sum."""
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad.add_(gradient)

    def draws(self) -> Iterator[int]:
        """As many iterations as the step takes gradient evaluations."""
        if isinstance(self.optimizer, ProximalScore | Method):
            yield from self.optimizer.draws()
        else:
            self.optimizer.zero_grad()
            yield 0

    def step(self) -> None:
        for _ in self.draws():
            self.evaluate()
        self.optimizer.step()

    def update(self) -> float:
        """Seconds of a step outside of the loop's body, which only provides gradients."""
        provided = 0.0
        start = now(self.workload)
        for _ in self.draws():
            begin = now(self.workload)
            self.give_gradients()
            provided += now(self.workload) - begin
        self.optimizer.step()
        return now(self.workload) - start - provided

    def timed_step(self) -> float:
        start = now(self.workload)
        self.step()
        return now(self.workload) - start

    def remember_gradients(self) -> None:
        self.optimizer.zero_grad()
        self.evaluate()
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        self.optimizer.zero_grad()

    def held(self) -> int:
        """Numbers in weights, gradients and optimizer state."""
        optimizer = self.optimizer
        held = [entry.values() for entry in optimizer.state.values() if isinstance(entry, dict)]
        if not isinstance(optimizer, ProximalScore):  # IVON keeps its state in its groups
            held += [group.values() for group in optimizer.param_groups]
        tensors = [value for entry in held for value in entry if isinstance(value, Tensor)]
        return sum(tensor.numel() for tensor in tensors) + 2 * size(self.model)


def now(workload: Workload) -> float:
    if workload.images.is_cuda:
        torch.cuda.synchronize()
    return workload.clock()


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that tensors held at once while ``run`` ran, beyond those that were held before."""
    gc.collect()  # what is released within ``run`` must have been allocated within it
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def times(
    contestants: list[Contestant], functional: list[Functional], repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of the steps and of the updates alone, per contestant and round."""
    steps: list[list[float]] = [[] for _ in (*contestants, *functional)]
    updates: list[list[float]] = [[] for _ in contestants]
    for contestant in contestants:
        contestant.remember_gradients()
        for _ in range(WARM_UP if isinstance(contestant.optimizer, ProximalScore) else 1):
            contestant.update()
    for round_ in range(-1, repeats):  # the first round warms up
        print(f"\rround {round_ + 1} of {repeats}", end="", file=sys.stderr, flush=True)
        for index, contestant in enumerate(contestants):
            step, update = contestant.timed_step(), contestant.update()
            if round_ >= 0:
                steps[index].append(step)
                updates[index].append(update)
        for index, other in enumerate(functional, len(contestants)):
            step = other.timed_step()
            if round_ >= 0:
                steps[index].append(step)
    print(file=sys.stderr)
    return steps, updates


def memory(build: Callable[[], Contestant], device: torch.device) -> tuple[int, int, Contestant]:
    """Peak bytes of a step, and of an update alone, each from the building on; and a contestant after a step."""
    built: list[Contestant] = []

    def steps() -> None:
        built.append(build())
        built[0].step()
        built[0].step()

    def updates() -> None:
        other = build()
        other.gradients = [torch.zeros_like(parameter) for parameter in other.model.parameters()]
        other.update()
        other.update()

    step_peak = peak_memory(steps, device)
    given = sum(parameter.numel() * parameter.element_size() for parameter in built[0].model.parameters())
    return step_peak, peak_memory(updates, device) - given, built[0]
