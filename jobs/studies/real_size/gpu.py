"""Large networks on one GPU, in less than five minutes: time and memory of a step beside fused AdamW's, and a posterior's files.

    python jobs/studies/real_size/gpu.py [--device cuda] [--networks resnet101 ...] [--budget 280] [--output gpu.json] [--quick]

Plain Python: torch, timm, and of proxscore what needs no cluster. Weights and images are random; forward passes run in bf16
(autocast), compiled block by block. A step of proximal score matching scores one draw, as AdamW's one gradient. Seconds are
the median of the steps behind the first ones, which compile, between synchronisations; memory is what torch's allocator had
handed out at most in these steps. Then the posterior is saved and read, and its first draw compared bit for bit. A network
that is not begun within the budget is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from proxscore.inference import Categorical, ProximalScore
from proxscore.posterior import Posterior
from proxscore.training.sharding.parallelize import blocks

#: Pixels of a side, and rows of a step.
NETWORKS = {
    "resnet101": (224, 128),
    "vit_large_patch32_224": (224, 128),
    "vit_large_patch32_384": (384, 64),
    "convnext_large": (224, 64),
    "tf_efficientnet_lite0": (224, 128),
}
QUICK = {"test_vit": (160, 2)}
COLUMNS = {
    "network": "{}",
    "parameters": "{:,}",
    "rows": "{}",
    "build_s": "{:.1f}",
    "adamw_ms": "{:.1f}",
    "proximal_ms": "{:.1f}",
    "ratio": "{:.2f}",
    "adamw_gib": "{:.2f}",
    "proximal_gib": "{:.2f}",
    "file_gib": "{:.2f}",
    "save_s": "{:.1f}",
    "load_s": "{:.1f}",
    "same_draw": "{}",
}


def synchronised(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(step: Callable[[], None], device: torch.device, steps: int, warm: int) -> tuple[float, float | None]:
    """Median milliseconds of a step, and the most GiB that were held (of a CPU: none)."""
    for _ in range(warm):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, before = [], synchronised(device)
    for _ in range(steps):
        step()
        now = synchronised(device)
        seconds.append(now - before)
        before = now
    held = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return 1e3 * statistics.median(seconds), held


def measure(name: str, size: int, rows: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A network's row."""
    started = synchronised(device)
    with device:
        model: Any = timm.create_model(name)
    built = synchronised(device) - started
    if options.compile:
        for block in blocks(model).values() or [model]:
            block.compile()
    images = torch.randn(rows, 3, size, size, device=device)
    labels = torch.randint(model.num_classes, (rows,), device=device)
    likelihood = Categorical()

    def evaluate() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs: Tensor = model(images)
        likelihood.nll(outputs, labels).mean().backward()

    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def adamw_step() -> None:
        adamw.zero_grad()
        evaluate()
        adamw.step()

    adamw_ms, adamw_gib = timed(adamw_step, device, options.steps, options.warm)
    adamw.zero_grad()
    adamw.state.clear()
    optimizer = ProximalScore(model.named_parameters(), data_size=50_000)

    def proximal_step() -> None:
        for _ in optimizer.draws():
            evaluate()
        optimizer.step()

    proximal_ms, proximal_gib = timed(proximal_step, device, options.steps, options.warm)
    posterior = Posterior.of(model, optimizer)
    with tempfile.TemporaryDirectory() as place:
        started = synchronised(device)
        folder = posterior.save(place)
        saved = time.perf_counter() - started
        bytes_written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        started = time.perf_counter()
        loaded = Posterior.load(folder)
        read = time.perf_counter() - started
    with posterior.use(model, 0):
        weights = {key: value.detach().to("cpu", copy=True) for key, value in model.named_parameters()}
    drawn = Posterior(to_device(loaded.mean, device), to_device(loaded.precision, device)).draw(0)
    same = all(torch.equal(drawn[key].cpu(), value) for key, value in weights.items())
    return {
        **{"network": name, "parameters": sum(p.numel() for p in model.parameters()), "rows": rows, "build_s": built},
        **{"adamw_ms": adamw_ms, "proximal_ms": proximal_ms, "ratio": proximal_ms / adamw_ms},
        **{"adamw_gib": adamw_gib, "proximal_gib": proximal_gib},
        **{"file_gib": bytes_written / 2**30, "save_s": saved, "load_s": read, "same_draw": same},
    }


def to_device(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "–" if value is None else COLUMNS[column].format(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=10, help="that count")
    parser.add_argument("--warm", type=int, default=3, help="steps before them, which compile")
    parser.add_argument("--budget", type=float, default=280, help="seconds after which no network is begun")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--quick", action="store_true", help="one tiny network, not compiled: does it run?")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.warm < 1:
        parser.error("--steps and --warm must be at least 1")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "error: --device cuda: torch sees no GPU here; --quick --device cpu shows that the script runs",
            file=sys.stderr,
        )
        return 2
    chosen = {name: NETWORKS[name] for name in options.networks}
    if options.quick:
        chosen, options.compile, options.steps, options.warm = QUICK, False, 2, 1
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    record: dict[str, Any] = {"device": machine, "torch": torch.__version__, "timm": timm.__version__}
    record |= {"compile": options.compile, "networks": [], "left_out": {}}
    print(", ".join(f"{key} {record[key]}" for key in ("device", "torch", "timm", "compile")))
    print(line(list(COLUMNS)), line(["---"] * len(COLUMNS)), sep="\n")
    torch.manual_seed(0)
    started = time.perf_counter()
    for name, (size, rows) in chosen.items():
        if time.perf_counter() - started > options.budget:
            record["left_out"][name] = f"not begun within {options.budget:g} s"
            continue
        try:
            row = measure(name, size, rows, options, device)
        except torch.OutOfMemoryError:
            record["left_out"][name] = f"out of memory at {rows} rows"
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            torch.compiler.reset()
        record["networks"].append(row)
        print(line([cell(row, column) for column in COLUMNS]), flush=True)
        options.output.write_text(json.dumps(record, indent=2) + "\n")
    for name, reason in record["left_out"].items():
        print(f"{name}: {reason}")
    record["seconds"] = time.perf_counter() - started
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{record['seconds']:.0f} s; {options.output}")
    return 0 if record["networks"] else 1


if __name__ == "__main__":
    sys.exit(main())
