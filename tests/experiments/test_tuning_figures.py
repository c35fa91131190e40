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
from proxscore.experiments.sweep.figures import (
    FEWEST,
    MISSING,
    best,
    importance,
    learning_curves,
    objective_over_time,
    parallel_coordinates,
    pareto,
    pareto_front,
    schedules,
    short_labels,
)
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


def line_of(axes: Axes, start: float) -> list[float]:
    """Heights of the one line that starts at a height."""
    crossing = [line for line in axes.lines if len(line.get_xdata()) > 1]
    (found,) = [line for line in crossing if line.get_ydata()[0] == pytest.approx(start)]
    return list(found.get_ydata())


def words(figure: Figure) -> str:
    assert not figure.axes
    return " ".join(figure.texts[0].get_text().split())


def brute_force(candidates: Sequence[tuple[float, float]]) -> list[int]:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    return [i for i, point in enumerate(candidates) if not any(beats(other, point) for other in candidates)]


# --- parallel coordinates


def test_every_line_passes_its_axes_at_the_places_of_its_values() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.2, scale=0.1, kind="power", power=0.5, draws=2),
        trial(2, 0.6, scale=0.01, kind="constant", draws=5),
        trial(3, 0.4, "stopped", scale=0.1**0.5, kind="cosine", draws=1),
    ]
    figure = parallel_coordinates(trials, SPACE, "nll")
    host = figure.axes[0]
    # The logarithm of 0.1 is in the middle; the objective reaches from 0.2 to 0.6.
    np.testing.assert_allclose(line_of(host, 0.5), [0.5, 1, 0.5, 0.25, 0], atol=1e-9)
    np.testing.assert_allclose(line_of(host, 0.0), [0, 0, MISSING, 1, 1], atol=1e-9)
    np.testing.assert_allclose(line_of(host, 0.75), [0.75, 0.5, MISSING, 0, 0.5], atol=1e-9)
    assert [(text.get_text(), text.get_position()[1]) for text in host.texts] == [("—", MISSING)]
    given = lines(host)["as given"]
    assert (list(given.get_xdata()), list(given.get_ydata())) == ([4], [pytest.approx(0.75)])


def test_the_axes_have_the_ends_of_their_ranges_the_choices_and_logarithms_as_ticks() -> None:
    figure = parallel_coordinates([trial(1, 0.2, scale=0.1, kind="cosine", draws=2)], SPACE, "nll")
    host, *uprights = figure.axes
    named = [" ".join(text.get_text().split()) for text in host.get_xticklabels()]
    assert [name.replace(". ", ".") for name in named] == [
        *("prior.scale (log)", "mean_schedule.kind", "mean_schedule.power", "draws", "nll")
    ]
    ticks = [
        dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True)) for axes in uprights
    ]
    assert ticks[0] == {"0.01": 0.0, "0.1": pytest.approx(0.5), "1": 1.0}
    assert ticks[1] == {"constant": 0.0, "cosine": 0.5, "power": 1.0}
    assert ticks[2] | {"0.25": 0.0, "0.75": 1.0} == ticks[2]
    assert list(ticks[3]) == ["1", "2", "3", "4", "5"]
    assert ticks[4] == {"0.2": 0.5}  # one value has no range


@pytest.mark.parametrize("maximise", [False, True])
def test_the_best_trial_is_emphasised_and_better_ones_lie_above_worse_ones(maximise: bool) -> None:
    values = [0.3, 0.1, 0.5, 0.2, 0.4]
    trials = [trial(i, value, scale=0.1, kind="cosine", draws=3) for i, value in enumerate(values)]
    figure = parallel_coordinates(trials, SPACE, "nll", maximise)
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines]
    np.testing.assert_allclose(ends, np.linspace(0, 1, 5) if maximise else np.linspace(1, 0, 5), atol=1e-9)
    widest = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert widest.get_label() == f"trial {2 if maximise else 1}, the best"
    assert widest is figure.axes[0].lines[-1]


