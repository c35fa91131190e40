"""What a step would take on 8 to 1,024 GPUs: the estimate of ``--dry-run`` for large networks, beside published figures.

    python jobs/studies/speed/scale.py [--quick] [--device H100] [--utilisation 0.4] [--hourly 3]

Nothing is measured: operations, bytes and messages are counted on the meta device, and divided by the rates in
``proxscore/training/preflight/hardware.py``. The first table says how far such estimates were from published throughputs.
"""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from decoder import SIZES, on_meta  # type: ignore[import-not-found]
from matplotlib.figure import Figure
from published import PUBLISHED, Published  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional

from proxscore.config import MethodSection, parse
from proxscore.experiments.study import Rows, command
from proxscore.methods import RunLength, Setup, build_method
from proxscore.tracking import Study
from proxscore.training.preflight.hardware import DEVICES, Hardware
from proxscore.training.preflight.memory import gathered_bytes, held_bytes, saved_bytes
from proxscore.training.preflight.passes import moved_in_a_step
from proxscore.training.preflight.speed import counted_operations, shares
from proxscore.training.preflight.step_time import StepTime, step_time
from proxscore.training.preflight.traffic import traffic_of
from proxscore.training.sharding.parallelize import blocks

GPUS, QUICK_GPUS = (8, 16, 32, 64, 128, 256, 512, 1024), (8, 1024)
#: Rows of a GPU and tokens of a row (0: images), by network: timm's, or one of decoder.SIZES.
NETWORKS = {"vit_large_patch16_224": (64, 0), "vit_huge_patch14_224": (32, 0), "Llama 2 7B": (2, 4096)}
#: Recomputation of blocks in the backward pass: activations are checkpointed everywhere.
RECOMPUTED = 1.0


@dataclass(frozen=True, eq=False)
class Way:
    """A method, and how GPUs are arranged for it: draw groups, and shards of a copy at most."""

    name: str
    settings: dict[str, Any]
    groups: int = 1
    shards: int | None = None


WAYS = (
    Way("AdamW", {"kind": "adamw"}),
    Way("single draws", {"kind": "proximal_score", "initial_noise": 0.02}),
    Way("pairs", {"kind": "proximal_score", "initial_noise": 0.02, "paired": True}),
    Way("two draws, two groups", {"kind": "proximal_score", "initial_noise": 0.02, "draws": 2}, groups=2),
    Way("single draws, 8 shards", {"kind": "proximal_score", "initial_noise": 0.02}, shards=8),
)


@dataclass(frozen=True)
class Counted:
    """A network on the meta device, and the operations of a row's forward and backward pass by block."""

    module: nn.Module
    operations: dict[str, float]
    numbers: int


@functools.cache
def counted(name: str, tokens: int) -> Counted:
    """Count a network's operations."""
    if name in SIZES:
        module: nn.Module = on_meta(name)
    else:
        with torch.device("meta"):
            module = timm.create_model(name)
    operations = counted_operations(module, lambda: module(example(name, 1, tokens)).sum())
    return Counted(module, operations, sum(p.numel() for p in module.parameters()))


def example(name: str, rows: int, tokens: int) -> Tensor:
    """Inputs without numbers."""
    if tokens:
        return torch.empty(rows, tokens, dtype=torch.long, device="meta")
    return torch.empty(rows, 3, 224, 224, device="meta")


def seconds(
    network: Counted,
    gpu: Hardware,
    arranged: tuple[int, int, int],
    rows: int,
    utilisation: float,
    evaluations: int,
    moved: float,
    recomputed: float,
) -> StepTime:
    """The time of a step.

    Args:
        arranged: draw groups, replicas and shards.
        rows: of a GPU.
        utilisation: of its peak while it computes.
        evaluations: of the gradient in a step, over all draw groups.
        moved: bytes of the update for each number.
        recomputed: share of the forward pass that the backward pass runs again.
    """
    traffic = traffic_of(network.module, arranged, evaluations)
    operations = rows * sum(network.operations.values()) * (3 + recomputed) / 3
    update = moved * network.numbers / arranged[2] / gpu.bandwidth
    parts = shares(network.operations, traffic.parts)
    return step_time(traffic, gpu.fabric, operations / (gpu.peak * utilisation), update, parts, 1 / (3 + recomputed))


