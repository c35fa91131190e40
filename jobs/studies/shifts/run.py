"""Who is sure of what it does not know? The quickstart's network and data, by method, on test images, shifts and no digits.

    python jobs/studies/shifts/run.py [--output shifts] [--seeds 3] [--quick]

A Vision Transformer on digits, 800 gradient evaluations (the ensembles: 4 x 800, which is why this is no comparison at an
equal budget). *Sure and wrong*: the share of images whose class is predicted wrong with a confidence of 0.9 or more;
photographs are of no class, so that every sure answer is wrong. The wide arms ask whether it is the width of the posterior
that is missing: their noise is what the network is started with.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.experiments.study import Rows, command, spread, trained
from proxscore.tracking import Study

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


def run(key: tuple[str, int], options: Namespace) -> dict[str, Any]:
    """Train one arm; validation NLL, test NLL, ECE and accuracy, and the share that is sure and wrong, by shift."""
    arm, seed = key
    settings = ["training.workers=0", "training.device=cpu", f"training.storage={options.output / 'runs'}"]
    settings += ["training.epochs=1"] if options.quick else []
    name = f"{arm}-{seed}-{options.quick}".replace(" ", "_").replace(",", "").replace("%", "percent")
    config = configuration.load(QUICKSTART, ["baseline=null", *settings, f"seed={seed}", f"name={name}", *ARMS[arm]])
    found = trained(config)
    by_shift = {"test": found, **found["shifted"]}
    sure = {shift: metrics["sure" if shift == "photographs" else "sure_errors"] for shift, metrics in by_shift.items()}
    single = config.method.kind != "ensemble"  # of an ensemble, what is recorded is its last member's
    validation = {"validation": found["validation"]} if single else {}
    return {"sure": sure, **validation, **{name: found[name] for name in ("accuracy", "nll", "ece")}}


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    cells: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    keys = [(arm, seed) for seed in range(1 if options.quick else options.seeds) for arm in ARMS]
    for (arm, _), found in rows.each(keys, lambda key: run(key, options)):
        cells[arm].append(found)
    header = ["method", "validation NLL", "accuracy", "NLL", "ECE", *(f"sure and wrong, {shift}" for shift in SHIFTS)]
    table = [
        [arm, spread([one["validation"] for one in found if "validation" in one])]
        + [spread([one[name] for one in found]) for name in ("accuracy", "nll", "ece")]
        + [spread([one["sure"][shift] for one in found]) for shift in SHIFTS]
        for arm, found in cells.items()
    ]
    record.table("shifts", header, table)


if __name__ == "__main__":
    sys.exit(command("shifts", __doc__, measure))
