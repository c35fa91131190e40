"""The steps of large networks on one GPU, in five minutes, without Ray and MLflow: time, memory, and stalls.

    python jobs/studies/speed/gpu.py [--seconds 270] [--output gpu.json] [--profile trace.json.gz] [--device cpu --quick]

ViT-L/32 at 224 pixels and ResNet-101, random images, bf16 autocast, the network compiled: AdamW (fused), IVON (if ``ivon-opt``
is installed) and proximal score matching with single draws and with pairs. The contestants of a network take turns in every
round; ratios are medians over the rounds, with quartiles, of a step's time by AdamW's in the same round. Warm-up and compiling
come before. ``waits`` counts the operations of a step for which the host waited for the GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from proxscore.inference import ProximalScore

NETWORKS = {"vit_large_patch32_224": 256, "resnet101": 256}
QUICK = {"vit_tiny_patch16_224": 2, "resnet18": 2}
DATA = 1_281_167  # ImageNet's training images


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def ivon(model: nn.Module) -> Any:
    from ivon import IVON  # an extra

    return IVON(model.parameters(), lr=1e-6, ess=DATA)


def ours(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = ProximalScore(model.named_parameters(), DATA, lr=1e-6)
    optimizer.hold_draw = True  # as in a job's loop
    return optimizer


def pairs(model: nn.Module) -> torch.optim.Optimizer:
    return ProximalScore(model.named_parameters(), DATA, lr=1e-6, paired=True)


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW, fused": adamw,
    "IVON": ivon,
    "proximal score, single draws": ours,
    "proximal score, pairs": pairs,
}


class Contestant:
    """A network under a method, and its times."""

    def __init__(self, name: str, method: str, images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name).to(images.device)
        self.forward: Any = torch.compile(self.model) if images.is_cuda else self.model
        self.optimizer = METHODS[method](self.model)
        self.images, self.labels, self.method = images, labels, method
        self.times: list[float] = []

    def backward(self) -> None:
        with torch.autocast(self.images.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(self.forward(self.images), self.labels)
        loss.backward()

    def step(self) -> None:
        if isinstance(self.optimizer, ProximalScore):
            for _ in self.optimizer.draws():
                self.backward()
            self.optimizer.step()
        elif self.method == "IVON":
            with self.optimizer.sampled_params(train=True):
                self.optimizer.zero_grad()
                self.backward()
            self.optimizer.step()
        else:
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()

    def timed(self) -> None:
        synchronize(self.images.device)
        started = time.perf_counter()
        self.step()
        synchronize(self.images.device)
        self.times.append(time.perf_counter() - started)

    def waits(self) -> int | str:
        """How many operations of a step made the host wait."""
        if not self.images.is_cuda:
            return "-"
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                self.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in seen)

    def peak(self) -> float:
        """Most GB during a step."""
        if not self.images.is_cuda:
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        self.step()
        return torch.cuda.max_memory_allocated() / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured(name: str, batch: int, device: torch.device, until: float, quick: bool) -> list[dict[str, Any]]:
    """Rows of a network's contestants, who take turns until the time is over (three rounds at least)."""
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (batch,), device=device)
    contestants, left_out = [], []
    for method in METHODS:
        try:
            one = Contestant(name, method, images, labels)
            for _ in range(2 if quick else 4):
                one.step()
        except ImportError as error:
            left_out.append({"network": name, "method": method, "left out": str(error)})
            continue
        contestants.append(one)
    rounds = 0
    while rounds < 3 or (time.perf_counter() < until and not quick):
        for one in contestants:
            one.timed()
        rounds += 1
    rows = []
    for one in contestants:
        ratios = [mine / other for mine, other in zip(one.times, contestants[0].times, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row = {"network": name, "batch": batch, "method": one.method, "ms": 1e3 * statistics.median(one.times)}
        row |= {"ratio": median, "lower quartile": low, "upper quartile": high, "rounds": rounds, "waits": one.waits()}
        # Of this contestant alone: what the others hold is not counted.
        row["fused"] = getattr(one.optimizer, "fused", "-")
        rows.append(row)
    for row, one in zip(rows, contestants, strict=True):
        before = torch.cuda.memory_allocated() / 1e9 if device.type == "cuda" else 0.0
        row["peak GB beyond what all hold"] = one.peak() - before
        held = [
            each.values() for each in one.optimizer.state.values() if isinstance(each, dict)
        ]  # IVON's are in its groups
        state = sum(tensor.numel() for each in held for tensor in each if isinstance(tensor, torch.Tensor))
        row["state, numbers per weight"] = state / sum(p.numel() for p in one.model.parameters())
    return rows + left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=270.0)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--profile", type=Path, help="write a Chrome trace of two steps of ours here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, three rounds: to try the script")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    started = time.perf_counter()
    networks = QUICK if options.quick else NETWORKS
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "timm": timm.__version__, "rows": []}
    for number, (network, batch) in enumerate(networks.items(), 1):
        rows = measured(network, batch, device, started + options.seconds * number / len(networks), options.quick)
        found["rows"] += rows
        for row in rows:
            print(json.dumps(row), flush=True)
        options.output.write_text(json.dumps(found, indent=1))
        gc.collect()
    if options.profile is not None:
        batch = next(iter(networks.values()))
        one = Contestant(next(iter(networks)), "proximal score, single draws", torch.randn(batch, 3, 224, 224, device=device),
                         torch.randint(0, 1000, (batch,), device=device))  # fmt: skip
        for _ in range(3):
            one.step()
        with torch.profiler.profile() as trace:
            for _ in range(2):
                one.step()
            synchronize(device)
        trace.export_chrome_trace(str(options.profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
