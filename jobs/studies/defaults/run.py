"""Do the defaults train without tuning? Five models, nothing tuned; at temperature 1 (the default) and colder.

    python jobs/studies/defaults/run.py --path /usr/share/datasets/fashion-mnist [--output FOLDER] [--seeds 2] [--quick]

AdamW at its customary rate (1e-3) and at three times that, with the same number of gradient evaluations, says what a trained
model is. A study that was interrupted goes on from ``runs.json`` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from tqdm import tqdm

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.tracking.runs import tracking_uri
from proxscore.tracking.study import study
from proxscore.training import launch

VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}}
DEEPER = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}}
RESNET = {
    "name": "resnet18",
    "kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64], "output_stride": 8},  # 28 x 28 pixels end as 4 x 4
}
CNN = {"name": "small_cnn"}

# Model, data, epochs, batch size.
MODELS: dict[str, tuple[dict[str, Any], str, float, int]] = {
    "CNN, Fashion-MNIST": (CNN, "fashion", 3, 100),
    "ViT of 4 blocks, Fashion-MNIST": (DEEPER, "fashion", 4, 100),
    "ResNet of 4 blocks, Fashion-MNIST": (RESNET, "fashion", 4, 100),
    "ViT of 2 blocks, digits": (VIT, "digits", 20, 64),
    "CNN, digits": (CNN, "digits", 20, 64),
}
RULES: dict[str, dict[str, Any]] = {
    "AdamW": {"kind": "adamw"},
    "AdamW, 0.003": {"kind": "adamw", "lr": 3e-3},
    "defaults": {"kind": "proximal_score"},
    "colder": {"kind": "proximal_score", "effective_data_size": 100_000},
}


def run(model: str, rule: str, seed: int, path: Path, folder: Path, quick: bool) -> dict[str, float]:
    """Train one cell; test metrics (16 draws), and the validation NLL at the end (4 draws)."""
    network, data, epochs, batch = MODELS[model]
    digits = {"kind": "digits"}
    config = configuration.parse(
        {
            "name": f"{model}-{rule}-{seed}".replace(" ", "_").replace(",", ""),
            "seed": seed,
            "task": {
                "model": network,
                "data": digits if data == "digits" else {"kind": "idx", "path": str(path), "limit": 10_000},
            },
            "method": RULES[rule],
            "baseline": None,
            "training": {
                "epochs": 0.2 if quick else epochs,
                "batch_size": batch,
                "workers": 0,
                "device": "cpu",
                "storage": str(folder / "runs"),
                "validate_every": epochs,
                "checkpoint_every": epochs,
            },
        }
    )
    (outcome,) = launch.run(config, lambda line: None)
    (metrics,) = (outcome.results["test"][v] for v in ("posterior", "point") if v in outcome.results["test"])
    recorded = MlflowClient(tracking_uri(config.tracking)).get_run(outcome.run_id).data.metrics
    return {name: metrics[name] for name in ("accuracy", "nll", "ece")} | {
        "validation": recorded["validation/nll"],
        "evaluations": float(outcome.results["evaluations"]),
    }


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def bars(cells: dict[tuple[str, str], list[dict[str, float]]]) -> Figure:
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    for number, rule in enumerate(RULES):
        values = [mean(r["validation"] for r in cells[model, rule]) for model in MODELS]
        axes.bar([index + 0.2 * (number - 1.5) for index in range(len(MODELS))], values, 0.18, label=rule)
    axes.set_xticks(range(len(MODELS)), [name.replace(", ", "\n") for name in MODELS], fontsize=8)
    axes.set_ylabel("validation NLL (nats), mean over the seeds")
    axes.legend()
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder of Fashion-MNIST's four idx files")
    parser.add_argument("--output", type=Path, default=Path("defaults"), help="folder of runs and figures")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="every cell, for a fifth of an epoch and one seed")
    options = parser.parse_args()
    if options.seeds < 1:
        print(f"error: --seeds is {options.seeds}; it must be at least 1", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    seeds = 1 if options.quick else options.seeds
    options.output.mkdir(parents=True, exist_ok=True)
    store = options.output / "runs.json"
    runs: dict[str, dict[str, float]] = json.loads(store.read_text()) if store.exists() else {}
    keys = [(model, rule, seed) for rule in RULES for seed in range(seeds) for model in MODELS]
    try:
        with study("defaults", {"seeds": seeds, "quick": options.quick}, options.output) as recorded:
            cells: dict[tuple[str, str], list[dict[str, float]]] = {}
            for model, rule, seed in (progress := tqdm(keys)):
                key = f"{model} | {rule} | {seed} | {'quick' if options.quick else 'full'}"
                if key not in runs:
                    progress.set_postfix_str(key)
                    runs[key] = run(model, rule, seed, options.path, options.output, options.quick)
                    store.write_text(json.dumps(runs, indent=1))
                cells.setdefault((model, rule), []).append(runs[key])
            rows = [
                [model, rule, f"{found[0]['evaluations']:,.0f}"]
                + [spread([r[name] for r in found]) for name in ("validation", "accuracy", "nll", "ece")]
                for model in MODELS
                for rule in RULES
                if (found := cells.get((model, rule)))
            ]
            header = ("model", "method", "evaluations", "validation NLL", "accuracy", "NLL", "ECE")
            recorded.table("defaults", header, rows)
            recorded.figure("defaults", bars(cells))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