def published_throughput(figure: Published, utilisation: float) -> float:
    """Tokens per second and GPU that are predicted for a published figure."""
    network, gpu = counted(figure.network, figure.tokens), DEVICES[figure.device].with_network(figure.gbit)
    arranged = 1, figure.gpus // figure.shards, figure.shards
    step = seconds(network, gpu, arranged, figure.rows, utilisation, 1, 28.0, figure.recomputed)
    return figure.rows * figure.tokens / step.seconds


def utilisation_of(figure: Published) -> float:
    """The utilisation that a published figure follows from; 1: none, as even at the peak it would be slower."""
    low, high = 0.01, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if published_throughput(figure, middle) < figure.throughput else (low, middle)
    return high


def published_rows(quick: bool) -> list[list[str]]:
    """The comparison: a group's first figure gives its utilisation, which the others are predicted with."""
    found, utilisation, group = [], 0.0, ""
    for figure in PUBLISHED:
        if quick and "8B" not in figure.network:
            continue
        fitted = figure.group != group
        if fitted:
            group, utilisation = figure.group, utilisation_of(figure)
        predicted = published_throughput(figure, utilisation)
        error = "(fitted)" if fitted else f"{predicted / figure.throughput - 1:+.1%}"
        where = f"{figure.gpus} x {figure.device}, {figure.shards} shards, {figure.rows} x {figure.tokens} tokens"
        numbers = [f"{figure.throughput:,.0f}", f"{predicted:,.0f}", error, f"{utilisation:.2f}"]
        found.append([figure.network, where, *numbers, figure.group])
    return found


PUBLISHED_HEADER = ["network", "GPUs", "published, tokens/s a GPU", "predicted", "error", "utilisation", "source"]
HEADER = [
    *("network", "GPUs", "method", "arrangement", "step, s", "rows/s", "of AdamW's", "computing", "update", "waiting"),
    *("memory, GB a GPU", "price of a million rows"),
]


@dataclass(frozen=True)
class Prediction:
    """A line of the table: seconds of a step and its parts, rows of the batch a second, bytes of a GPU, price."""

    network: str
    gpus: int
    way: Way
    arranged: tuple[int, int, int]
    step: StepTime
    throughput: float
    memory: float
    price: float

    def cells(self, adamw: float) -> list[str]:
        groups, replicas, shards = self.arranged
        whole = self.step.seconds
        parts = [f"{part / whole:.1%}" for part in (self.step.computing, self.step.update, self.step.waited)]
        arranged = f"{groups} x {replicas} x {shards}"
        numbers = [f"{whole:.3g}", f"{self.throughput:,.0f}", f"{self.throughput / adamw:.2f}", *parts]
        return [
            self.network,
            f"{self.gpus:,}",
            self.way.name,
            arranged,
            *numbers,
            f"{self.memory / 1e9:.1f}",
            f"{self.price:,.2f}",
        ]


def predictions(quick: bool, device: str = "H100", utilisation: float = 0.4, hourly: float = 3.0) -> list[Prediction]:
    """All lines, by network, GPUs and method; AdamW first."""
    networks = list(NETWORKS)[:1] if quick else list(NETWORKS)
    return [
        predicted(name, gpus, way, DEVICES[device], utilisation, hourly)
        for name in networks
        for gpus in (QUICK_GPUS if quick else GPUS)
        for way in WAYS
        if gpus > (way.shards or 0)
    ]


def predicted(name: str, gpus: int, way: Way, gpu: Hardware, utilisation: float, hourly: float) -> Prediction:
    """A line of the table."""
    rows, tokens = NETWORKS[name]
    network = counted(name, tokens)
    shards = way.shards or gpus // way.groups
    arranged = way.groups, gpus // way.groups // shards, shards
    settings = method_of(way)
    moved = moved_in_a_step(settings, way.groups).fused
    step = seconds(network, gpu, arranged, rows, utilisation, settings.evaluations_per_step(), moved, RECOMPUTED)
    throughput = rows * gpus / way.groups / step.seconds
    held = sum(held_by(name, tokens, way).values()) / shards
    several = settings.evaluations_per_step() > 0 and way.settings["kind"] == "proximal_score"
    summed = 4.0 * network.numbers / shards if several else 0.0  # the gradient of the step
    memory = held + gathered_bytes(network.module, shards, 2) + summed + activations(name, rows, tokens)
    price = 1e6 / throughput / 3600 * gpus * hourly
    return Prediction(name, gpus, way, arranged, step, throughput, memory, price)


