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

import functools
import os
import platform
import statistics
import sys
from argparse import Namespace
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import timm
import torch
from contestants import CLOCKS, OPTIMIZERS, Contestant, Workload, memory, size, times  # type: ignore[import-not-found]

from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.inference import ProximalScore
from proxscore.tracking import Study
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)

# Images per batch: by network, otherwise by device.
BATCH = {"small_cnn": 100, "cpu": 8, "cuda": 128}


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