def test_trials_that_cannot_be_drawn_are_counted_in_the_title() -> None:
    params = {"scale": 0.1, "kind": "cosine", "draws": 3}
    trials = [
        trial(0, 0.1, **params),
        trial(1, math.inf, **params),
        trial(2, math.nan, "stopped", **params),
        trial(3, 0.2, "failed", **params),
        Trial(4, status="running"),
    ]
    figure = parallel_coordinates(trials, SPACE, "nll")
    assert figure.axes[0].get_title() == "1 trial (left out: 1 failed, 3 without a finite value)"
    assert len(figure.axes[0].lines) == 1


def test_a_choice_of_null_is_a_value_and_no_missing_one() -> None:
    space: Space = {"method.max_mean_step": Domain(choice=[None, 1, True])}
    trials = [
        Trial(i, params={"method.max_mean_step": v}, curve=[{"epoch": 1, "nll": i}]) for i, v in enumerate([True, None])
    ]
    figure = parallel_coordinates(trials, space, "nll")
    assert sorted(line.get_ydata()[0] for line in figure.axes[0].lines) == [0, 1]
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["null", "1", "true"]


def test_short_labels_are_unique_ends_of_their_keys() -> None:
    keys = [*SPACE, "method.max_mean_step", "method.a.mean.kind", "method.b.mean.kind", "lr", "task.lr", "x.task.lr"]
    labels = short_labels(keys)
    assert len(set(labels.values())) == len(keys)
    assert all(key.endswith(label) for key, label in labels.items())
    assert labels["method.max_mean_step"] == "max_mean_step"
    assert labels["method.prior.scale"] == "prior.scale"
    assert labels["method.a.mean.kind"] == "a.mean.kind"


# --- the objective over time


@pytest.mark.parametrize("maximise", [False, True])
def test_the_best_so_far_never_gets_worse_and_is_that_of_a_plain_loop(maximise: bool) -> None:
    trials = some(60)
    random.Random(1).shuffle(trials)
    axes = objective_over_time(trials, "nll", maximise).axes[0]
    line = lines(axes)["best so far"]
    wanted, record = {}, None
    for t in sorted(trials, key=lambda t: t.number):
        value = t.curve[-1]["nll"]
        if t.status == "finished" and math.isfinite(value):
            record = value if record is None else max(record, value) if maximise else min(record, value)
            wanted[t.number] = record
    drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert drawn == wanted | {max(t.number for t in trials): record}
    steps = np.diff(line.get_ydata())
    assert (steps >= 0).all() if maximise else (steps <= 0).all()
    assert line.get_drawstyle() == "steps-post"


def test_every_trial_has_a_marker_of_its_status() -> None:
    trials = some(60)
    figure = objective_over_time(trials, "nll")
    axes = figure.axes[0]
    wanted: dict[str, list[tuple[float, float]]] = {}
    for t in trials:
        value = t.curve[-1]["nll"]
        if t.status == "failed":
            wanted.setdefault("failed", []).append((t.number, 0.03))
        elif not math.isfinite(value):
            wanted.setdefault("no finite value", []).append((t.number, 0.03))
        else:
            name = {"finished": "finished", "stopped": "stopped early"}.get(t.status, "not at its end")
            wanted.setdefault(name, []).append((t.number, value))
    assert points(axes) == wanted
    low = axes.get_ylim()[0]
    margin = axes.transAxes.inverted().transform(axes.transData.transform((0, min(y for _, y in wanted["finished"]))))[
        1
    ]
    assert low < 0.5
    assert margin > 0.06  # the crosses are below all points
    assert lines(axes)["as given"].get_ydata()[0] == 0.5
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*wanted, "best so far", "as given"}


@pytest.mark.parametrize("maximise", [False, True])
def test_a_value_far_off_is_drawn_at_the_edge_and_counted(maximise: bool) -> None:
    sign = -1 if maximise else 1
    values = [sign * value for value in (0.5, 0.4, 1e6, 0.45, 0.6, 0.55, -1e6)]  # the last one is good
    axes = objective_over_time([trial(i, value) for i, value in enumerate(values)], "nll", maximise).axes[0]
    assert [y for _, y in points(axes)["finished"]] == [sign * 0.6 if abs(v - sign * 1e6) < 1 else v for v in values]
    assert axes.get_title() == f"7 trials; 1 worse than {sign * 0.6:.3g}, drawn at the edge"


