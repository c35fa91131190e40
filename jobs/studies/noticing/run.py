"""Does the uncertainty of forecasts grow where the past is unlike that of training, and is it said?

    python jobs/studies/noticing/run.py [--output noticing] [--seeds 1] [--quick]

Half-hourly electricity demand (a day ahead), and births per day of 46 states (28 days ahead; five states are left out, and are
the panel of another row). The past of each test window is forecast as it is, and with a shift that is planted in it; the
targets have the shift too, as it would go on. Of constants and zeros only the width counts.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import proxscore
from proxscore import config as configuration
from proxscore.calibration.quantiles import pinball_loss
from proxscore.experiments.study import Rows, command, posterior_of, spread
from proxscore.forecasting.sources.births import BirthsConfig
from proxscore.forecasting.sources.taylor import TaylorConfig
from proxscore.tracking import Study
from proxscore.training import launch

ARMS: dict[str, list[str]] = {
    "defaults": [],
    "no dropout": ["task.model.kwargs.dropout=0"],
    "wide": ["method.initial_precision=20"],
    "wide, no dropout": ["method.initial_precision=20", "task.model.kwargs.dropout=0"],
    "last layer": ["method.prior.select=last_layer"],
    "2 x defaults": ["method={kind: ensemble, members: 2, budget: each, of: {kind: proximal_score}}"],
}
OUT = ["AK", "CA", "IA", "NY", "WY"]  # states that are not trained on
PROBABILITIES = [k / 40 for k in range(1, 40)]
Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Series, and how windows are cut: horizon, season, context, test windows of each series, and settings of the training."""

    values: pd.DataFrame
    horizon: int
    season: int
    context: int
    windows: int
    settings: list[str]
    out: list[str]


def panels() -> dict[str, Panel]:
    def values(data: Any) -> pd.DataFrame:
        found = data.load(None)
        return pd.DataFrame({s.id: pd.Series(s.target.astype(float), s.timestamps(0, len(s))) for s in found.series})

    demand, births = values(TaylorConfig()), values(BirthsConfig())
    return {
        "demand": Panel(demand, 48, 48, 336, 14, ["task.data.season=48", "training.epochs=10"], []),
        "births": Panel(births, 28, 7, 371, 4, ["task.train_stride=14", "training.epochs=3"], OUT),
    }


def shifts(past: Values, ahead: Values, season: int) -> dict[str, tuple[Values, Values]]:
    """Of windows (N, season / 2 + L) and (N, H), the past (N, L) and the targets with each shift."""
    half = season // 2
    own, ago = past[:, half:], np.concatenate([past, ahead], 1)[:, : -half or None]
    length, last, size = own.shape[1], own.shape[1] // 4, own.std(1, keepdims=True)

    def late(change: Callable[[Values], Values]) -> tuple[Values, Values]:
        return np.concatenate([own[:, :-last], change(own[:, -last:])], 1), change(ahead)

    level = np.broadcast_to(own.mean(1, keepdims=True), own.shape)
    short = own.copy()
    short[:, : length - last] = np.nan
    return {
        "as they are": (own, ahead),
        "last quarter x 5": late(lambda part: 5 * part),
        "last quarter + 3 sd": late(lambda part: part + 3 * size),
        "all x 10": (10 * own, 10 * ahead),
        "half a season late": (ago[:, :length], ago[:, length:]),
        "constant": (level, np.broadcast_to(level[:, :1], ahead.shape)),
        "zeros": (0 * own, 0 * ahead),
        "a quarter of the past": (short, ahead),
    }


