"""What a dry run says of time, price and doubtful settings: extrapolation against a known clock, the rest by hand."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight import speed, timed
from proxscore.training.preflight.dry_run import dry_run
from proxscore.training.preflight.estimate import Work, estimate, work_of
from proxscore.training.preflight.fabric import link
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.price import price
from proxscore.training.preflight.remarks import remarks
from proxscore.vision.image_task import ImageTask

CPU = torch.device("cpu")


class Clock:
    """Time that passes by what is done alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rows: list[int] = []

    def __call__(self) -> float:
        return self.now

    def step(self, rows: int) -> tuple[float, float]:
        """A step of 1.5 s, 0.25 s per row, and an update of half a second; the first is ten times as slow."""
        seconds = (1.5 + 0.25 * rows) * (1 if self.rows else 10)
        self.rows.append(rows)
        self.now += seconds + 0.5
        return seconds, 0.5


@pytest.mark.parametrize(("budget", "largest"), [(40.0, 16), (60.0, 32), (1000.0, 100)])
def test_the_extrapolation_of_an_affine_clock_is_exact_and_keeps_to_its_budget(budget: float, largest: int) -> None:
    clock = Clock()
    found = speed.extrapolated(clock.step, 1, 100, row_seconds=9.0, budget=budget, clock=clock)
    assert found.passes(100) == pytest.approx(1.5 + 25)
    assert found.passes(100, micro_batches=4) == pytest.approx(4 * 1.5 + 25)
    assert found.update == 0.5
    assert max(clock.rows) == largest
    assert clock.now <= budget
    assert ("extrapolated" in found.how) == (largest < 100)


def test_a_posterior_that_is_led_astray_ends_the_timing() -> None:
    clock = Clock()

    def step(rows: int) -> tuple[float, float]:
        if rows == 8:
            raise FloatingPointError("astray")
        return clock.step(rows)

    found = speed.extrapolated(step, 1, 100, row_seconds=9.0, budget=1000.0, clock=clock)
    assert found.how == "1 to 4 rows timed, extrapolated to 100 rows"
    assert found.passes(100) == pytest.approx(26.5)


def test_where_there_is_time_for_one_step_alone_operations_give_the_slope() -> None:
    clock = Clock()
    found = speed.extrapolated(clock.step, 1, 100, row_seconds=0.25, budget=1.0, clock=clock)
    assert clock.rows == [1]
    assert found.passes(100) == pytest.approx(17.5 + 99 * 0.25)  # a warm-up of 17.5 s
    assert "by their operations" in found.how


def tree(**training: Any) -> Config:
    training = {"device": "cpu", "batch_size": 20, "workers": 0} | training
    model = {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 16}}
    task = {"model": model, "data": {"kind": "digits", "limit": 200}}
    return configuration.parse({"task": task, "training": training, "evaluation": {"draws": 4, "validation_draws": 2}})


def test_operations_are_those_of_the_layers() -> None:
    """Convolutions of 1 -> 4 channels on 8 x 8 and 4 -> 8 on 4 x 4 pixels (3 x 3), then 32 -> 16 -> 10 units.

    Two operations per product; the backward pass takes those of the forward pass twice, but for the images' gradient.
    """
    task = ImageTask(tree().task)
    first = 2 * 64 * 4 * 9
    forward = first + 2 * 16 * 8 * 4 * 9 + 2 * 32 * 16 + 2 * 16 * 10
    module = task.build_model(torch.device("meta"))
    assert sum(speed.operations(module, task, checkpointed=False).values()) == 3 * forward - first
    assert all(p.grad is None for p in module.parameters())


def test_work_is_counted_by_hand() -> None:
    config = configuration.parse({**tree(epochs=3).model_dump(), "baseline": {"kind": "adamw"}})
    task = ImageTask(config.task)
    rows, validation, test = (len(part) for part in (task.data.train, task.data.validation, task.data.test))
    steps = 3 * -(-rows // 20)
    predicted = 4 * (2 + 2) * validation + 5 * (validation + test)  # before training and after each epoch; at the end
    predicted += 5 * validation + test  # the baseline
    assert work_of(config, task) == Work(steps, steps + 10, steps, predicted, 3)  # 10: measuring the initial noise


def test_more_workers_of_a_slow_network_are_quicker_until_what_they_send_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "proxscore.training.preflight.estimate.speed_of", lambda *_: speed.Speed(0.0, 1.0, 0.0, "given")
    )
    times = {}
    for workers in (1, 2, 4):
        config = tree(workers=workers)
        times[workers] = estimate(Preflight(config, ImageTask(config.task)), CPU)
    steps = {workers: found.step for workers, found in times.items()}
    assert steps[1].sent == 0
    assert steps[1].seconds == pytest.approx(20)
    assert steps[2].seconds == pytest.approx(10 + steps[2].sent)
    assert steps[4].seconds == pytest.approx(5 + steps[4].sent)
    slow = configuration.parse({**tree(workers=4).model_dump(), "cost": {"bandwidth_gbit": 1e-6}})
    assert estimate(Preflight(slow, ImageTask(slow.task)), CPU).step.seconds > steps[1].seconds