def test_trials_that_all_failed_have_their_crosses_beside_each_other() -> None:
    axes = objective_over_time([trial(i, 0.5, "failed") for i in range(5)], "nll").axes[0]
    assert [x for x, _ in points(axes)["failed"]] == [0, 1, 2, 3, 4]
    assert axes.get_xlim()[0] < 0 < 4 < axes.get_xlim()[1]
    assert len(axes.get_yticks()) == 0


# --- learning curves


def test_curves_hold_the_validations_and_only_stopped_ones_end_in_a_dot() -> None:
    trials = [trial(1, 0.3, scale=0.1), trial(2, 0.2, scale=0.2), trial(3, 0.5, "stopped", scale=0.3), trial(4, 0.6)]
    trials[0].curve.insert(1, {"epoch": 1.5, "nll": math.nan})
    trials[2].curve.append({"epoch": 3.0, "nll": math.inf})
    trials[1].final = {"nll": 0.1}  # with other draws: it decides which is the best, and is no part of a curve
    axes = learning_curves(trials, "nll").axes[0]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == [
        ([1, 2], [1.3, 0.3]),
        ([1, 2], [1.2, 0.2]),
        ([1, 2], [1.5, 0.5]),
        ([1, 2], [1.6, 0.6]),
    ]
    assert [line.get_label() for line in axes.lines] == ["finished", "trial 2, the best", "stopped early", "as given"]
    assert [line.get_marker() for line in axes.lines] == ["", "", "o", ""]
    assert axes.lines[2].get_markevery() == [1]
    assert max(axes.lines, key=lambda line: line.get_linewidth()) is axes.lines[1]


def test_a_curve_of_one_validation_is_a_point() -> None:
    (line,) = learning_curves([Trial(0, curve=[{"epoch": 1.0, "nll": 0.5}])], "nll").axes[0].lines
    assert line.get_marker() == "."


# --- importance


def bars(figure: Figure) -> dict[str, float]:
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    return {name: bar.get_width() for name, bar in zip(names, axes.patches, strict=True)}


def test_the_only_parameter_that_the_objective_depends_on_has_nearly_all_importance() -> None:
    draw = random.Random(0)
    space: Space = {key: Domain(uniform=[0.0, 1.0]) for key in ("method.a", "method.b", "method.c")}
    trials = []
    for number in range(30):
        params = {key: draw.random() for key in space}
        trials.append(trial(number, (params["method.b"] - 0.3) ** 2, draw.choice(["finished", "stopped"]), **params))
    trials += [trial(30, 9.0, "failed", **params), trial(31, math.nan, **params), trial(32, 9.0)]
    shares = bars(importance(trials, space, "nll"))
    assert set(shares) == {"a", "b", "c"}
    assert shares["b"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares)[-1] == "b"  # on top
    assert shares == bars(importance(trials, space, "nll"))


def test_importance_counts_every_decade_of_a_parameter_that_is_searched_by_its_logarithm() -> None:
    draw = random.Random(0)
    space: Space = {"method.lr": Domain(loguniform=[1e-6, 1.0]), "method.b": Domain(uniform=[0.0, 1.0])}
    trials = []
    for number in range(30):
        lr, b = 10 ** draw.uniform(-6, 0), draw.random()
        # Flat in the top decade, which is nine tenths of the range.
        trials.append(trial(number, max(-1 - math.log10(lr), 0) + 0.5 * b, **{"method.lr": lr, "method.b": b}))
    assert bars(importance(trials, space, "nll"))["lr"] > 0.8


def with_and_without_power(loss: Callable[[dict[str, Any]], float]) -> list[Trial]:
    draw = random.Random(0)
    trials = []
    for number in range(24):
        params = {"scale": 10 ** draw.uniform(-2, 0), "draws": draw.randint(1, 5)}
        params |= {"kind": "power", "power": draw.uniform(0.25, 0.75)} if number % 2 else {"kind": "cosine"}
        trials.append(trial(number, loss(params), **params))
    return trials