def method_of(way: Way) -> MethodSection:
    """The settings of a method."""
    return parse({"method": way.settings}).method


@functools.cache
def held_by(name: str, tokens: int, way: Way) -> dict[str, float]:
    """The bytes of weights, gradients and state, of a worker alone."""
    module = counted(name, tokens).module
    method = build_method(method_of(way), Setup(module, RunLength(10_000, 1000, 1_000_000)))
    return held_bytes(method, module, 1)


@functools.cache
def activations(name: str, rows: int, tokens: int) -> float:
    """Bytes of a micro-batch's activations in bfloat16: the inputs of all blocks, all of one of them, and what is around them."""
    module = counted(name, tokens).module
    with _flash():
        whole = saved_bytes(module, lambda: module(example(name, rows, tokens)).sum())
        block = next(iter(blocks(module).values()))
        width = next(p for p in block.parameters() if p.ndim == 1).numel()
        length = tokens or 1 + (224 // int(name.split("patch")[1].split("_")[0])) ** 2
        x = torch.empty(rows, length, width, device="meta", requires_grad=True)
        inside = saved_bytes(block, lambda: block(x).sum())
    count = len(blocks(module))
    return (whole - (count - 1) * inside + count * x.nbytes) / 2


@contextmanager
def _flash() -> Iterator[None]:
    """Within the context, attention keeps what flash attention keeps on GPUs, not all weights of all heads."""
    plain: Callable[..., Tensor] = functional.scaled_dot_product_attention

    def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, is_causal: bool = False, **__: Any) -> Tensor:
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)[0]
        return found

    functional.scaled_dot_product_attention = flash
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def rows(quick: bool, device: str = "H100", utilisation: float = 0.4, hourly: float = 3.0) -> list[dict[str, str]]:
    """The lines of the table, by :data:`HEADER`."""
    return [dict(zip(HEADER, line, strict=True)) for line in cells(predictions(quick, device, utilisation, hourly))]


def cells(found: list[Prediction]) -> list[list[str]]:
    """The table's cells; throughputs beside AdamW's of the same network on as many GPUs."""
    adamw = {(line.network, line.gpus): line.throughput for line in found if line.way.name == "AdamW"}
    return [line.cells(adamw[line.network, line.gpus]) for line in found]


STYLES = dict(
    zip(
        (way.name for way in WAYS),
        (("#555555", "-o"), ("#0072B2", "-o"), ("#D55E00", "--s"), ("#009E73", ":^"), ("#CC79A7", "-.v")),
        strict=True,
    )
)


def figure(found: list[Prediction]) -> Figure:
    """Rows per second and GPU over GPUs, a panel for each network."""
    networks = list(dict.fromkeys(line.network for line in found))
    drawn = Figure(figsize=(4 * len(networks), 3.2), layout="constrained")
    for axes, name in zip(drawn.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        for way in WAYS:
            lines = [line for line in found if line.network == name and line.way == way]
            colour, style = STYLES[way.name]
            axes.plot(
                [line.gpus for line in lines],
                [line.throughput / line.gpus for line in lines],
                style,
                c=colour,
                ms=4,
                label=way.name,
            )
        axes.set(title=name, xlabel="GPUs", ylabel="rows/s a GPU (predicted)", xscale="log", ylim=(0, None))
        at = sorted({line.gpus for line in found})
        axes.set_xticks(at, [f"{gpus:,}" for gpus in at])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return drawn


def study(options: Namespace, record: Study, _: Rows) -> None:
    record.table("published", PUBLISHED_HEADER, published_rows(options.quick))
    found = predictions(options.quick, options.device, options.utilisation, options.hourly)
    record.table("scale", HEADER, cells(found))
    record.figure("scale", figure(found))


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {
        "device": {"choices": list(DEVICES), "default": "H100"},
        "utilisation": {"type": float, "default": 0.4, "help": "of the device's peak while it computes"},
        "hourly": {"type": float, "default": 3.0, "help": "price of a GPU for an hour (assumed: 3)"},
    }
    sys.exit(command("scale", __doc__, study, more))
