"""What a step of proximal score matching costs, in time and memory, beside AdamW in the same run.

    python jobs/studies/step_cost/run.py --model small_cnn vit_small_patch16_224 [--quick]

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
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.inference import ProximalScore
from proxscore.tracking import Study
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
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Workload:
    """What a contestant computes its gradients on, and the clock that runs."""

    images: Tensor
    labels: Tensor
    autocast: bool
    clock: Callable[[], float]


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


def measure(name: str, options: Namespace, device: torch.device) -> list[list[str]]:
    """A line of the table for each method on a network; the first one is what the others are compared with."""
    template: Any = timm.create_model(name).to(device)
    count = options.batch or BATCH.get(name, BATCH[device.type])
    images = torch.randn(count, *template.default_cfg["input_size"], device=device)
    labels = torch.randint(template.num_classes, (count,), device=device)
    workload = Workload(images, labels, options.autocast, CLOCKS[options.clock])
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in template.parameters())
    builders = [functools.partial(Contestant, template, method, workload) for method in OPTIMIZERS]
    steps, updates = times([build() for build in builders], options.repeats)
    found, first_peak = [], 0
    for method, build, step, update in zip(OPTIMIZERS, builders, steps, updates, strict=True):
        peak, update_peak, contestant = memory(build, device)
        first_peak = first_peak or peak
        optimizer = contestant.optimizer
        evaluations = optimizer.evaluations_per_step if isinstance(optimizer, ProximalScore) else 1
        per_evaluation = (
            statistics.median(mine / other for mine, other in zip(step, steps[0], strict=True)) / evaluations
        )
        found.append(
            [
                f"{name} ({size(template):,} weights, batch {count}): {method}",
                f"{1e3 * statistics.median(step):.1f}",
                ratio(step, steps[0]),
                f"{per_evaluation:.2f}",
                f"{1e3 * statistics.median(update):.2f}",
                ratio(update, updates[0]),
                f"{peak / 1e6:.1f}",
                f"{peak / first_peak:.2f}",
                f"{contestant.held() / size(template):.2f}",
                f"{update_peak / weight_bytes:.2f}",
            ]
        )
    return found


def ratio(times: list[float], others: list[float]) -> str:
    """Median over the rounds, and quartiles in brackets, of a method's time by the other's."""
    ratios = [mine / other for mine, other in zip(times, others, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def study(options: Namespace, record: Study, rows: Rows) -> None:
    if unknown := [name for name in options.model if not timm.is_model(name)]:
        raise ConfigError(f"--model {unknown[0]}: timm does not know it; timm.list_models() lists the names")
    if options.repeats < 2 or min(options.batch or 1, options.threads) < 1:
        raise ConfigError("--repeats must be at least 2, --batch and --threads at least 1")
    available = torch.cuda.is_available()
    device = torch.device("cuda" if options.device == "cuda" or (options.device == "auto" and available) else "cpu")
    if device.type == "cuda" and (options.clock == "cpu" or not available):
        raise ConfigError("--device cuda needs a GPU that torch sees, and --clock wall, which sees the GPU's work")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.quick:
        options.model, options.repeats = options.model[:1], 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    conditions = {"device": name, "torch": torch.__version__, "load": round(os.getloadavg()[0], 2)}
    print(", ".join(f"{key} {value}" for key, value in conditions.items()))
    record.run.describe(conditions, {})
    header = "method|step, ms|x AdamW|x AdamW per evaluation|update, ms|x AdamW|peak, MB|x AdamW|held, P|update peak, P"
    table = [line for model in options.model for line in measure(model, options, device)]
    record.table("step_cost", header.split("|"), table)


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {
        "model": {"nargs": "+", "default": ["small_cnn", "vit_small_patch16_224"], "help": "timm names"},
        "batch": {"type": int, "help": f"images per batch (default: {BATCH})"},
        "repeats": {"type": int, "default": 20, "help": "rounds that count, at least 2"},
        "device": {"choices": ["auto", "cpu", "cuda"], "default": "auto"},
        "threads": {"type": int, "default": 1, "help": "torch's, on the CPU"},
        "clock": {"choices": list(CLOCKS), "default": "wall", "help": "what is counted as time"},
        "autocast": {"action": "store_true", "help": "forward under autocast to bf16"},
    }
    sys.exit(command("step cost", __doc__, study, more))