def test_a_conditional_parameter_is_starred_and_has_its_share_among_the_trials_that_have_it() -> None:
    figure = importance(with_and_without_power(lambda params: 3 * params.get("power", 0.5)), SPACE, "nll")
    shares = bars(figure)
    assert set(shares) == {"prior.scale", "mean_schedule.kind", "draws", "mean_schedule.power *"}
    assert shares["mean_schedule.power *"] > 0.8
    assert sum(share for name, share in shares.items() if "*" not in name) == pytest.approx(1)
    assert "* conditional" in figure.get_supxlabel()


def test_a_conditional_parameter_that_does_nothing_gets_no_credit_for_those_of_all_trials() -> None:
    shares = bars(importance(with_and_without_power(lambda params: float(params["draws"])), SPACE, "nll"))
    assert shares["draws"] > 0.8
    assert shares["mean_schedule.power *"] < 0.2


def test_a_conditional_parameter_of_few_trials_is_left_out_by_name() -> None:
    params = [{"scale": 0.1 * (i + 1), "kind": "cosine", "draws": 1 + i % 5} for i in range(6)]
    params = [p | {"kind": "power", "power": 0.5} if i < FEWEST - 1 else p for i, p in enumerate(params)]
    figure = importance([trial(i, float(i), **p) for i, p in enumerate(params)], SPACE, "nll")
    assert not [name for name in bars(figure) if "power" in name]
    assert "left out: mean_schedule.power" in " ".join(figure.get_supxlabel().split())
    assert "*" not in figure.get_supxlabel()


def test_parameters_that_exclude_each_other_are_all_starred() -> None:
    space: Space = {"a": Domain(uniform=[0.0, 1.0]), "b": Domain(uniform=[0.0, 1.0])}
    trials = [trial(i, i / 10, **{"a" if i % 2 else "b": i / 10}) for i in range(10)]
    assert bars(importance(trials, space, "nll")) == {"a *": 1.0, "b *": 1.0}


def test_importance_says_in_words_why_there_is_none() -> None:
    params = {"scale": 0.1, "kind": "cosine", "draws": 1}
    assert "importance needs 4" in words(importance([trial(i, i, **params) for i in range(3)], SPACE, "nll"))
    assert "the same nll" in words(importance([trial(i, 0.5, **params) for i in range(5)], SPACE, "nll"))
    assert "no parameter" in words(importance([trial(i, i, **params) for i in range(5)], SPACE, "nll"))


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

DRAWN: dict[str, Callable[[Sequence[Trial], bool], Figure]] = {
    "parallel": lambda trials, maximise: parallel_coordinates(trials, SPACE, "nll", maximise),
    "time": lambda trials, maximise: objective_over_time(trials, "nll", maximise),
    "curves": lambda trials, maximise: learning_curves(trials, "nll", maximise),
    "importance": lambda trials, _: importance(trials, {"method.draws": SPACE["method.draws"]}, "nll"),
    "pareto": lambda trials, _: pareto_front(trials, "nll", "error"),
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
def test_any_trials_can_be_drawn_and_no_legend_is_empty(draw: Callable[..., Figure], trials: list[Trial]) -> None:
    figures = [draw(trials, maximise) for maximise in (False, True)]
    figures[0].draw_without_rendering()
    for figure in figures:
        assert figure.axes or words(figure)
        assert all(legend.get_texts() for legend in figure.legends)


def test_the_best_is_a_finished_one_and_of_equal_ones_the_first() -> None:
    trials = [trial(4, 0.2), trial(1, 0.3), trial(3, 0.2), trial(0, 0.1, "stopped"), trial(2, 0.0, "failed")]
    trials += [trial(5, -math.inf), trial(6, math.nan)]
    found = best(trials, "nll"), best(trials, "nll", maximise=True)
    assert [t and t.number for t in found] == [3, 1]
    assert best(trials[3:], "nll") is None
