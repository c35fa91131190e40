"""What the figures of a sweep show are its trials, and values that are computed here in another way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proxscore.config import Config, parse
from proxscore.experiments.sweep.figures import drawn, pareto, pareto_front, schedules, short_labels, study_of
from proxscore.experiments.sweep.ledger import Status, Trial
from proxscore.experiments.sweep.space import Domain, Space
from proxscore.methods import RunLength

KIND, POWER = "method.penalty.mean_schedule.kind", "method.penalty.mean_schedule.power"
SPACE: Space = {
    "method.prior.scale": Domain(loguniform=[0.01, 1.0]),
    KIND: Domain(choice=["constant", "cosine", "power"]),
    POWER: Domain(uniform=[0.25, 0.75], when={KIND: "power"}),
    "method.draws": Domain(randint=[1, 5]),
}


def trial(number: int, loss: float, status: Status = "finished", error: float = 0.1, **params: Any) -> Trial:
    """A trial that came to a loss in two validations, the first a unit above."""
    keys = {"scale": "method.prior.scale", "kind": KIND, "power": POWER, "draws": "method.draws"}
    found = Trial(number, params={keys.get(name, name): value for name, value in params.items()}, status=status)
    found.curve = [{"epoch": 1.0, "nll": loss + 1, "error": error}, {"epoch": 2.0, "nll": loss, "error": error}]
    return found


def some(count: int, seed: int = 0) -> list[Trial]:
    """Trials of every status, among them some without a finite loss; the first is the configuration as it is given."""
    draw = random.Random(seed)
    statuses: Sequence[Status] = ("finished", "finished", "stopped", "failed", "running", "interrupted")
    trials = [trial(0, 0.5)]
    for number in range(1, count):
        kind = draw.choice(["constant", "cosine", "power"])
        params = {"scale": 10 ** draw.uniform(-2, 0), "kind": kind, "draws": draw.randint(1, 5)}
        if kind == "power":
            params["power"] = draw.uniform(0.25, 0.75)
        loss = draw.choice([draw.random(), draw.random(), draw.random(), math.inf, math.nan])
        trials.append(trial(number, loss, draw.choice(statuses), draw.random(), **params))
    return trials


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


def points(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Places of scattered points by their label."""
    return {str(dots.get_label()): [(x, y) for x, y in dots.get_offsets().tolist()] for dots in axes.collections}


def words(figure: Figure) -> str:
    assert not figure.axes
    return " ".join(figure.texts[0].get_text().split())


def brute_force(candidates: Sequence[tuple[float, float]]) -> list[int]:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    return [i for i, point in enumerate(candidates) if not any(beats(other, point) for other in candidates)]


def test_short_labels_are_unique_ends_of_their_keys() -> None:
    keys = [*SPACE, "method.max_mean_step", "method.a.mean.kind", "method.b.mean.kind", "lr", "task.lr", "x.task.lr"]
    labels = short_labels(keys)
    assert len(set(labels.values())) == len(keys)
    assert all(key.endswith(label) for key, label in labels.items())
    assert labels["method.max_mean_step"] == "max_mean_step"
    assert labels["method.prior.scale"] == "prior.scale"
    assert labels["method.a.mean.kind"] == "a.mean.kind"


# --- Optuna's


def test_a_study_has_the_trials_with_their_states_values_and_validations() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.2, scale=0.1, kind="power", power=0.5, draws=2),
        trial(2, 0.6, "stopped", scale=0.01, kind="constant", draws=5),
        trial(3, 0.4, "failed", scale=0.02, kind="cosine", draws=1),
        trial(4, math.nan, scale=0.02, kind="cosine", draws=1),
        trial(5, 0.1, "running", scale=0.02, kind="cosine", draws=1),
    ]
    study = study_of(trials, SPACE, "nll")
    assert [(t.number, t.state.name, t.value) for t in study.trials] == [
        *((0, "COMPLETE", 0.5), (1, "COMPLETE", 0.2), (2, "PRUNED", None), (3, "FAIL", None), (4, "FAIL", None)),
    ]
    assert study.trials[1].params == {
        "prior.scale": 0.1,
        "mean_schedule.kind": "power",
        "mean_schedule.power": 0.5,
        "draws": 2,
    }
    assert study.trials[1].intermediate_values == {1: 1.2, 2: 0.2}
    assert study.best_trial.number == 1
    assert study_of(trials, SPACE, "nll", maximise=True).best_trial.number == 0