def test_a_network_that_is_too_slow_for_a_step_is_estimated_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("a step is taken")

    monkeypatch.setattr(speed, "matrix_rate", lambda device: 1e3)  # operations per second
    monkeypatch.setattr(timed, "_timed", no_step)
    text = dry_run(tree())
    assert "not taken: 2 rows would take" in text
    assert "from counted operations" in text


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
@pytest.mark.parametrize("fused", [True, False])
def test_passes_are_compiled_before_a_step_is_timed(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = timed.train_step

    def noted(*arguments: Any, **settings: Any) -> Any:
        taken.append(1)
        return step(*arguments, **settings)

    monkeypatch.setattr(timed, "train_step", noted)
    monkeypatch.setattr(speed, "extrapolated", lambda *_: speed.Speed(0.0, 1.0, 0.0, f"{len(taken)} before"))
    changes = {
        "method": {"kind": "proximal_score", "fused": fused},
        "task": {"model": {"name": "small_cnn", "kwargs": {"hidden": 512}}, "data": {"kind": "digits", "limit": 300}},
    }
    config = configuration.parse({**tree(epochs=1).model_dump(), **changes})
    assert estimate(Preflight(config, ImageTask(config.task)), CPU).speed.how == f"{int(fused)} before"


def test_the_device_that_is_described_is_the_one_that_is_estimated() -> None:
    config = configuration.parse({**tree(epochs=1).model_dump(), "cost": {"device_tflops": 1e-6}})
    task = ImageTask(config.task)
    module: nn.Module = task.build_model(torch.device("meta"))
    found = estimate(Preflight(config, task), CPU)
    assert found.speed.per_row == pytest.approx(sum(speed.operations(module, task, False).values()) / 1e6)


def test_prices_come_from_the_table_alone() -> None:
    config = tree(workers=8)
    assert price(config, "cuda", 8, 3600).startswith("not known: set cost.hourly.gpu")
    assert price(_costs(config, hourly={"gpu": 2.5}), "cuda", 8, 1800).startswith("10.00 USD at 2.5 an hour of one GPU")
    assert price(_costs(tree(cpus_per_worker=4), hourly={"cpu": 0.5}, currency="EUR"), "cpu", 1, 3600).startswith(
        "2.00 EUR"
    )
    node = _costs(config, hourly={"node": 30.0}, instance="node", workers_per_instance=4)
    assert price(node, "cuda", 8, 3600) == "60.00 USD: 2 x node at 30 an hour"


def _costs(config: Config, **cost: Any) -> Config:
    return configuration.parse({**config.model_dump(), "cost": cost})


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"instance": "node"}, "instance=node has no price: hourly has nothing; add hourly.node"),
        ({"hourly": {"cpu": -1}}, "hourly.cpu is -1: a price is 0 or more"),
        ({"hourly": {"cpu": "free"}}, "cost.hourly.cpu"),
        ({"bandwidth": 3}, "bandwidth_gbit"),
    ],
)
def test_a_table_that_cannot_be_is_refused_in_a_line(cost: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        configuration.parse({"cost": cost})
    assert "\n" not in str(refused.value)


def test_a_link_is_assumed_by_where_workers_are_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert link(tree(workers=4), CPU)[0] == 3
    bandwidth, _, source = link(tree(workers=5), CPU)
    assert (bandwidth, "set cost.bandwidth_gbit" in source) == (10, True)
    assert link(_costs(tree(workers=5), bandwidth_gbit=100, latency_us=5), CPU)[:2] == (100, 5)


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"training.batch_size": 1000}, "training.batch_size=1000 is more than the "),
        ({"training.epochs": 0.5, "method.kind": "adamw"}, "a warm-up of 0.05 of it is none"),
        ({"training.epochs": 0.5}, "little can be learned"),
        ({"training.workers": 30, "training.batch_size": 20}, "is less than the 30 workers"),
        ({"training.workers": 1000, "training.batch_size": 1000}, "CPUs; without further nodes the job waits"),
        ({"training.precision": "bf16"}, "bf16 on CPUs"),
        ({"training.validate_every": 20}, "training.validate_every=20 is longer than training.epochs=10"),
        ({"training.checkpoint_every": 11}, "what is interrupted begins anew"),
        ({"evaluation.draws": 1}, "no epistemic uncertainty"),
    ],
)
def test_what_looks_wrong_is_remarked_in_a_line(changes: dict[str, Any], remark: str) -> None:
    config = configuration.load(None, [f"{key}={value}" for key, value in {**_flat(tree()), **changes}.items()])
    task = ImageTask(config.task)
    length = run_length(-(-len(task.data.train) // config.training.batch_size), config.training.epochs, task)
    found = remarks(config, task, length, CPU)
    assert [line for line in found if remark in line]
    assert all("\n" not in line for line in found)


def test_nothing_is_remarked_of_an_ordinary_job() -> None:
    config = tree()
    task = ImageTask(config.task)
    assert remarks(config, task, run_length(10, 10, task), CPU) == []
    point = configuration.parse({**config.model_dump(), "method": {"kind": "adamw"}, "evaluation": {"draws": 1}})
    assert remarks(point, task, run_length(10, 10, task), CPU) == []


def _flat(config: Config) -> dict[str, Any]:
    training = {"training.device": "cpu", "training.workers": 0, "training.batch_size": 20}
    return training | {"task.data.kind": "digits", "task.data.limit": 200, "task.model.name": "small_cnn"}
