"""Large networks, sharded over two processes of a CPU: memory against a dry run's count, and posteriors that are never whole.

    python jobs/studies/real_size/run.py [--networks resnet101 convnext_large] [--output real_size] [--quick]

Each network is trained from random weights on digits, enlarged to its size, in a folder of images. Two steps are taken and
the processes end, as if killed, one step behind a checkpoint; two others go on from that, evaluate two draws and save. Then
one process reads the posterior, and ``torchrun jobs/evaluate.py`` judges it in shards and must give the same metrics.

Memory is the most pages that a worker had in RAM in a step (Linux's VmHWM, reset before the step), above those that it had before
there was a network; the larger of the two workers counts. The first processes run under MALLOC_MMAP_THRESHOLD_=131072, with
which glibc hands freed tensors back to the system: what is measured is what is allocated. The second ones run under glibc's
defaults, which keep much of what is freed: what a machine must have.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
from PIL import Image

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.tracking import Study
from proxscore.training.preflight.memory import Memory, count_memory

HERE = Path(__file__).resolve().parent
#: Pixels of a side, and rows of a step over both workers.
NETWORKS = {
    "vit_large_patch32_224": (224, 4),
    "convnext_large": (224, 2),
    "vit_large_patch32_384": (384, 2),
    "resnet101": (224, 4),
    "tf_efficientnet_lite0": (224, 4),
}
#: Whose layers have weights that they cannot initialise shard by shard (ConvNeXt's layer scale): each process builds the whole.
WHOLE = ("convnext_large",)
QUICK = {"test_vit": (160, 4)}
WORKERS, STEPS, DRAWS = 2, 3, 2
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
SPARE = 3 * 2**30  # bytes of this machine that stay free


def images(folder: Path, size: int, batch: int) -> Path:
    """A folder of enlarged digits of two classes: as many for training as the steps take, four for validation and for test."""
    from sklearn.datasets import load_digits

    digits, first = load_digits(), 0
    for part, count in (("train", batch * STEPS // 2), ("val", 2), ("test", 2)):
        for label in (0, 1):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            rows = np.flatnonzero(digits.target == label)[first : first + count]
            for number, row in enumerate(rows):
                image = Image.fromarray((digits.images[row] * 15).astype(np.uint8)).convert("RGB")
                image.resize((size, size), Image.Resampling.BILINEAR).save(folder / part / str(label) / f"{number}.png")
        first += count
    return folder


def settings(name: str, size: int, batch: int, folder: Path) -> dict[str, Any]:
    """The configuration of a network's run."""
    return {
        "name": name,
        "task": {
            "model": {"name": name},
            "data": {"kind": "image_folder", "path": str(images(folder / "images", size, batch)), "size": size},
        },
        # Widths are given: measuring them costs some passes before the first step.
        "method": {"kind": "proximal_score", "initial_noise": 0.02},
        "training": {
            **{
                "device": "cpu",
                "workers": WORKERS,
                "batch_size": batch,
                "meta_init": name not in WHOLE,
                "loader_processes": 0,
            },
            **{"epochs": 1, "checkpoint_every": 1 / STEPS, "keep_checkpoints": 1, "storage": str(folder / "run")},
        },
        "evaluation": {"draws": DRAWS, "validation_draws": 1, "batch_size": batch, "norm_batches": 1},
        "tracking": {"interval": 0},
    }


def counted(tree: dict[str, Any]) -> Memory:
    """What a dry run counts."""
    config = configuration.parse(tree)
    return count_memory(config, config.method, config.task.build())


