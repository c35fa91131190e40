"""Optuna's plots of a search: history, learning curves, slices, parallel coordinates and importance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial

from proxscore.experiments.sweep.figures.drawing import FEWEST, count, short_labels, words
from proxscore.experiments.sweep.ledger import Trial
from proxscore.experiments.sweep.space import Space, distribution

#: Optuna's word for a trial that ended in some way; one that did not end is left out.
STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def study_of(trials: Sequence[Trial], space: Space, objective: str, maximise: bool = False) -> optuna.Study:
    """The trials of a search as a study of Optuna's, with their validations as intermediate values.

    A finished trial without a finite objective counts as failed. Keys are as short as they are unique.
    """
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory for a moment is no news
    try:
        study = optuna.create_study(direction="maximize" if maximise else "minimize")
    finally:
        optuna.logging.set_verbosity(level)
    labels = short_labels(list(space))
    for trial in sorted(trials, key=lambda trial: trial.number):
        if (state := STATES.get(trial.status)) is None:
            continue
        value = trial.value(objective)
        if state == TrialState.COMPLETE and not math.isfinite(value):
            state = TrialState.FAIL
        params = {key: value for key, value in trial.params.items() if key in space}
        study.add_trial(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params={labels[key]: given for key, given in params.items()},
                distributions={labels[key]: distribution(space[key]) for key in params},
                intermediate_values=_curve(trial, objective),
            )
        )
    return study


def _curve(trial: Trial, objective: str) -> dict[int, float]:
    """The objective by the number of the validation, from one on."""
    values = [row.get(objective, math.nan) for row in trial.curve]
    return {number: value for number, value in enumerate(values, 1) if math.isfinite(value)}


def drawn(study: optuna.Study, objective: str) -> dict[str, Figure]:
    """Every plot of a study by its name; where there is nothing to plot, a figure says why in words."""
    from optuna.visualization import matplotlib as plots

    named: dict[str, Any] = {"target_name": objective}
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    with_params = [trial for trial in finished if trial.params]
    wanted: Mapping[str, tuple[Callable[..., Any], dict[str, Any], Sequence[object], int]] = {
        "objective_over_time": (plots.plot_optimization_history, named, finished, 1),
        "learning_curves": (plots.plot_intermediate_values, {}, finished, 1),
        "slices": (plots.plot_slice, named, with_params, 1),
        "parallel_coordinates": (plots.plot_parallel_coordinate, named, with_params, 2),
        "importance": (plots.plot_param_importances, named, with_params, FEWEST),
    }
    return {
        name: _plot(plot, study, settings, name, trials, fewest)
        for name, (plot, settings, trials, fewest) in wanted.items()
    }


def _plot(
    plot: Callable[..., Any],
    study: optuna.Study,
    settings: dict[str, Any],
    name: str,
    trials: Sequence[object],
    fewest: int,
) -> Figure:
    if len(trials) < fewest:
        return words(
            f"{name}: {count(trials)} that finished with settings of their own and a finite value; {fewest} needed."
        )
    with warnings.catch_warnings(), plt.rc_context({"figure.dpi": 150}):
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            found = plot(study, **settings)
        except (RuntimeError, ValueError) as error:  # of values without variance
            plt.close("all")
            return words(f"{name}: nothing to draw ({' '.join(str(error).split())}).")
    axes = found if isinstance(found, Axes) else found.flat[0]
    figure: Any = axes.figure
    if isinstance(found, Axes):  # several panels have a layout of their own
        figure.set_layout_engine("tight")
    plt.close(figure)  # out of pyplot's state: it lives as long as it is held
    return cast(Figure, figure)
