"""What speed costs and buys: steps, updates and memory beside peers, predictions, input, the start of trials, and scale.

    python jobs/studies/speed/run.py [--parts steps prediction inputs trials scale] [--quick]

Each part prints a table; all ratios are of the same run, whose contestants take turns in every round, so that other load on the
machine touches them alike: medians over the rounds, and quartiles, which say how far to trust them. ``steps`` has, per network
and method, on random images:

* **step**: forward, backward and update, once per gradient evaluation (a pair takes two);
* **update**: all of a step except forward and backward - sampling, statistics, proximal step - with given gradients;
* **peak**: most memory that tensors held at once during such a step, weights and activations included;
* **held**: weights, gradient and optimizer state, counted from the tensors, in multiples of the number of weights P;
* **update peak**: most memory during an update alone, in multiples of the weights' size: held plus temporaries.

Compiling happens before the rounds. On a CPU that others use, ``--clock cpu`` counts processor time instead of wall time. Memory
is what torch's allocator hands out, from the building of the network on: ``torch.cuda.max_memory_allocated`` on a GPU, and on the
CPU the running sum of the allocations and releases that torch's profiler records (scratch space inside of oneDNN or MKL is in
neither). ``profile`` says where a step's time goes. On a GPU without Ray and MLflow, ``gpu.py`` measures the steps alone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import inputs  # type: ignore[import-not-found]  # beside this file, as those below
import prediction  # type: ignore[import-not-found]
import scale  # type: ignore[import-not-found]
import timm
import torch
import trials  # type: ignore[import-not-found]
from contestants import (  # type: ignore[import-not-found]
    CLOCKS,
    FUNCTIONAL,
    OPTIMIZERS,
    Contestant,
    Functional,
    Workload,
    memory,
    size,
    times,
)
from torch.profiler import ProfilerActivity, profile

from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.inference import ProximalScore
from proxscore.tracking import Study
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)

# Images per batch: by network, otherwise by device.
BATCH = {"small_cnn": 100, "cpu": 8, "cuda": 128}
PARTS = ("steps", "profile", "prediction", "inputs", "trials", "scale")


def measure(name: str, options: Namespace, device: torch.device) -> list[list[str]]:
    """A line of the table for each method on a network; the first one is what the others are compared with."""
    template: Any = timm.create_model(name).to(device)
    count = options.batch or BATCH.get(name, BATCH[device.type])
    images = torch.randn(count, *template.default_cfg["input_size"], device=device)
    labels = torch.randint(template.num_classes, (count,), device=device)
    workload = Workload(images, labels, options.autocast, CLOCKS[options.clock])
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in template.parameters())
    methods = [method for method in OPTIMIZERS if method in options.methods]
    builders = [functools.partial(Contestant, template, method, workload) for method in methods]
    functional = [method for method in FUNCTIONAL if method in options.methods]
    if functional and importlib.util.find_spec("posteriors") is None:
        print("the package posteriors is not here: its methods are left out; pip install posteriors")
        functional = []
    others = [Functional(template, method, workload) for method in functional]
    steps, updates = times([build() for build in builders], others, options.repeats)
    found, first_peak = [], 0
    for method, build, step, update in zip(methods, builders, steps[: len(builders)], updates, strict=True):
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
    for method, step in zip(functional, steps[len(builders) :], strict=True):
        found.append([f"{name}: {method}", f"{1e3 * statistics.median(step):.1f}", ratio(step, steps[0]), *["-"] * 7])
    return found


def ratio(times: list[float], others: list[float]) -> str:
    """Median over the rounds, and quartiles in brackets, of a method's time by the other's."""
    ratios = [mine / other for mine, other in zip(times, others, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def profiled(name: str, options: Namespace, device: torch.device) -> list[list[str]]:
    """Where the time of an update goes: the operations that take most of it by themselves, with given gradients."""
    template: Any = timm.create_model(name).to(device)
    images = torch.randn(2, *template.default_cfg["input_size"], device=device)
    workload = Workload(images, torch.zeros(2, dtype=torch.long, device=device), False, CLOCKS["wall"])
    contestant = Contestant(template, "proximal score, single draws", workload)
    contestant.remember_gradients()
    for _ in range(3):
        contestant.update()
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    ) as seen:
        for _ in range(options.repeats):
            contestant.update()
    rows = sorted(
        seen.key_averages(), key=lambda row: row.self_cpu_time_total + row.self_device_time_total, reverse=True
    )
    table = []
    for row in rows[:12]:
        taken = (row.self_cpu_time_total, row.self_device_time_total)
        table.append(
            [
                name,
                row.key[:60],
                f"{row.count / options.repeats:.0f}",
                *(f"{t / 1e3 / options.repeats:.2f}" for t in taken),
            ]
        )
    return table


def study(options: Namespace, record: Study, rows: Rows) -> None:
    if unknown := [name for name in options.model if not timm.is_model(name)]:
        raise ConfigError(f"--model {unknown[0]}: timm does not know it; timm.list_models() lists the names")
    if unknown := [name for name in options.methods if name not in (*OPTIMIZERS, *FUNCTIONAL)]:
        raise ConfigError(f"--methods {unknown[0]}: it must be one of {', '.join((*OPTIMIZERS, *FUNCTIONAL))}")
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
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    conditions = {"device": name, "torch": torch.__version__, "load": round(os.getloadavg()[0], 2)}
    print(", ".join(f"{key} {value}" for key, value in conditions.items()))
    record.run.describe(conditions, {})
    if "steps" in options.parts:
        header = (
            "method|step, ms|x AdamW|x AdamW per evaluation|update, ms|x AdamW|peak, MB|x AdamW|held, P|update peak, P"
        )
        table = [line for model in options.model for line in measure(model, options, device)]
        record.table("steps", header.split("|"), table)
    if "profile" in options.parts:
        table = [line for model in options.model for line in profiled(model, options, device)]
        record.table("profile", ["network", "operation", "calls of an update", "CPU, ms", "GPU, ms"], table)
    for part in (prediction, inputs, trials, scale):
        if part.__name__ in options.parts:
            found = part.rows(options.quick)
            record.table(part.__name__, list(found[0]), [[str(value) for value in row.values()] for row in found])


def processor() -> str:
    """The processor's name, where the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {
        "parts": {"nargs": "+", "choices": PARTS, "default": list(PARTS), "help": "what is measured"},
        "model": {"nargs": "+", "default": ["small_cnn", "vit_small_patch16_224"], "help": "timm names"},
        "batch": {"type": int, "help": f"images per batch (default: {BATCH})"},
        "repeats": {"type": int, "default": 20, "help": "rounds that count, at least 2"},
        "device": {"choices": ["auto", "cpu", "cuda"], "default": "auto"},
        "threads": {"type": int, "default": 1, "help": "torch's, on the CPU"},
        "clock": {"choices": list(CLOCKS), "default": "wall", "help": "what is counted as time"},
        "methods": {
            "nargs": "+",
            "default": [*OPTIMIZERS, *FUNCTIONAL],
            "help": "of the steps, by name; the first is AdamW's",
        },
        "autocast": {"action": "store_true", "help": "forward under autocast to bf16"},
    }
    sys.exit(command("speed", __doc__, study, more))
