"""Real Ray workers: sharded training gives what one process gives, and refuses what cannot run.

Workers that are lost are in ``test_lost_workers.py``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cluster_runs import FAMILIES, curve, tree
from mlflow import MlflowClient
from PIL import Image

from proxscore.config import ConfigError
from proxscore.posterior import Posterior
from proxscore.training import launch
from proxscore.training.data.streamed import LEAST_ROWS
from proxscore.training.evaluation import evaluate
from proxscore.training.local.worker import LocalWorker
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.results import Outcome
from proxscore.training.run import Run
from proxscore.vision.image_task import ImageTask

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Outcome]:
    """The posterior in one plain process. A baseline before it is in ``test_torchrun_job.py``."""
    return launch.run(tree(folder, "alone", families=FAMILIES, workers=0))


def test_two_workers_give_the_losses_and_metrics_of_one_process(folder: Path, alone: list[Outcome]) -> None:
    config = tree(folder, "pair", families=FAMILIES, workers=2)
    told: list[str] = []
    outcomes = launch.run(config, told.append)
    assert [outcome.kind for outcome in outcomes] == ["proximal_score"]
    for outcome in outcomes:  # how many workers are there is told while they are waited for
        waited = [line.removeprefix(f"{outcome.label} · ") for line in told if line.startswith(f"{outcome.label} ")]
        assert waited[0] == "2 workers asked, 0 ready"
        assert waited[-1] == "2 workers asked, 2 ready: they read the data and build the network"
    for ours, theirs in zip(outcomes, alone, strict=True):
        losses, expected = (curve(config, outcome.run_id) for outcome in (ours, theirs))
        assert list(losses) == list(expected) == list(range(1, ours.results["steps"] + 1))
        for step, (value,) in losses.items():
            assert value == pytest.approx(expected[step][0], abs=1e-4)
        assert ours.results["test"].keys() == theirs.results["test"].keys()
        for variant, metrics in ours.results["test"].items():
            assert metrics == pytest.approx(theirs.results["test"][variant], abs=1e-4)
        # The gathered weights, and what is recorded of shards, are those of the whole.
        one, other = (Posterior.load(outcome.folder / "posterior") for outcome in (ours, theirs))
        for group in ("mean", "precision"):
            for name, tensor in getattr(one, group).items():
                np.testing.assert_allclose(tensor, getattr(other, group)[name], rtol=1e-3, atol=1e-4, err_msg=name)
    weights, expected_weights = (o[0].results["mixture_weights"] for o in (outcomes, alone))
    assert weights == pytest.approx(expected_weights, abs=1e-3)
    assert weights != pytest.approx([0.5, 0.5], abs=0.01)
    tags = MlflowClient(config.tracking.uri).get_run(outcomes[0].run_id).data.tags
    assert json.loads(tags["mixture.weights"]) == weights
    for key in ("log_precision_mean", "log_precision_min", "log_precision_max", "ratio_mean", "ratio_min", "ratio_max"):
        ours_key, theirs_key = (curve(config, o[0].run_id, f"posterior/{key}") for o in (outcomes, alone))
        common = ours_key.keys() & theirs_key.keys()  # taken where a report is due, which each run's clock decides
        assert max(ours_key) in common  # the end of the run among them
        for step in common:
            (value,) = ours_key[step]
            assert value == pytest.approx(theirs_key[step][0], abs=1e-3), key


def test_more_workers_than_the_cluster_can_place_are_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.workers=40 .* use at most 8 workers"):
        launch.run(tree(tmp_path, "many", workers=40))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"training\.workers=2 need a GPU each"):
        launch.run(
            tree(tmp_path, "many", workers=2).model_copy(
                update={"training": tree(tmp_path, "x", device="cuda").training}
            )
        )


def images(count: int, size: int = 8) -> list[tuple[bytes, int]]:
    """PNG images of noise, brighter for class 1."""
    import io

    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        pixels = generator.integers(0, 128, (size, size)) + 100 * (number % 2)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        rows.append((buffer.getvalue(), number % 2))
    return rows


def parquet(folder: Path, rows: list[tuple[bytes, int]]) -> dict[str, Any]:
    folder.mkdir()
    table = pa.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=150)
    return {"kind": "parquet", "path": str(folder), "classes": 2, "size": 8, "channels": 1}


def test_parquet_streams_through_ray_data_to_two_workers(tmp_path: Path) -> None:
    data = parquet(tmp_path / "data", images(3000)) | {"test_fraction": 0.7}
    config = tree(tmp_path, "stream", data=data, workers=2, epochs=1, batch_size=40)
    (outcome,) = launch.run(config)
    rows = len(ImageTask(config.task).data.train)
    steps = -(-rows // 40)
    assert outcome.results["steps"] == steps
    assert list(curve(config, outcome.run_id)) == list(range(1, steps + 1))
    assert len(config.task.build().data.test) >= 2 * LEAST_ROWS
    # What the cluster streamed and scored is what one process reads and scores.
    posterior, task = Posterior.load(outcome.folder / "posterior"), config.task.build()
    module = posterior.load_into(task.build_model())
    worker = LocalWorker(tmp_path / "scores", torch.device("cpu"), lambda payloads: None, keep=1)
    metrics, _ = evaluate(Run(config, task, worker, module), "test", config.evaluation.draws, posterior)
    assert metrics == pytest.approx(outcome.results["test"]["posterior"], abs=1e-6)


def test_workers_that_leave_ray_data_no_cpu_are_refused(tmp_path: Path) -> None:
    data = parquet(tmp_path / "data", images(30))
    config = tree(tmp_path, "full", data=data, workers=4, cpus_per_worker=1)
    with pytest.raises(ConfigError, match=r"training\.cpus_per_worker=0\.7"):
        cluster_checks.check_resources(config)
    cluster_checks.check_resources(tree(tmp_path, "room", data=data, workers=4, cpus_per_worker=0.7))


def test_an_image_that_only_one_worker_finds_unreadable_ends_the_run_at_once(tmp_path: Path) -> None:
    for number, (image, label) in enumerate(images(60, size=64)):
        (tmp_path / "data" / "ab"[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ab"[label] / f"{number}.png").write_bytes(image)
    victim = tmp_path / "data" / "a" / "10.jpg"  # a JPEG cut short has a good header, so that only decoding finds it
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(victim)
    victim.write_bytes(victim.read_bytes()[:-400])
    data = {"kind": "image_folder", "path": str(tmp_path / "data"), "size": 8, "channels": 1, "test_fraction": 0.02}
    config = tree(tmp_path, "cut", data=data | {"validation_fraction": 0.02}, workers=2, batch_size=10)
    assert "a/10.jpg" in str(
        [ImageTask(config.task).data.train.reader.files[r] for r in ImageTask(config.task).data.train.rows]
    )  # type: ignore[attr-defined]

    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"a/10\.jpg: not a readable image") as refusal:
        launch.run(config)
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < 90  # no second attempt, and no rank that waits for the other
    client = MlflowClient(config.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == str(refusal.value)
