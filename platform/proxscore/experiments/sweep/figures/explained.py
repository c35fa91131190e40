"""What mattered: the share of each parameter in the differences between trials."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import optuna
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from proxscore.calibration.comparison import finish
from proxscore.experiments.sweep.figures.drawing import (
    BLUE,
    FEWEST,
    INK,
    PALE,
    clipped,
    count,
    measured,
    one_panel,
    short_labels,
    words,
)
from proxscore.experiments.sweep.ledger import Trial
from proxscore.experiments.sweep.space import Domain, Space, distribution


def importance(trials: Sequence[Trial], space: Space, objective: str) -> Figure:
    """How much of the differences in the objective each parameter explains alone, over the space (fANOVA).

    Parameters that all trials have share one analysis. A conditional one is set against them in another, of the trials that
    have it: its bar has an asterisk, as the bars together do not add up to one.
    """
    ended = [trial for trial in trials if trial.status in ("finished", "stopped")]
    counted = [trial for trial in measured(ended, objective) if trial.params]
    if len(counted) < FEWEST:
        return words(f"{count(counted)} of the search with a finite {objective}: importance needs {FEWEST}.")
    if len({trial.value(objective) for trial in counted}) == 1:
        return words(f"All of {count(counted)} have the same {objective}: there is nothing to explain.")
    shared = [key for key in space if all(key in trial.params for trial in counted)]
    shares = _shares(counted, shared, space, objective)
    few: list[str] = []
    for key in space:
        having = [trial for trial in counted if key in trial.params]
        if key in shared:
            continue
        if len(having) < FEWEST:
            few.append(key)
        else:
            shares |= {k: v for k, v in _shares(having, [*shared, key], space, objective).items() if k == key}
    if not shares:
        return words(f"The trials differ in {objective}, but no parameter of the search explains it.")
    return _bars(shares, shared, few, short_labels(list(space)), f"{objective}, {count(counted)}")


def _shares(trials: Sequence[Trial], keys: Sequence[str], space: Space, objective: str) -> dict[str, float]:
    """Importance of each key over trials that have all of them; none where no split of the values separates the trials.

    The forest integrates over a parameter's range as it is given; for one that is searched by its logarithm that would be
    its top decade, so it gets the logarithm. Outlying values are moved to the edge: else they would be all that is explained.
    """
    logarithmic = {key for key in keys if space[key].kind == "loguniform"}
    domains = {key: _in_logarithm(space[key]) if key in logarithmic else distribution(space[key]) for key in keys}
    values = [trial.value(objective) for trial in trials]
    for maximise in (False, True):  # whichever is the bad side
        values, _ = clipped(values, values, maximise)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory for a moment is no news
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
    for trial, value in zip(trials, values, strict=True):
        params = {key: math.log(trial.params[key]) if key in logarithmic else trial.params[key] for key in keys}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=domains))
    try:
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(keys))
    except RuntimeError:  # of a forest without variance
        return {}
    return {key: share for key, share in found.items() if math.isfinite(share)}


def _in_logarithm(domain: Domain) -> BaseDistribution:
    low, high = domain.values
    return FloatDistribution(math.log(low), math.log(high))


def _bars(
    shares: dict[str, float], shared: Sequence[str], few: Sequence[str], labels: dict[str, str], title: str
) -> Figure:
    """Horizontal bars, the largest on top, and below them what their asterisks mean."""
    keys = sorted(shares, key=lambda key: shares[key])
    figure, axes = one_panel((6.6, 1.6 + 0.32 * len(keys)))
    names = [labels[key] + ("" if key in shared else " *") for key in keys]
    bars = axes.barh(names, [shares[key] for key in keys], color=[BLUE if key in shared else PALE for key in keys])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
    notes = ["share of the explained differences"]
    if any(key not in shared for key in keys):
        notes.append("* conditional: among the trials that have it, against the parameters of all trials")
    if few:
        notes.append(f"in fewer than {FEWEST} trials, and left out: {', '.join(labels[key] for key in few)}")
    axes.set(xlim=(0, 1.08))
    axes.set_axisbelow(True)
    figure.supxlabel("\n".join(textwrap.fill(note, 100) for note in notes), fontsize=8, color=INK)
    axes.set_title(title, fontsize=10, color=INK)
    finish(figure)
    axes.grid(visible=False, axis="y")
    return figure