def test_the_history_shows_every_finished_trial_and_the_best_so_far() -> None:
    trials = [trial(number, value) for number, value in enumerate((0.5, 0.7, 0.3, 0.4))]
    axes = drawn(study_of(trials, SPACE, "nll"), "nll")["objective_over_time"].axes[0]
    (line,) = [line for line in axes.lines if len(line.get_ydata()) == 4]
    assert list(line.get_ydata()) == [0.5, 0.5, 0.3, 0.3]
    assert [y for _, y in axes.collections[0].get_offsets().tolist()] == [0.5, 0.7, 0.3, 0.4]


def test_the_only_parameter_that_the_objective_depends_on_has_nearly_all_importance() -> None:
    rng = random.Random(0)
    trials = []
    for number in range(60):
        scale, count = 10 ** rng.uniform(-2, 0), rng.randint(1, 5)
        trials.append(trial(number, math.log10(scale) ** 2, scale=scale, kind="cosine", draws=count))
    axes = drawn(study_of(trials, SPACE, "nll"), "nll")["importance"].axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    shares = dict(zip(names, [bar.get_width() for bar in axes.patches], strict=True))
    assert shares["prior.scale"] > 0.9


@pytest.mark.parametrize("trials", [[], [trial(0, 0.5)], some(3), [trial(i, 0.5, "failed") for i in range(5)]])
def test_where_there_is_nothing_to_plot_words_say_why(trials: list[Trial]) -> None:
    found = drawn(study_of(trials, SPACE, "nll"), "nll")
    assert set(found) == {"objective_over_time", "learning_curves", "slices", "parallel_coordinates", "importance"}
    assert "4 needed" in words(found["importance"])


# --- Pareto


def test_the_front_is_that_of_comparing_all_pairs() -> None:
    draw = random.Random(0)
    for count in (0, 1, 2, 5, 40):
        for _ in range(20):
            grid = [(draw.randint(0, 6) / 2, draw.choice([0.0, 0.5, 1.0, 2.0, math.inf])) for _ in range(count)]
            assert pareto(grid) == brute_force(grid)
            spread = [(draw.random(), draw.random()) for _ in range(count)]
            assert pareto(spread) == brute_force(spread)
    assert pareto([(1, 1), (0, 2), (1, 1), (math.nan, 0), (2, 1)]) == [0, 1, 2]


def test_only_finished_trials_that_no_finished_one_beats_are_joined_and_named() -> None:
    trials = [t for t in some(80) if t.params]
    trials += [trial(99, -1.0, "stopped", error=-1.0, scale=0.1)]  # beats all, but was measured early
    axes = pareto_front(trials, "nll", "error").axes[0]
    usable = [t for t in trials if t.status != "failed" and math.isfinite(t.curve[-1]["nll"])]
    finished = [t for t in usable if t.status == "finished"]
    pairs = [(t.curve[-1]["nll"], t.curve[-1]["error"]) for t in finished]
    front = sorted(pairs[i] for i in brute_force(pairs))
    line = lines(axes)["not dominated"]
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == front
    assert line.get_drawstyle() == "steps-post"
    named = {int(number) for text in axes.texts for number in text.get_text().replace("\n", " ").split(",")}
    assert named == {finished[i].number for i in brute_force(pairs)}
    shown = points(axes)
    assert shown["finished"] == pairs
    assert (-1.0, -1.0) in shown["stopped early"]
    assert sum(map(len, shown.values())) == len(usable)


# --- schedules

HORIZON = RunLength(total_steps=1000, steps_per_epoch=100, data_size=6400)


