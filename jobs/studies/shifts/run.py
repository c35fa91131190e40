"""Who is sure of what it does not know? The quickstart's network and data, by method, on test images, shifts and no digits.

    python jobs/studies/shifts/run.py [--output shifts] [--seeds 3]

A Vision Transformer on digits, 800 gradient evaluations (the ensemble: 4 x 800). *Sure and wrong*: the share of images whose
class is predicted wrong with a confidence of 0.9 or more; photographs are of no class, so that every sure answer is wrong. The
wide arms ask whether it is the width of the posterior that is missing: their noise is what the network is started with.
An interrupted study goes on from ``runs.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from mlflow import MlflowClient
from tqdm import tqdm

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.tracking.runs import tracking_uri
from proxscore.tracking.study import study
from proxscore.training import launch

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ARMS: dict[str, list[str]] = {
    "AdamW": ["method={kind: adamw, lr: 3.0e-3}"],
    "4 x AdamW": ["method={kind: ensemble, members: 4, budget: each, of: {kind: adamw, lr: 3.0e-3}}"],
    "MC dropout": ["method={kind: mc_dropout, of: {kind: adamw, lr: 3.0e-3}}", "task.model.kwargs.proj_drop_rate=0.1"],
    "defaults": ["method.initial_noise=null"],
    "noise of 10 %": ["method.initial_noise=0.1"],
    "noise of 30 %": ["method.initial_noise=0.3"],  # as the quickstart has it
    "temperature 0.1": ["method.initial_noise=null", "method.temperature=0.1"],
    "4 x defaults": ["method={kind: ensemble, members: 4, budget: each, of: {kind: proximal_score}}"],
    "last layer, converged": [
        *("method.initial_noise=null", "method.initial_precision=0.1", "method.prior.select=last_layer"),
        *("method.metric=posterior", "method.prior.scale=0.3", "method.penalty.precision=30", "method.point_lr=3e-3"),
    ],
}
SHIFTS = ("test", "rotated", "noisy", "photographs")


def run(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one arm; validation NLL, test NLL, ECE and accuracy, and the share that is sure and wrong, by shift."""
    settings = ["baseline=null", "training.workers=0", "training.device=cpu", f"training.storage={folder / 'runs'}"]
    name = f"{arm}-{seed}".replace(" ", "_").replace(",", "").replace("%", "percent")
    config = configuration.load(QUICKSTART, [*settings, f"seed={seed}", f"name={name}", *ARMS[arm]])
    (outcome,) = launch.run(config, lambda line: None)
    recorded = MlflowClient(tracking_uri(config.tracking)).get_run(outcome.run_id).data.metrics
    found = {"test": outcome.results["test"], **outcome.results["shifted"]}
    by_shift = {shift: variants.get("posterior", variants.get("point")) for shift, variants in found.items()}
    sure = {shift: metrics["sure" if shift == "photographs" else "sure_errors"] for shift, metrics in by_shift.items()}
    single = config.method.kind != "ensemble"  # of an ensemble, what is recorded is its last member's
    validation = {"validation": recorded["validation/nll"]} if single else {}
    return {"sure": sure, **validation, **{name: by_shift["test"][name] for name in ("accuracy", "nll", "ece")}}


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("shifts"), help="folder of runs and the table")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    store = options.output / "runs.json"
    runs: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}
    try:
        with study("shifts", {"seeds": options.seeds}, options.output) as recorded:
            found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
            for seed, arm in (progress := tqdm([(seed, arm) for seed in range(options.seeds) for arm in ARMS])):
                if (key := f"{arm} | {seed}") not in runs:
                    progress.set_postfix_str(key)
                    runs[key] = run(arm, seed, options.output)
                    store.write_text(json.dumps(runs, indent=1))
                found[arm].append(runs[key])
            rows = [
                [arm, spread([one["validation"] for one in cells if "validation" in one])]
                + [spread([one[name] for one in cells]) for name in ("accuracy", "nll", "ece")]
                + [spread([one["sure"][shift] for one in cells]) for shift in SHIFTS]
                for arm, cells in found.items()
            ]
            header = (
                "method",
                "validation NLL",
                "accuracy",
                "NLL",
                "ECE",
                *(f"sure and wrong, {shift}" for shift in SHIFTS),
            )
            recorded.table("shifts", header, rows)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
