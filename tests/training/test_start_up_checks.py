"""What cannot end well is refused in one line before anything begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.training import launch
from proxscore.training.preflight import checks
from proxscore.training.preflight.memory import memory
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import cluster
from proxscore.vision.image_task import ImageTask


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
    needed = 6 * sum(memory(config, method, task).checkpoint for method in (config.baseline, config.method))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) + 10))
    checks.check_disk(config, [config.baseline, config.method], task)
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
    assert memory(config, config.method, ImageTask(config.task)).checkpoint == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_memory_that_cannot_hold_a_worker_is_refused_with_what_would_help(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tree(tmp_path, accumulate=accumulate)
    needed = memory(config, config.method, ImageTask(config.task)).total
    free = psutil.virtual_memory()._replace(available=int(needed) - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ConfigError, match=r"a worker needs .*training.batch_size=100.*a process here has .*accumulate"):
        launch.run(config)
    assert nothing_was_left(tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_nodes_that_cannot_hold_the_workers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tree(tmp_path, workers=2, cpus_per_worker=0.5)
    needed = memory(config, config.method, ImageTask(config.task)).total
    nodes = [{"Alive": True, "Resources": {"memory": 2 * needed - 2}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "capacity", lambda: {"CPU": 4, "memory": 2 * needed - 2})
    with pytest.raises(ConfigError, match="on this cluster each has"):
        cluster_checks.check_memory(config, [config.method], ImageTask(config.task))


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
    assert checks.probe_storage(str(tmp_path / "shared"), "probe") is None
    assert not checks.take_probe(str(tmp_path / "another"), "probe")
    assert checks.take_probe(str(tmp_path / "shared"), "probe")
    assert not checks.take_probe(str(tmp_path / "shared"), "probe")


def test_more_micro_batches_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.accumulate=500: the training data have 100 rows"):
        launch.run(tree(tmp_path, batch_size=500, accumulate=500))
    assert nothing_was_left(tmp_path)