def penalty(**settings: Any) -> Config:
    return parse({"method": {"kind": "proximal_score", "metric": "posterior", "penalty": settings}})


def weight_at(line: Line2D, epoch: float) -> float:
    (found,) = np.flatnonzero(np.isclose(line.get_xdata(), epoch))
    return float(line.get_ydata()[found])


def test_the_weights_are_those_of_closed_forms() -> None:
    cosine = penalty(mean=2.0, mean_schedule={"kind": "cosine", "end": 0.1, "warmup": 0})
    power = penalty(mean=3.0, mean_schedule={"kind": "power", "unit": "epochs", "power": 0.5}, precision=70.0)
    linear = penalty(precision=50.0, precision_schedule={"kind": "linear", "length": 500})
    figure = schedules([("cosine", cosine), ("power", power), ("linear", linear)], HORIZON)
    mean, precision = map(lines, figure.axes)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("proximal weight of the mean", "proximal weight of the precision")
    ]
    assert weight_at(mean["cosine"], 0) == pytest.approx(2.0)
    assert weight_at(mean["cosine"], 5) == pytest.approx(2.0 / 0.55)  # half way: the mean of 1 and 0.1
    assert weight_at(mean["power"], 3) == pytest.approx(3.0 * 2)  # (1 + 3 epochs) to the half
    np.testing.assert_allclose(precision["power"].get_ydata(), 70.0)
    np.testing.assert_allclose(precision["cosine"].get_ydata(), 1000.0)  # null: the steps of the run
    assert weight_at(precision["linear"], 2.5) == pytest.approx(100.0)
    ended = precision["linear"].get_xdata() >= 5
    assert np.isnan(precision["linear"].get_ydata()[ended]).all()
    assert np.isfinite(precision["linear"].get_ydata()[~ended]).all()
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]


def test_methods_without_proximal_weights_are_left_out() -> None:
    figure = schedules([("point", parse({"method": {"kind": "sgd"}})), ("as given", Config())], HORIZON)
    assert [list(lines(axes)) for axes in figure.axes] == [["as given"], ["as given"]]
    assert "no proximal weights" in words(schedules([("point", parse({"method": {"kind": "sgd"}}))], HORIZON))


def test_a_weight_that_runs_to_infinity_does_not_flatten_the_others() -> None:
    figure = schedules([("as given", penalty(mean=0.5, mean_schedule={"kind": "cosine"}))], RunLength(10**6, 100, 1))
    low, high = figure.axes[0].get_ylim()
    assert high / low < 1e5
    assert "beyond" in figure.axes[0].get_title()
    assert not figure.axes[1].get_title()


# --- all of them

DRAWN: dict[str, Callable[[Sequence[Trial], bool], Sequence[Figure]]] = {
    "optuna": lambda trials, maximise: list(drawn(study_of(trials, SPACE, "nll", maximise), "nll").values()),
    "pareto": lambda trials, _: [pareto_front(trials, "nll", "error")],
}
TRIALS: dict[str, list[Trial]] = {
    "none": [],
    "as given": [trial(0, 0.5)],
    "one": [trial(3, 0.5, scale=0.1, kind="cosine", draws=2)],
    "not started": [Trial(0), Trial(1, params={"method.draws": 2})],
    "all failed": [trial(i, 0.5, "failed", draws=2) for i in range(5)],
    "not finite": [trial(i, value, draws=2) for i, value in enumerate([math.inf, math.nan, -math.inf] * 2)],
    "no finished one": [trial(i, 1.0 + i, "stopped", draws=1 + i % 5) for i in range(5)],
    "two hundred": some(200),
}


@pytest.mark.parametrize("trials", TRIALS.values(), ids=TRIALS)
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_any_trials_can_be_drawn_and_no_legend_is_empty(
    draw: Callable[..., Sequence[Figure]], trials: list[Trial]
) -> None:
    for figure in [figure for maximise in (False, True) for figure in draw(trials, maximise)]:
        figure.draw_without_rendering()
        assert figure.axes or words(figure)
        assert all(legend.get_texts() for legend in figure.legends)