def judged(predictor: Any, panel: Panel, names: list[str]) -> dict[str, dict[str, float]]:
    """Means over test windows, by shift; widths and CRPS in units of the standard deviation of each window's past."""
    half, length, h = panel.season // 2, panel.context, panel.horizon
    ends = [len(panel.values) - (k + 1) * h for k in range(panel.windows)]
    places = [(name, end) for name in names for end in ends]
    cut = [panel.values[name].to_numpy()[end - length - half : end + h] for name, end in places]
    windows = np.stack(cut)
    size = windows[:, half : half + length].std(1)[:, None]
    found = {}
    for shift, (past, ahead) in shifts(windows[:, : half + length], windows[:, half + length :], panel.season).items():
        kept = ~np.isnan(past[0])
        stamps = [panel.values.index[end - length : end][kept] for _, end in places]
        table = pd.concat(
            [
                pd.DataFrame({"series": f"{k:04d}", "timestamp": s, "target": p[kept]})
                for k, (s, p) in enumerate(zip(stamps, past, strict=True))
            ]
        )
        columns = {"id_columns": ["series"]}
        answer = predictor.predict(table, columns=columns)
        quantiles, targets = answer.quantiles(PROBABILITIES).double().numpy(), torch.from_numpy(ahead.copy())
        losses = [
            2 * pinball_loss(torch.from_numpy(q), targets, p).numpy()
            for q, p in zip(quantiles, PROBABILITIES, strict=True)
        ]
        total, epistemic = answer.total.double().numpy(), answer.epistemic.double().numpy()
        unit = size * (10 if shift == "all x 10" else 1)
        found[shift] = {
            "sd": float(np.mean(np.sqrt(total) / unit)),
            "share": float(np.mean(epistemic / total)),
            "crps": float(np.mean(np.mean(losses, 0) / unit)),
            "covered": float(np.mean((quantiles[1] <= ahead) & (ahead <= quantiles[-2]))),
            "unlike": float("nan") if answer.unlike is None else float(answer.unlike.double().mean()),
        }
    return found


def run(key: tuple[str, str, int], panel: Panel, options: Namespace) -> dict[str, Any]:
    """Train one arm on one panel; what is forecast of each shift, also without widening by leverage, and of series left out."""
    where, arm, seed = key
    table = options.output / f"{where}.parquet"
    known = [name for name in panel.values if name not in panel.out]
    long = panel.values[known].rename_axis("timestamp").melt(ignore_index=False, var_name="series", value_name="target")
    long.reset_index().to_parquet(table)
    name = f"{where}-{arm}-{seed}".replace(" ", "_").replace(",", "")
    settings = [
        *(f"name={name}", f"seed={seed}", "task.kind=forecasting", "task.data.kind=table", f"task.data.path={table}"),
        *("task.data.id_columns=[series]", f"task.data.test_windows={panel.windows}", "task.baselines=[]"),
        *(f"task.data.validation_windows={panel.windows}", f"task.horizon={panel.horizon}", "training.batch_size=64"),
        *(f"task.context={panel.context}", "task.model.anchor=linear", "training.workers=0", "training.device=cpu"),
        *(f"training.storage={options.output / 'runs'}", *panel.settings, *ARMS[arm]),
    ]
    config = configuration.load(None, [*settings, *(["training.epochs=1"] if options.quick else [])])
    (outcome,) = launch.run(config, lambda line: None)
    kind = "ensemble" if "kind: ensemble" in "".join(ARMS[arm]) else "proximal_score"
    predictor: Any = proxscore.load(options.output / "runs" / f"{name}-{kind}", device="cpu")
    found: dict[str, Any] = {
        "crps": posterior_of(outcome.results["test"])["crps"],
        "widened": judged(predictor, panel, known),
    }
    if panel.out:
        found["unseen"] = judged(predictor, panel, panel.out)["as they are"]
    predictor.module.anchor.distance.usual[2] = torch.inf
    return found | {"not widened": judged(predictor, panel, known)}


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    found = panels()
    options.output.mkdir(parents=True, exist_ok=True)
    keys = [(where, arm, seed) for seed in range(options.seeds) for where in found for arm in ARMS]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (where, arm, _), row in rows.each(keys, lambda key: run(key, found[key[0]], options)):
        cells.setdefault((where, arm), []).append(row)
    header = ["panel", "method", "widened", "shift", "sd", "epistemic share", "CRPS", "covered 90", "unlike"]
    names, table = ("sd", "share", "crps", "covered", "unlike"), []
    for (where, arm), made in cells.items():
        for widened in ("widened", "not widened"):
            table += [
                [where, arm, widened, shift, *(spread([row[widened][shift][name] for row in made]) for name in names)]
                for shift in made[0][widened]
            ]
        if "unseen" in made[0]:
            table.append(
                [where, arm, "widened", "unseen states", *(spread([r["unseen"][n] for r in made]) for n in names)]
            )
    record.table("noticing", header, table)


if __name__ == "__main__":
    sys.exit(command("noticing", __doc__, measure))