def call(arguments: list[str], processes: int, result: Path, environment: dict[str, str]) -> Any:
    """Run a script in so many processes; what it left in a file."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "Error: " in line or line.startswith("error")]
        raise ConfigError(f"{' '.join(arguments)}: {told[0] if told else done.stderr[-500:]}")
    return json.loads(result.read_text())


def measure(network: str, size: int, batch: int, output: Path) -> dict[str, Any]:
    """A network's row: built, trained, killed, resumed, saved, loaded, judged."""
    folder = (output / network).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    tree = settings(network, size, batch, folder)
    memory = counted(tree)
    needed, free = WORKERS * (1.25 * memory.total + 2**30), psutil.virtual_memory().available - SPARE
    if needed > free:
        raise ConfigError(
            f"{network} needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB may be used here"
        )
    file, worker = folder / "config.json", str(HERE / "worker.py")
    file.write_text(json.dumps(tree))
    begun = call([worker, str(file), "begin", str(folder / "begun.json")], WORKERS, folder / "begun.json", RETURNED)
    resumed = call([worker, str(file), "resume", str(folder / "resumed.json")], WORKERS, folder / "resumed.json", {})
    (posterior,) = folder.glob("run/checkpoints/*/posterior")
    loaded = call([worker, str(posterior), "load", str(folder / "loaded.json")], 1, folder / "loaded.json", {})
    judge = [str(HERE.parents[1] / "evaluate.py"), str(posterior), "--draws", str(DRAWS), "--output", str(folder)]
    judge += [
        "training.device=cpu",
        f"training.meta_init={str(network not in WHOLE).lower()}",
        f"training.batch_size={batch}",
        "evaluation.norm_batches=1",
    ]
    judged = call(
        [*judge, f"evaluation.batch_size={batch}"], WORKERS, folder / f"image_folder_test_{DRAWS}_draws.json", {}
    )
    size_of_files = [path.stat().st_size for path in sorted(posterior.glob("*.safetensors"))]
    shutil.rmtree(folder / "run")
    before, after = losses(begun), losses(resumed)
    return {
        "parameters": memory.parameters,
        "batch": batch,
        "counted": memory.total,
        "parts": memory.held | {"gathered": memory.gathered, "activations": memory.activations},
        "peaks": {phase: peak(begun, phase) for phase in ("step", "checkpoint", "validation")},
        "kept": {phase: peak(resumed, phase) for phase in ("step", "validation", "evaluation", "posterior")},
        "seconds": min(
            p["times"]["seconds_forward_backward"] + p["times"]["seconds_update"] for p in phases(resumed, "")
        ),
        "goes on with": min(after),
        "same loss": all(before[step] == after[step] for step in before.keys() & after.keys()),
        "files": size_of_files,
        "loaded": loaded,
        "same metrics": abs(judged["metrics"]["nll"] - resumed[0]["test"]["posterior"]["nll"]) < 1e-5,
        "free before": free + SPARE,
    }


def phases(ranks: list[Any], name: str) -> list[Any]:
    """The phases of this name of all workers; without a name: those that hold steps."""
    found = [phase for rank in ranks for phase in rank["phases"]]
    return [phase for phase in found if (phase["name"] == name if name else "times" in phase)]


def peak(ranks: list[Any], name: str) -> float:
    """The most that a worker took in a phase."""
    return max((phase["peak"] for phase in phases(ranks, name)), default=0.0)


def losses(ranks: list[Any]) -> dict[int, float]:
    """Training losses by step."""
    return {int(step): loss for phase in phases(ranks, "") for step, loss in phase["losses"]}


def study(options: Namespace, record: Study, rows: Rows) -> None:
    chosen = QUICK if options.quick else {name: NETWORKS.get(name, (0, 0)) for name in options.networks or NETWORKS}
    if unknown := [name for name, (size, _) in chosen.items() if not size]:
        raise ConfigError(f"--networks {unknown[0]}: the study has {', '.join(NETWORKS)}")
    if not Path("/proc/self/clear_refs").exists():
        raise ConfigError("the study measures memory by /proc, which only Linux has")
    record.run.describe(
        {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
        | {"timm": timm.__version__, "memory": psutil.virtual_memory().total},
        {},
    )
    keys: list[dict[str, Any]] = [
        {"network": name, "size": size, "batch": batch} for name, (size, batch) in chosen.items()
    ]
    found = list(rows.each(keys, lambda key: measure(**key, output=options.output)))
    gib = 2**30
    record.table(
        "memory",
        [
            "network",
            "parameters",
            "rows",
            "s per step",
            "counted, GiB",
            "allocated, GiB",
            "ratio",
            "in RAM, GiB",
            "ratio",
        ],
        [
            [
                *[key["network"], f"{row['parameters']:,}", row["batch"], f"{row['seconds']:.1f}"],
                *[f"{row['counted'] / gib:.2f}", f"{row['peaks']['step'] / gib:.2f}"],
                f"{row['peaks']['step'] / row['counted']:.2f}",
                *[f"{row['kept']['validation'] / gib:.2f}", f"{row['kept']['validation'] / row['counted']:.2f}"],
            ]
            for key, row in found
        ],
    )
    record.table(
        "storage",
        [
            "network",
            "goes on with step",
            "same loss",
            "files, GiB",
            "one process reads: s",
            "peak / size",
            "same metrics",
        ],
        [
            [
                *[key["network"], row["goes on with"], "yes" if row["same loss"] else "no"],
                " + ".join(f"{size / gib:.2f}" for size in row["files"]),
                *[f"{row['loaded']['seconds']:.1f}", f"{row['loaded']['peak'] / row['loaded']['bytes']:.2f}"],
                "yes" if row["same metrics"] else "no",
            ]
            for key, row in found
        ],
    )


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {
        "networks": {"nargs": "+", "default": None, "help": f"of {', '.join(NETWORKS)}"},
    }
    sys.exit(command("real size", __doc__, study, more))
