"""What a step of proximal score matching costs, in time and memory, beside AdamW in the same run.

    python jobs/studies/step_cost/run.py --model small_cnn vit_small_patch16_224 --output step_cost.json

Per network and method, on random images:

* **step**: forward, backward and update, once per gradient evaluation (a pair takes two);
* **update**: all of a step except forward and backward - sampling, statistics, proximal step - with given gradients;
* **peak**: most memory that tensors held at once during such a step, weights and activations included;
* **held**: weights, gradient and optimizer state, counted from the tensors, in multiples of the number of weights P;
* **update peak**: most memory during an update alone, in multiples of the weights' size: held plus temporaries.

The methods take turns within every round, and a ratio is the median over the rounds of a method's time by AdamW's in
the same round, so that other load on the machine touches both; quartiles say how far to trust it. On a CPU that others
use, ``--clock cpu`` counts processor time instead. Memory is what torch's allocator hands out, from the building of the
network on: ``torch.cuda.max_memory_allocated`` on a GPU, and on the CPU the running sum of the allocations and releases
that torch's profiler records (scratch space inside of oneDNN or MKL is in neither).

Plain Python: besides this package it needs torch and timm.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from proxscore.inference import ProximalScore
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)

# Images per batch: by network, otherwise by device.
BATCH = {"small_cnn": 100, "cpu": 8, "cuda": 128}

# Steps so small that the networks stay where they are over the rounds: only the cost counts here.
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-6),
    "AdamW, fused": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
    "unpaired": lambda model: ProximalScore(model.named_parameters(), data_size=50_000),
    "paired": lambda model: ProximalScore(model.named_parameters(), data_size=50_000, paired=True),
    "unpaired, posterior's metric": lambda model: ProximalScore(
        model.named_parameters(), data_size=50_000, metric="posterior", paired=False
    ),
}
REFERENCE = "AdamW"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Workload:
    """What a contestant computes its gradients on, and the clock that runs."""

    images: Tensor
    labels: Tensor
    autocast: bool
    clock: Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Cost:
    """One row: times in seconds, memory in bytes or in multiples of P; ratios are to ``REFERENCE``."""

    model: str
    method: str
    weights: int
    batch: int
    evaluations: int
    step: Spread
    step_ratio: Spread
    update: Spread
    update_ratio: Spread
    peak: int
    peak_ratio: float
    held: float
    update_peak: float


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
        if isinstance(self.optimizer, ProximalScore):
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
        start = self.now()
        for _ in self.draws():
            begin = self.now()
            self.give_gradients()
            provided += self.now() - begin
        self.optimizer.step()
        return self.now() - start - provided

    def timed_step(self) -> float:
        start = self.now()
        self.step()
        return self.now() - start

    def now(self) -> float:
        if self.workload.images.is_cuda:
            torch.cuda.synchronize()
        return self.workload.clock()

    def remember_gradients(self) -> None:
        self.optimizer.zero_grad()
        self.evaluate()
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        self.optimizer.zero_grad()

    def held(self) -> int:
        """Numbers in weights, gradients and optimizer state."""
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return sum(tensor.numel() for tensor in state if isinstance(tensor, Tensor)) + 2 * size(self.model)


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


def times(contestants: list[Contestant], repeats: int) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of the steps and of the updates alone, per contestant and round."""
    steps: list[list[float]] = [[] for _ in contestants]
    updates: list[list[float]] = [[] for _ in contestants]
    for contestant in contestants:
        contestant.remember_gradients()
    for round_ in range(-1, repeats):  # the first round warms up
        print(f"\rround {round_ + 1} of {repeats}", end="", file=sys.stderr, flush=True)
        for index, contestant in enumerate(contestants):
            step, update = contestant.timed_step(), contestant.update()
            if round_ >= 0:
                steps[index].append(step)
                updates[index].append(update)
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


