"""Weights to start from that lie in MLflow: a run's posterior, a registered model by version and by alias."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from proxscore.config import ConfigError, parse
from proxscore.tracking.weights import local_weights
from proxscore.training.launch import with_absolute_paths
from proxscore.vision.weights import read_state


def test_mlflow_gives_weights_by_run_version_and_alias(uri: str, tmp_path: Path) -> None:
    client, storage = MlflowClient(uri), str(tmp_path / "runs")
    run = client.create_run("0")
    (tmp_path / "posterior").mkdir()
    save_file({"mean.a": torch.ones(2), "precision.a": torch.ones(2)}, tmp_path / "posterior" / "posterior.safetensors")
    client.log_artifacts(run.info.run_id, str(tmp_path / "posterior"), "posterior")
    client.create_registered_model("network")
    for number in (1, 2):
        folder = tmp_path / f"model-{number}"
        folder.mkdir()
        save_file({"a": torch.full((2,), float(number))}, folder / "model.safetensors")
        client.log_artifacts(run.info.run_id, str(folder), f"model-{number}")
        client.create_model_version("network", f"{run.info.artifact_uri}/model-{number}", run.info.run_id)
    client.set_registered_model_alias("network", "champion", "2")

    def read(text: str) -> list[float]:
        folder = local_weights(Path(text), storage, uri)
        assert folder.is_relative_to(storage)
        return read_state(folder)["a"].tolist()

    assert read(f"runs:/{run.info.run_id}") == [1, 1]
    task = {"model": {"name": "resnet18", "weights": f"runs:/{run.info.run_id}"}}
    config = parse({"task": task, "training": {"storage": storage}, "tracking": {"uri": uri}})
    assert config.method.prior.mean == "initial"
    found = with_absolute_paths(config).task.weights  # as every job begins
    assert found is not None
    assert read_state(found)["a"].tolist() == [1, 1]
    assert read(f"runs:/{run.info.run_id}/model-2") == [2, 2]
    assert read("models:/network/1") == [1, 1]
    assert read("models:/network@champion") == [2, 2]
    client.set_registered_model_alias("network", "champion", "1")
    assert read("models:/network@champion") == [1, 1]
    assert not list(Path(storage).glob("weights/.download-*"))
    assert local_weights(Path("/data/w.pt"), storage, uri) == Path("/data/w.pt")
    for text in ("models:/nothing@champion", "models:/network/7", f"runs:/{'0' * 32}", "models:/network"):
        with pytest.raises(ConfigError, match=f"task.model.weights {text}: ") as caught:
            local_weights(Path(text), storage, uri)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no folder"):
        local_weights(Path("models:/network/1"), "s3://bucket/runs", uri)
