"""Every forecasting network on two gloo ranks: losses, metrics and posterior are those of one plain process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_forecasts import SMALL, tree, write_series

from proxscore.forecasting.networks import NAMES
from proxscore.forecasting.series_task import SeriesTask
from proxscore.posterior import Posterior
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.sharding import meshes

RANKS = 2
TOLERANCE = (
    2e-3  # of losses (nats; they are sums over six steps, about 10): float32 summed in another order, over 11 steps
)
WITHOUT_DROPOUT: dict[str, dict[str, float]] = {  # every rank draws masks for its own rows
    "DeepAR": {"dropout_rate": 0.0},
    "Koopa": {"dropout": 0.0},
    "LagTST": {"dropout": 0.0},
    "PatchTST": {"dropout": 0.0},
    "TFT": {"dropout_rate": 0.0},
    "TiDE": {"dropout_rate": 1e-9},  # GluonTS takes zero for its default
}


def run(network: str, folder: Path, workers: int) -> dict[str, Any]:
    """Losses by step, test metrics, and the posterior's means."""
    kwargs = SMALL[network] | WITHOUT_DROPOUT.get(network, {})
    config = tree(folder.parent / "series.parquet", network, workers=workers)
    model = config.task.model.model_copy(update={"kwargs": kwargs})
    config = config.model_copy(update={"task": config.task.model_copy(update={"model": model})})
    arrangement = meshes.build_meshes(config, config.method, "cpu", workers) if workers else None
    losses: list[float] = []
    context = LocalWorker(
        folder,
        torch.device("cpu"),
        lambda payloads: losses.extend(record["train/nll"] for record in payloads[0]["records"]),
        1,
        arrangement,
    )
    task = SeriesTask(config.task)  # type: ignore[arg-type]
    results = train(config, config.method, config.training.epochs, task, context)
    held: dict[str, Any] = {}
    if not workers or dist.get_rank() == 0:
        (saved,) = (folder / "checkpoints").glob("*/posterior")
        held = Posterior.load(saved).mean
    return {"losses": losses, "test": results["test"], "mean": held}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    found = {network: run(network, Path(folder) / network, RANKS) for network in NAMES}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    write_series(folder / "series.parquet")
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("network", NAMES)
def test_a_network_on_shards_is_the_network_in_one_process(
    network: str, sharded: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    write_series(tmp_path / "series.parquet")
    found, expected = sharded[network], run(network, tmp_path / network, 0)
    assert len(expected["losses"]) > 8
    assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    for variant in ("posterior", "mean"):
        assert found["test"][variant]["nll"] == pytest.approx(expected["test"][variant]["nll"], abs=TOLERANCE)
    for name, tensor in expected["mean"].items():
        torch.testing.assert_close(found["mean"][name], tensor, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
