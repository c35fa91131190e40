"""Anchors: the ridge regression beside scikit-learn's, units, cross-fitting, what is known of a random walk, and the calendar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from proxscore import config as configuration
from proxscore.forecasting import anchors
from proxscore.forecasting.anchors import BLOCKS, SHRINKAGES, GivenAnchor, LinearAnchor, Units
from proxscore.forecasting.calendar import waves
from proxscore.forecasting.distances import Distance, Moments
from proxscore.forecasting.series_task import SeriesTask
from proxscore.forecasting.splits import repeated

H, CONTEXT = 4, 12


def task_of(
    values: NDArray[np.float64], folder: Path, context: int = CONTEXT, season: int = 3, **model: Any
) -> SeriesTask:
    """The task of series (N, T), hourly."""
    stamps = pd.date_range("2024-01-01", periods=values.shape[1], freq="h")
    frames = [pd.DataFrame({"timestamp": stamps, "name": f"s{n:03d}", "target": own}) for n, own in enumerate(values)]
    pd.concat(frames).to_parquet(folder / "series.parquet")
    data = {"kind": "table", "path": str(folder / "series.parquet"), "id_columns": ["name"], "season": season}
    data |= {"test_windows": 1, "validation_windows": 1}
    model = {"name": "MLP", "kwargs": {"hidden": [8]}, "anchor": "linear"} | model
    section = {"kind": "forecasting", "horizon": H, "context": context, "data": data, "model": model}
    return SeriesTask(configuration.parse({"task": section}).task)  # type: ignore[arg-type]


def walks(series: int, steps: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((series, steps)).cumsum(1)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_regression_is_the_ridge_of_scikit_learn(start: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(80, 6, generator=generator, dtype=torch.float64) @ torch.diag(torch.arange(1.0, 7.0).double())
    target = z[:, :3] + torch.randn(80, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(80, generator=generator, dtype=torch.float64)
    moments, begun = Moments.of(z, target, weight), torch.full((6, 3), start).double()
    ridge = 0.1 * float(torch.linalg.eigvalsh(moments.squares / moments.count).mean())
    model = Ridge(alpha=ridge * float(weight.sum()), fit_intercept=False)
    model.fit(z.numpy(), (target - z @ begun).numpy(), sample_weight=weight.numpy())
    np.testing.assert_allclose(moments.solved(begun, 0.1).numpy(), begun.numpy() + model.coef_.T, rtol=1e-8)
    # The distance is n times the leverage of that regression.
    root = weight.sqrt()[:, None] * z
    hat = np.linalg.inv((root.T @ root / weight.sum()).numpy() + ridge * np.eye(6))
    expected = np.einsum("ni,ij,nj->n", z.numpy(), hat, z.numpy())
    np.testing.assert_allclose((z @ moments.whitening(0.1)).square().sum(1).numpy(), expected, rtol=1e-8)


def test_the_anchor_is_the_ridge_that_forecasts_blocks_best_without_them(tmp_path: Path) -> None:
    """The search over shrinkages, targets of shrinkage and levels, done again with scikit-learn."""
    generator = np.random.default_rng(1)
    values = (
        walks(2, 120) * 0.2 + 3 * np.sin(2 * np.pi * np.arange(120) / 3) + 0.3 * generator.standard_normal((2, 120))
    )
    task = task_of(values, tmp_path)
    assert isinstance(task.anchor, LinearAnchor)
    rows = anchors._Rows.of(task.data.train, task.unit)
    chosen: tuple[float, Any] = (np.inf, None)
    for last, season in ((1, 3), (3, 3), (3, 1)):
        best: tuple[float, Any] = (np.inf, None)
        units = Units(last, season, task.scale_floor / task.unit)
        z, level, scale = (each.double().numpy() for each in units.of(rows.past, rows.observed))
        target, fold = (rows.target.double().numpy() - level) / scale, rows.fold.numpy()
        size = np.abs(target).mean(1)
        weight = np.maximum(size / np.median(size), 1) ** -2.0
        starts = [np.zeros((CONTEXT, H)), np.zeros((CONTEXT, H)), np.zeros((CONTEXT, H))]
        for step in range(H):
            starts[1][CONTEXT - 3 + step % 3, step] = starts[2][CONTEXT - 3 + step % 3, step] = 1
            starts[2][-1, step] += 1
            starts[2][-4, step] -= 1
        for seasons in (2, 4):  # means of the last seasons; eight are more than the context
            starts.append(np.zeros((CONTEXT, H)))
            for step in range(H):
                starts[-1][[CONTEXT - 3 * k + step % 3 for k in range(1, seasons + 1)], step] = 1 / seasons
        for start in starts:
            for shrinkage in SHRINKAGES:

                def fitted(kept: Any, start: Any = start, shrinkage: float = shrinkage) -> Any:
                    w = weight[kept]  # noqa: B023
                    alpha = shrinkage * np.trace((z[kept] * w[:, None]).T @ z[kept]) / CONTEXT  # noqa: B023
                    model = Ridge(alpha=alpha, fit_intercept=False)
                    return start + model.fit(z[kept], target[kept] - z[kept] @ start, sample_weight=w).coef_.T  # noqa: B023

                parts = [(fold == k, fitted(fold != k)) for k in range(1, BLOCKS + 1)]
                errors = np.concatenate([target[own] - z[own] @ weights for own, weights in parts])
                if np.abs(errors).mean() < best[0]:
                    spread, maps = np.abs(errors).mean(0), (fitted(fold > 0), [w for _, w in parts])
                    best = np.abs(errors).mean(), (last, season, *maps, spread * np.sqrt(np.pi / 2))
                    likely = np.log(scale).mean() + np.log(spread).mean()
        chosen = min(chosen, (likely, best[1]), key=lambda pair: pair[0])
    last, season, weights, without, spread = chosen[1]
    assert (task.anchor.units.last, task.anchor.units.season) == (last, season)
    np.testing.assert_allclose(task.anchor.weights[0].numpy(), weights, atol=1e-4)
    np.testing.assert_allclose(task.anchor.weights[1:].numpy(), np.stack(without), atol=1e-4)
    np.testing.assert_allclose(task.anchor.spread.numpy(), spread, rtol=1e-4)


def test_forecasts_of_series_in_other_units_are_the_same_in_those_units(tmp_path: Path) -> None:
    task = task_of(walks(2, 90), tmp_path, scale_floor=0.0)
    torch.manual_seed(0)
    module = task.build_model().double().eval()
    inputs = task.data.test.__getitems__([0, 1])[0].double()
    fields = module.packing.unpack(inputs)
    other = module.packing.pack(fields | {"past_target": 7 * fields["past_target"] + 40}).double()
    with torch.no_grad():
        own, moved = module(inputs), module(other)
    torch.testing.assert_close(moved[..., -2], 7 * own[..., -2] + 40, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moved[..., -1], 7 * own[..., -1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved[..., :-2], own[..., :-2], rtol=1e-5, atol=1e-5)


def test_the_path_of_a_training_window_knows_no_target_of_its_block(tmp_path: Path) -> None:
    task = task_of(walks(2, 120), tmp_path)
    rows = anchors._Rows.of(task.data.train, task.unit)
    units = Units(1, 3, 1e-6)
    _, level, _ = units.of(rows.past, rows.observed)
    mirrored = (
        2 * level - rows.target
    )  # as far from the level: what weights of windows are relative to, their median, stays
    changed = anchors.replace(rows, target=torch.where(rows.fold[:, None] == 2, mirrored, rows.target))
    problem, other = anchors._Problem.of(rows, units), anchors._Problem.of(changed, units)
    assert problem is not None
    assert other is not None
    start = torch.zeros(CONTEXT, H, dtype=torch.float64)
    for block, (own, its) in enumerate(zip(problem.without, other.without, strict=True), 1):
        equal = torch.allclose(own.solved(start, 0.1), its.solved(start, 0.1), atol=1e-9)
        assert equal == (block == 2)
    # And a window is given the weights of its block: those of all windows only where it is none of them.
    assert isinstance(task.anchor, LinearAnchor)
    module = task.build_model().eval()
    task.anchor.weights.copy_(torch.arange(1.0 + BLOCKS)[:, None, None].expand_as(task.anchor.weights))
    for windows, blocks in ((task.data.train, range(1, BLOCKS + 1)), (task.data.test, range(1))):
        fields = module._unpack(windows.__getitems__(range(len(windows)))[0])
        found = task.anchor(dict(fields))
        fold = fields["fold"][:, :1]
        assert set(fold.flatten().long().tolist()) == set(blocks)
        torch.testing.assert_close(found.path, (fold * found.z.sum(1, keepdim=True)).expand_as(found.path))


def test_missing_steps_are_those_of_the_next_season() -> None:
    past = torch.tensor([[9.0, 9.0, 1.0, 9.0, 3.0, 1.0, 2.0, 9.0]])
    observed = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
    z, level, scale = Units(3, 3, 0.1).of(past, observed)
    assert level.item() == 1.5  # of the last three those that are seen
    assert scale.item() == pytest.approx(0.1)  # the only pair a season apart is equal
    filled = torch.tensor([[2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 1.5]])
    torch.testing.assert_close(z, (filled - 1.5) / 0.1)
    z, level, scale = Units(1, 3, 0.1).of(past, torch.zeros_like(observed))
    assert (z == 0).all()
    assert (level.item(), scale.item()) == (0, pytest.approx(0.1))


def test_a_constant_series_goes_on_with_the_floor_for_its_scale(tmp_path: Path) -> None:
    task = task_of(walks(2, 120), tmp_path)
    module = task.build_model().eval()
    inputs = task.data.test.__getitems__([0])[0]
    constant = module.packing.pack(module.packing.unpack(inputs) | {"past_target": torch.full((1, CONTEXT), 5.0)})
    found = task.anchor(module._unpack(constant))  # type: ignore[misc]
    torch.testing.assert_close(task.unit * (found.level + found.scale * found.path), torch.full((1, H), 5.0))
    assert found.scale.item() * task.unit == pytest.approx(task.scale_floor, rel=1e-5)
    assert module.floored(constant).all()
    assert module.unlike(constant).tolist() == [True]
    assert module.unlike(inputs).tolist() == [False]


def test_of_too_few_windows_nothing_is_learned_and_nothing_is_unlike(tmp_path: Path) -> None:
    task = task_of(walks(1, 24), tmp_path)
    assert len(task.data.train) < 2 * BLOCKS
    assert isinstance(task.anchor, LinearAnchor)
    assert (task.anchor.weights == 0).all()
    assert task.anchor.spread.unique().numel() == 1
    inputs = task.data.test.__getitems__([0])[0]
    module = task.build_model()
    assert module.unlike(inputs) is None
    assert module(inputs).isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "theta"])
def test_an_anchor_that_was_saved_gives_what_it_gave(kind: str, tmp_path: Path) -> None:
    task = task_of(walks(2, 120), tmp_path, anchor=kind)
    assert isinstance(task.anchor, LinearAnchor if kind == "linear" else GivenAnchor)
    record = json.loads(json.dumps(anchors.described(task.anchor)))
    anchors.check_described(record, "anchor")
    loaded = anchors.as_described(record, H)
    loaded.load_state_dict(task.anchor.state_dict())
    module = task.build_model()
    inputs = task.data.test.__getitems__([0, 1])[0]
    inputs[1] *= 40
    own, its = (each(module._unpack(inputs)) for each in (task.anchor, loaded))
    for name in ("z", "level", "scale", "path", "spread"):
        torch.testing.assert_close(getattr(own, name), getattr(its, name), rtol=0, atol=0)
    assert loaded.unlike(module._unpack(inputs)).tolist() == [False, True]  # type: ignore[union-attr]


def test_a_random_walk_goes_on_from_its_last_value_with_the_root_of_time(tmp_path: Path) -> None:
    """Of standard normal steps: the best forecast is the last value, its standard deviation the root of the steps ahead."""
    task = task_of(walks(60, 400), tmp_path, context=48, season=1)
    module = task.build_model()
    found = task.anchor(module._unpack(task.data.test.__getitems__(range(60))[0]))  # type: ignore[misc]
    last = found.level + found.scale * found.z[:, -1:]
    off = task.unit * (found.level + found.scale * found.path - last)
    root = torch.arange(1.0, H + 1).sqrt()
    assert (off.square().mean(0).sqrt() < 0.1 * root).all()
    spread = task.unit * (found.scale * found.spread).square().mean(0).sqrt()
    torch.testing.assert_close(spread, root, rtol=0.1, atol=0)


def test_windows_are_told_from_those_of_training_and_those_of_training_are_not(tmp_path: Path) -> None:
    """Of as many numbers as windows without overlap, a new window seems far by the others' own distances, and is not."""
    generator = torch.Generator().manual_seed(0)
    z, fold = torch.randn(300, 60, generator=generator).double(), torch.arange(300) % BLOCKS + 1
    moments = [Moments.of(z[fold == k], z[fold == k, :1], torch.ones(60)) for k in range(1, BLOCKS + 1)]
    total = sum(moments[1:], moments[0])
    distance, ones = Distance(60), torch.ones(300, 1).double()
    assert not distance.known
    distance.set(z, ones, torch.ones(300, 60), fold, [total - part for part in moments], total, 1e-3, 300.0)
    assert distance.known
    new = torch.randn(2000, 60, generator=generator)
    flags = distance.unlike(new, torch.ones(2000, 1), torch.ones(2000, 60))
    assert flags.double().mean() < 0.02
    within = distance(z.float()).max()
    assert (distance(new) > within).double().mean() > 0.05
    assert distance.unlike(3 * new, torch.ones(2000, 1), torch.ones(2000, 60)).all()
    for scale, share in ((3.5, 1.0), (0.3, 1.0), (1.0, 0.4)):
        few = (torch.arange(60) < 60 * share).float().expand(2000, 60)
        assert distance.unlike(new, torch.full((2000, 1), scale), few).all()


def test_the_calendar_has_the_cycles_that_training_repeats_three_times() -> None:
    for days, expected in ((10, {"day"}), (24, {"day", "week"}), (1200, {"day", "week", "year"})):
        seasons = repeated([24, 168, 8766], [24 * days], 24)
        assert {wave.cycle for wave in waves("h", seasons)} == expected
    index = pd.period_range("2024-01-01", periods=24 * 7, freq="h")
    made = {(wave.harmonic, wave.sine): wave(index) for wave in waves("h", [24])}
    assert sorted(made) == [(1, False), (1, True), (2, False), (2, True)]
    np.testing.assert_allclose(made[1, True][6::24], 1, atol=1e-12)  # six in the morning
    np.testing.assert_allclose(made[2, False][6::24], -1, atol=1e-12)
    assert waves("D", [7]) == [wave for wave in waves("h", [24, 168]) if wave.cycle == "week"]