def measure(name: str, methods: list[str], options: argparse.Namespace, device: torch.device) -> list[Cost]:
    """The costs of all methods on one network; the first one is what the others are compared with."""
    template: Any = timm.create_model(name).to(device)
    count = options.batch or BATCH.get(name, BATCH[device.type])
    images = torch.randn(count, *template.default_cfg["input_size"], device=device)
    labels = torch.randint(template.num_classes, (count,), device=device)
    workload = Workload(images, labels, options.autocast, CLOCKS[options.clock])
    weights = size(template)
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in template.parameters())
    builders = [functools.partial(Contestant, template, method, workload) for method in methods]
    steps, updates = times([build() for build in builders], options.repeats)
    costs: list[Cost] = []
    for method, build, step, update in zip(methods, builders, steps, updates, strict=True):
        peak, update_peak, contestant = memory(build, device)
        optimizer = contestant.optimizer
        cost = Cost(
            model=name,
            method=method,
            weights=weights,
            batch=count,
            evaluations=optimizer.evaluations_per_step if isinstance(optimizer, ProximalScore) else 1,
            step=Spread.of(step),
            step_ratio=Spread.of([mine / other for mine, other in zip(step, steps[0], strict=True)]),
            update=Spread.of(update),
            update_ratio=Spread.of([mine / other for mine, other in zip(update, updates[0], strict=True)]),
            peak=peak,
            peak_ratio=peak / (costs[0].peak if costs else peak),
            held=contestant.held() / weights,
            update_peak=update_peak / weight_bytes,
        )
        costs.append(cost)
    return costs


def table(costs: list[Cost]) -> str:
    """The costs as Markdown; quartiles of the ratios in brackets."""
    head = "method|step, ms|x AdamW|x AdamW per evaluation|update, ms|x AdamW|peak, MB|x AdamW|held, P|update peak, P"
    lines = ["|" + head + "|", "|---|" + "---:|" * head.count("|")]
    for cost in costs:
        if cost.method == REFERENCE:
            title = f"**{cost.model}**, {cost.weights:,} weights, batch {cost.batch}"
            lines.append(f"|{title}|" + "|" * head.count("|"))
        cells = [cost.method, f"{cost.step.median * 1e3:.1f}", ratio(cost.step_ratio)]
        cells += [f"{cost.step_ratio.median / cost.evaluations:.2f}", f"{cost.update.median * 1e3:.2f}"]
        cells += [ratio(cost.update_ratio), f"{cost.peak / 1e6:.1f}", f"{cost.peak_ratio:.2f}"]
        cells += [f"{cost.held:.2f}", f"{cost.update_peak:.2f}"]
        lines.append("|" + "|".join(cells) + "|")
    return "\n".join(lines)


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def conditions(options: argparse.Namespace, device: torch.device) -> dict[str, str | float | bool]:
    """What the numbers depend on besides the code."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16_autocast": options.autocast,
        "clock": options.clock,
        "rounds": options.repeats,
        "load_before": round(os.getloadavg()[0], 2),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["small_cnn", "vit_small_patch16_224"], help="timm names")
    parser.add_argument("--batch", type=int, help=f"images per batch (default: {BATCH})")
    parser.add_argument("--repeats", type=int, default=20, help="rounds that count, at least 2")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is counted as time")
    parser.add_argument("--autocast", action="store_true", help="forward under autocast to bf16")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there, too")
    options = parser.parse_args(arguments)
    for name in options.model:
        if not timm.is_model(name):
            parser.error(f"--model {name}: timm does not know it; timm.list_models() lists the names")
    if options.repeats < 2 or min(options.batch or 1, options.threads or 1) < 1:
        parser.error("--repeats must be at least 2, --batch and --threads at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    use_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    if use_gpu and options.clock == "cpu":
        parser.error("--clock cpu does not see the GPU's work; use --clock wall")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if use_gpu else "cpu")
    setting = conditions(options, device)
    costs = [cost for name in options.model for cost in measure(name, list(OPTIMIZERS), options, device)]
    print(table(costs))
    setting["load_after"] = round(os.getloadavg()[0], 2)
    print("\n" + ", ".join(f"{key} {value}" for key, value in setting.items()))
    if options.output is not None:
        text = json.dumps({"conditions": setting, "costs": [asdict(cost) for cost in costs]}, indent=2)
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
