"""From training to answers, each step one command in a process of its own: the numbers are the same all the way.

The same by ``ray job submit`` on two nodes is in ``test_submitted_jobs.py``.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_digits

TINY = (
    "task.model.kwargs={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
    *(
        "task.data.limit=300",
        "training.batch_size=50",
        "training.epochs=2",
        "training.workers=0",
        "training.device=cpu",
    ),
    *("evaluation.shifts=[]", "evaluation.draws=4", "baseline=null", "name=digits", "tracking.register_as=digits"),
)


class Shell:
    """Runs commands in a folder of their own, with the environment's scripts on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")} | {
            "PATH": path
        }

    def __call__(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def server(self, *command: str, port: int) -> Iterator[str]:
        """A server, once it answers; its address."""
        log = self.folder / f"{port}.log"
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=file, stderr=file)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(1200):
                assert process.poll() is None, log.read_text()
                try:
                    with urllib.request.urlopen(f"{address}/health", timeout=10):
                        break
                except OSError:
                    time.sleep(0.25)
            yield address
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                for each in family:
                    if each.is_running():
                        each.kill()


@pytest.fixture(scope="module")
def shell(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a registered champion, and images of digits."""
    shell = Shell(tmp_path_factory.mktemp("answers"))
    (shell.folder / "images").mkdir()
    for row in range(8):
        pixels = (load_digits().images[row] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(shell.folder / "images" / f"{row}.png")
    config = str(repository / "jobs" / "configs" / "quickstart.yaml")
    told = shell("proxscore", "train", "--config", config, *TINY)
    assert "registered digits version 1, champion" in told
    return shell


@pytest.fixture(scope="module")
def predicted(shell: Shell) -> pd.DataFrame:
    """What the batch job predicts."""
    told = shell("proxscore", "predict", "models:/digits@champion", "images", "--output", "predictions.parquet")
    assert "written    predictions.parquet" in told
    found = pd.read_parquet(shell.folder / "predictions.parquet")
    assert len(found) == 8
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(shell: Shell, address: str, path: str) -> list[dict[str, Any]]:
    """The rows of an answer for all images."""
    images = [base64.b64encode(file.read_bytes()).decode() for file in sorted((shell.folder / "images").iterdir())]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}).encode()
    request = urllib.request.Request(f"{address}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        rows: list[dict[str, Any]] = json.loads(answer.read())["predictions"]
    return rows


def test_a_fresh_process_loads_the_champion(shell: Shell, predicted: pd.DataFrame) -> None:
    code = (
        "import proxscore; found = proxscore.load('models:/digits@champion').predict('images').to_frame(); "
        "print(found.to_json())"
    )
    found = pd.DataFrame(json.loads(shell(sys.executable, "-c", code).splitlines()[-1]))
    assert found["label"].tolist() == predicted["label"].tolist()
    np.testing.assert_allclose(found["confidence"], predicted["confidence"], atol=1e-5)


def test_mlflows_server_answers_the_same(shell: Shell, predicted: pd.DataFrame) -> None:
    port = free_port()
    shell.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{shell.folder / 'mlflow.db'}"
    command = (
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/digits@champion",
        "--env-manager",
        "local",
        "--port",
        str(port),
    )
    with shell.server(*command, port=port) as address:
        rows = ask(shell, address, "/invocations")
    np.testing.assert_allclose([row["confidence"] for row in rows], predicted["confidence"], atol=1e-5)
    assert [row["label"] for row in rows] == predicted["label"].tolist()


@pytest.mark.slow
def test_our_server_answers_the_same(shell: Shell, predicted: pd.DataFrame) -> None:
    port = free_port()
    with shell.server("proxscore", "serve", "models:/digits@champion", "--port", str(port), port=port) as address:
        rows = ask(shell, address, "/predict")
    np.testing.assert_allclose([row["confidence"] for row in rows], predicted["confidence"], atol=1e-5)
    assert [row["label"] for row in rows] == predicted["label"].tolist()
