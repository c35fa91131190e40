"""What cannot end well is refused in one line before anything begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, MethodSection
from proxscore.storage.probe import probe_storage, take_probe
from proxscore.training import launch
from proxscore.training.initial_network import InitialNetwork
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import fit
from proxscore.training.preflight import checks, preflight
from proxscore.training.preflight.dry_run import dry_run
from proxscore.training.preflight.memory import Memory, count_memory
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import cluster
from proxscore.vision.image_task import ImageTask
from proxscore.vision.task import VisionConfig


def tree(folder: Path, **training: Any) -> Config:
    return configuration.parse(
        {
            "name": "checked",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
                "data": {"kind": "digits", "limit": 100},
            },
            "baseline": {"kind": "adamw"},
            "training": {"workers": 0, "device": "cpu", "storage": str(folder / "runs")} | training,
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        }
    )


def nothing_was_left(folder: Path) -> bool:
    return not (folder / "mlflow.db").exists() and not list((folder / "runs").glob("*/run.json"))


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tree(tmp_path, keep_checkpoints=4)
    assert config.baseline is not None
    task = ImageTask(config.task)
    needed = 6 * sum(count_memory(config, method, task).checkpoint for method in (config.baseline, config.method))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) + 10))
    checks.check_disk(Preflight(config, task), [config.baseline, config.method])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) - 10))
    with pytest.raises(ConfigError, match=r"training.storage .*: training.keep_checkpoints=4, .* are free: keep fewer"):
        launch.run(config)
    assert nothing_was_left(tmp_path)


def test_the_size_of_a_checkpoint_is_counted_to_a_tenth(tmp_path: Path) -> None:
    """Beside what a real run leaves: DCP's files and the posterior, with their headers and figures of 60 kB."""
    config = tree(tmp_path, epochs=1)
    model = config.task.model.model_copy(update={"kwargs": {"width": 32, "hidden": 2000}})
    config = config.model_copy(update={"baseline": None, "task": config.task.model_copy(update={"model": model})})
    (outcome,) = launch.run(config, lambda line: None)
    files = [path for path in outcome.folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    held = sum(path.stat().st_size for path in files)
    assert count_memory(config, config.method, ImageTask(config.task)).checkpoint == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_memory_that_cannot_hold_a_worker_is_refused_with_what_would_help(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tree(tmp_path, accumulate=accumulate)
    needed = count_memory(config, config.method, ImageTask(config.task)).total
    free = psutil.virtual_memory()._replace(available=int(needed) - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ConfigError, match=r"a worker needs .*training.batch_size=100.*a process here has .*accumulate"):
        launch.run(config)
    assert nothing_was_left(tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_nodes_that_cannot_hold_the_workers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tree(tmp_path, workers=2, cpus_per_worker=0.5)
    needed = count_memory(config, config.method, ImageTask(config.task)).total
    nodes = [{"Alive": True, "Resources": {"memory": 2 * needed - 2}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "room", lambda each: cluster.Room(8, 8))
    with pytest.raises(ConfigError, match="on this cluster each has"):
        cluster_checks.check_memory(Preflight(config, ImageTask(config.task)), [config.method])


@pytest.mark.usefixtures("ray_local")
def test_a_storage_that_a_node_cannot_write_is_refused_by_the_nodes_address(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    config = tree(tmp_path, workers=2, storage=str(tmp_path / "file" / "runs"))
    with pytest.raises(ConfigError, match=r"training.storage .*file/runs: node [0-9.]+ cannot write it: "):
        cluster_checks.check_storage(config)
    good = tree(tmp_path, workers=2)
    cluster_checks.check_storage(good)
    assert not list((tmp_path / "runs").iterdir())  # the probes are gone


def test_a_probe_that_is_not_there_is_not_seen(tmp_path: Path) -> None:
    assert probe_storage(str(tmp_path / "shared"), "probe") is None
    assert not take_probe(str(tmp_path / "another"), "probe")
    assert take_probe(str(tmp_path / "shared"), "probe")
    assert not take_probe(str(tmp_path / "shared"), "probe")


def test_more_micro_batches_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.accumulate=500: the training data have 100 rows"):
        launch.run(tree(tmp_path, batch_size=500, accumulate=500))
    assert nothing_was_left(tmp_path)


class Counting(ImageTask):
    """Keeps the devices that its network was built on, one for each time."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.built: list[str] = []

    def build_model(self, device: torch.device | None = None) -> torch.nn.Module:
        self.built.append("cpu" if device is None else device.type)
        return super().build_model(device)


def counted_task(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Counting], list[str]]:
    """The tasks that are built from now on, and the methods whose memory is counted."""
    tasks: list[Counting] = []
    counted: list[str] = []

    def build(config: VisionConfig, **settings: Any) -> Counting:
        tasks.append(Counting(config, **settings))
        return tasks[-1]

    def count(config: Config, settings: MethodSection, *rest: Any) -> Memory:
        counted.append(settings.kind)
        return count_memory(config, settings, *rest)

    monkeypatch.setattr(VisionConfig, "build", build)
    monkeypatch.setattr(preflight, "count_memory", count)
    return tasks, counted


@pytest.mark.parametrize("meta_init", [False, True])
def test_the_network_is_built_and_memory_counted_once_on_the_way_to_the_first_step(
    meta_init: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, counted = counted_task(monkeypatch)
    config = tree(tmp_path, epochs=1, meta_init=meta_init).model_copy(update={"baseline": None})
    launch.run(config, lambda line: None)
    (task,) = tasks
    assert sorted(task.built) == sorted(["meta", "meta" if meta_init else "cpu"])  # one to count, one to train
    assert counted == [config.method.kind]


def test_a_baseline_and_a_method_each_train_a_network_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, counted = counted_task(monkeypatch)
    config = tree(tmp_path, epochs=1)
    assert config.baseline is not None
    launch.run(config, lambda line: None)
    assert sorted(tasks[0].built) == ["cpu", "cpu", "meta"]
    assert counted == [config.baseline.kind, config.method.kind]


def test_a_dry_run_builds_the_network_once_with_numbers_and_once_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, _ = counted_task(monkeypatch)
    dry_run(tree(tmp_path))
    assert tasks[0].built == ["meta", "cpu"]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_network_that_the_checks_have_built_trains_as_one_that_the_loop_builds(
    dropout: float, tmp_path: Path
) -> None:
    """To the bit: dropout in the first batches, which the initial noise is measured on, takes random numbers, too."""
    config = tree(tmp_path, epochs=1)
    model = config.task.model.model_copy(update={"kwargs": {"drop_rate": dropout}})
    config = config.model_copy(update={"task": config.task.model_copy(update={"model": model})})
    task = ImageTask(config.task)
    weights = []
    for name, built in (("own", None), ("handed on", InitialNetwork(config, task))):
        torch.rand(3)  # whatever happens in between
        worker = LocalWorker(tmp_path / name, torch.device("cpu"), lambda payloads: None, keep=1)
        fitted = fit(config, config.method, 1, task, worker, built=built)
        weights.append(torch.cat([parameter.flatten() for parameter in fitted.run.module.parameters()]))
    assert torch.equal(*weights)


def test_a_built_network_is_handed_on_once_and_to_its_own_seed_alone(tmp_path: Path) -> None:
    config = tree(tmp_path)
    built = InitialNetwork(config, ImageTask(config.task))
    assert built.take(config.model_copy(update={"seed": config.seed + 1})) is None
    assert built.take(config) is not None
    assert built.take(config) is None


def test_counting_with_activation_checkpointing_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    model = {"name": "vit_tiny_patch16_224", "kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}}
    base = tree(tmp_path, activation_checkpointing=True)
    config = base.model_copy(
        update={"task": base.task.model_copy(update={"model": base.task.model.model_validate(model)})}
    )
    task = ImageTask(config.task)
    found = Preflight(config, task)
    assert found.memory(config.method) == count_memory(config, config.method, task)
    plain = config.training.model_copy(update={"activation_checkpointing": False})
    assert found.memory(config.method, plain) == count_memory(
        config.model_copy(update={"training": plain}), config.method, task
    )
