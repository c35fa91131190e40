"""Every run's posterior is a model in MLflow, which predicts in a fresh process; the champion is the best on the same data."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

import proxscore
from proxscore.config import ConfigError
from proxscore.tracking.client import Client
from proxscore.tracking.registry import register
from proxscore.tracking.weights import local_weights

if TYPE_CHECKING:
    from photographs import Photographs


@pytest.fixture
def client(photographs: Photographs) -> MlflowClient:
    return MlflowClient(photographs.uri)


@pytest.fixture
def run(photographs: Photographs, client: MlflowClient) -> Any:
    return client.get_run(photographs.result["runs"][0]["mlflow_run_id"])


def test_a_run_has_a_model_with_its_metrics(photographs: Photographs, client: MlflowClient, run: Any) -> None:
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert str(model.status) == "READY"
    assert model.params["draws"] == "5"
    assert model.tags["verdict"] == "still moving"
    metrics = {metric.key: metric.value for metric in model.metrics}
    assert metrics["test/nll"] == photographs.result["runs"][0]["test"]["posterior"]["nll"]
    assert metrics["validation/posterior_nll"] == photographs.result["runs"][0]["validated"]["nll"]
    assert len(client.get_metric_history(run.info.run_id, "test/nll")) == 1
    assert not [each for each in client.list_artifacts(run.info.run_id) if each.path == "posterior"]
    files = {path.suffix for path in Path(_local(photographs, output.model_id)).rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".pt", ".pth"}


def _local(photographs: Photographs, model_id: str) -> str:
    """The folder of a model."""
    location: str = MlflowClient(photographs.uri).get_logged_model(model_id).artifact_location
    return location.removeprefix("file://")


def test_the_run_says_who_what_and_on_which_data(run: Any, client: MlflowClient) -> None:
    tags = run.data.tags
    note = tags["mlflow.note.content"]
    assert note.startswith("proximal_score on image_folder: ")
    assert f"| posterior | {run.data.metrics['test/accuracy']:.4f} |" in note
    assert f'proxscore.load("models:/{run.outputs.model_outputs[0].model_id}")' in note
    assert tags["mlflow.user"]
    assert tags["mlflow.source.type"] == "LOCAL"
    contexts = {each.tags[0].value: json.loads(each.dataset.profile)["rows"] for each in run.inputs.dataset_inputs}
    assert contexts == {"training": 120, "validation": 60, "test": 30}
    assert len({each.dataset.digest for each in run.inputs.dataset_inputs}) == 3
    version = client.get_model_version_by_alias("colours", "champion")
    assert version.run_id == run.info.run_id
    assert tags["registered"] == "colours version 1"
    assert float(version.tags["validation_nll"]) == pytest.approx(run.data.metrics["validation/posterior_nll"])


def test_the_champion_predicts_in_a_fresh_process(photographs: Photographs, tmp_path: Path) -> None:
    files = photographs.files[:3]
    code = (
        "import base64, json, mlflow, pandas as pd, numpy as np\n"
        "from PIL import Image\n"
        f"files = {[str(path) for path in files]!r}\n"
        "model = mlflow.pyfunc.load_model('models:/colours@champion')\n"
        "content = [open(path, 'rb').read() for path in files]\n"
        "tables = [content, [base64.b64encode(each).decode() for each in content], [np.asarray(Image.open(p)) for p in files]]\n"
        "answers = [model.predict(pd.DataFrame({'image': images})) for images in tables]\n"
        "answers += [model.predict(pd.DataFrame({'image': [b'no', content[0]]}), params={'draws': 2, 'return': 'all'})]\n"
        "print(json.dumps([answer.to_dict('records') for answer in answers]))"
    )
    import os

    environment = os.environ | {"MLFLOW_TRACKING_URI": photographs.uri}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    encoded, texts, arrays, damaged = json.loads(done.stdout.splitlines()[-1])
    expected = proxscore.load(photographs.run).predict(files).to_frame()
    for answer in (encoded, texts, arrays):
        found = pd.DataFrame(answer)
        assert found["label"].tolist() == expected["label"].tolist()
        np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-5)
        assert found["verdict"].unique().tolist() == ["still moving"]
    assert damaged[0]["confidence"] is None
    assert "not in a known image format" in damaged[0]["error"]
    assert damaged[1]["error"] is None
    probabilities = sum(damaged[1][f"p_{name}"] for name in ("red", "green", "blue"))
    assert probabilities == pytest.approx(1, abs=1e-5)


def test_a_table_that_does_not_fit_is_refused_in_a_line(photographs: Photographs) -> None:
    model = mlflow.pyfunc.load_model(_local(photographs, _model(photographs)))
    with pytest.raises(Exception, match=r"missing inputs \['image'\]"):
        model.predict(pd.DataFrame({"picture": [b"x"]}))
    with pytest.raises(ConfigError, match="return is 'some'; it must be one of summary, all"):
        model.predict(pd.DataFrame({"image": [photographs.files[0].read_bytes()]}), params={"return": "some"})


def _model(photographs: Photographs) -> str:
    run = MlflowClient(photographs.uri).get_run(photographs.result["runs"][0]["mlflow_run_id"])
    return str(run.outputs.model_outputs[0].model_id)


def test_every_way_to_name_it_is_one_posterior(photographs: Photographs) -> None:
    run_id, tracking = photographs.result["runs"][0]["mlflow_run_id"], [f"tracking.uri={photographs.uri}"]
    image = np.asarray(Image.open(photographs.files[0]))
    expected = proxscore.load(photographs.run).predict([image]).mean
    for source in (
        f"runs:/{run_id}",
        run_id,
        f"runs:/{run_id}/posterior",
        f"models:/{_model(photographs)}",
        "models:/colours/1",
        "models:/colours/latest",
        "models:/colours@champion",
        _local(photographs, _model(photographs)),
    ):
        found = proxscore.load(source, overrides=tracking).predict([image]).mean
        assert (found - expected).abs().max() < 1e-6
    for source, message in (
        ("models:/colour@champion", "no registered model 'colour'; nearest: colours"),
        ("models:/colours@chmpion", "no alias 'chmpion'; its aliases: champion"),
        ("models:/colours/7", "no version '7'; its versions: 1"),
        ("models:/colours", "expected models:/NAME/VERSION"),
        (f"runs:/{'0' * 32}", "not found"),
    ):
        with pytest.raises(ConfigError, match=message):
            proxscore.load(source, overrides=tracking)


def test_the_champion_moves_only_where_it_is_better_on_the_same_data(photographs: Photographs, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = Client(uri)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())

    def version(nll: float, fingerprint: str) -> Any:
        run = client.create_run(experiment)
        model = client.create_logged_model(experiment, name="m", source_run_id=run.info.run_id)
        client.finalize_logged_model(model.model_id, "READY")
        validated = {"nll": nll, "fingerprint": fingerprint}
        return register(client, "m", model.model_id, run.info.run_id, validated, {}, "")

    found = [
        version(nll, data)
        for nll, data in ((1.0, "a"), (0.9, "a"), (0.95, "a"), (0.9, "a"), (0.1, "b"), (math.nan, "a"))
    ]
    assert [each.champion for each in found] == [True, True, False, False, False, False]
    assert str(client.get_model_version_by_alias("m", "champion").version) == "2"
    assert "other validation data" in found[4].reason
    assert "not known" in found[5].reason
    assert str(found[1]) == "m version 2, champion: validation NLL 0.9000, before 1.0000 of version 1"
    second = client.get_model_version("m", "2")
    again = register(client, "m", second.tags["model_id"], second.run_id, {"nll": 0.0, "fingerprint": "a"}, {}, "")
    assert (again.version, again.champion) == ("2", False)


def test_base64_of_nothing_is_a_failed_row(photographs: Photographs) -> None:
    predictor = proxscore.load(photographs.run)
    texts = [base64.b64encode(photographs.files[0].read_bytes()).decode(), "", "no base64!", str(photographs.files[0])]
    found = predictor.predict(texts, errors="keep", texts="base64")
    assert list(found.errors) == [1, 2, 3]  # a path is no base64: a server's caller cannot read its files


def test_weights_to_start_from_are_found_in_the_mlflow_that_is_named(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself would look for a run's model in the database of the current folder."""
    monkeypatch.chdir(tmp_path)
    run_id = photographs.result["runs"][0]["mlflow_run_id"]
    found = local_weights(Path(f"runs:/{run_id}"), str(tmp_path / "runs"), photographs.uri)
    assert (found / "posterior.json").is_file()
