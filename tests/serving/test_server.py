"""The server as a user starts it: its answers are those of ``load``, it refuses what it should, and ends when it is told."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import proxscore
from proxscore.commands.serve import main as serve

if TYPE_CHECKING:
    from photographs import Photographs

TOKEN = "secret-of-the-test"


def ask(url: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, str]:
    """Status and text of an answer."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(repository: Path, photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(repository / "jobs" / "serve.py"), "models:/colours@champion", "--port", str(port)]
    command += [
        "--latency-budget",
        "60s",
        "--max-draws",
        "5",
        "--max-rows",
        "40",
        "--max-bytes",
        "400000",
        "--cpus",
        "0.5",
    ]
    environment = os.environ | {"MLFLOW_TRACKING_URI": photographs.uri, "PROXSCORE_SERVE_TOKEN": TOKEN}
    environment.pop("RAY_ADDRESS", None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                if ask(f"{address}/health", token=None)[0] == 200:
                    break
            except OSError:
                time.sleep(0.25)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        told = (folder / "log").read_text()
        assert f"serving    models:/colours@champion at {address}" in told
        assert "ending     the server finishes what it has begun" in told
        assert TOKEN not in told
    finally:
        process.kill()


def test_answers_are_those_of_load(server: str, photographs: Photographs) -> None:
    expected = proxscore.load(photographs.run, device="cpu").predict(photographs.files)
    texts = [base64.b64encode(path.read_bytes()).decode() for path in photographs.files]

    def one(row: int) -> dict[str, Any]:
        status, text = ask(f"{server}/predict", {"images": [texts[row]]})
        assert status == 200, text
        answer: dict[str, Any] = json.loads(text)
        return answer

    with ThreadPoolExecutor(15) as pool:
        answers = list(pool.map(one, range(30)))
    for row, answer in enumerate(answers):
        (found,) = answer["predictions"]
        assert found["label"] == expected.labels[row]
        assert found["confidence"] == pytest.approx(expected.confidence[row].item(), abs=1e-5)
        assert answer["draws"] == answer["draws_wanted"] == 5
        assert answer["verdict"] == "still moving"
        assert "still moving" in answer["notes"][0]
    assert max(answer["rows_together"] for answer in answers) > 1  # what arrived together was predicted together
    body = {
        "dataframe_split": {"columns": ["image"], "data": [[texts[0]], ["damaged"]]},
        "params": {"draws": 2, "return": "all"},
    }
    status, text = ask(f"{server}/invocations", body)
    assert status == 200
    answer = json.loads(text)
    assert answer["draws"] == 2
    assert sum(answer["predictions"][0][f"p_{name}"] for name in ("red", "green", "blue")) == pytest.approx(1, abs=1e-5)
    assert answer["predictions"][1]["confidence"] is None
    assert "no base64" in answer["predictions"][1]["error"]
    assert "error" not in answer["predictions"][0]


def test_what_it_refuses(server: str, photographs: Photographs) -> None:
    assert ask(f"{server}/predict", {"images": ["a"]}, token=None)[0] == 401
    assert ask(f"{server}/predict", {"images": ["a"]}, token="wrong")[0] == 401
    assert ask(f"{server}/metrics", token=None)[0] == 401
    assert ask(f"{server}/", token=None)[0] == 401
    for body, status, message in (
        (b"x" * 400_001, 413, "more than 400,000 bytes"),
        ({"images": ["a"] * 41}, 413, "at most 40"),
        ({"images": ["a"], "draws": 6}, 400, "at most 5"),
        ({"images": ["a"], "seed": 9}, 400, "seed 3 alone"),
        (b"nonsense", 400, "no JSON"),
    ):
        found, text = ask(f"{server}/predict", body)
        assert found == status
        assert message in json.loads(text)["error"]
    assert ask(f"{server}/predict")[0] == 405
    assert ask(f"{server}/nowhere")[0] == 404
    # It goes on; and says what it is.
    status, text = ask(f"{server}/")
    assert status == 200
    about = json.loads(text)
    assert about["limits"] == {"rows": 40, "draws": 5, "bytes": 400_000}
    assert about["latency_budget_ms"] == 60_000


def test_its_metrics_are_counted(server: str, photographs: Photographs) -> None:
    text = base64.b64encode(photographs.files[0].read_bytes()).decode()
    assert ask(f"{server}/predict", {"images": [text]})[0] == 200
    for _ in range(120):  # Ray's agents export every few seconds
        exported = ask(f"{server}/metrics")[1]
        if "ray_proxscore_requests_total{" in exported and 'status="200"' in exported:
            break
        time.sleep(0.5)
    assert 'status="200"' in exported
    assert "ray_proxscore_milliseconds_bucket" in exported
    assert "ray_proxscore_draws_bucket" in exported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--host", "0.0.0.0"], "set a token in PROXSCORE_SERVE_TOKEN"),
        (["{run}", "--port", "0"], "--port is 0"),
        (["{run}", "--port", "{busy}"], "cannot be listened on"),
        (["{run}", "--latency-budget", "soon"], "--latency-budget is 'soon'"),
        (["{run}", "--draws", "65"], "--draws is 65"),
        (["{run}", "--max-replicas", "0"], "--max-replicas is 0"),
        (["{run}", "--batch", "0"], "--batch is 0"),
        (["absent"], "no posterior there"),
        (["models:/nothing@champion"], "no registered model 'nothing'"),
    ],
)
def test_bad_settings_are_one_line(
    arguments: list[str],
    message: str,
    photographs: Photographs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", photographs.uri)
    monkeypatch.delenv("PROXSCORE_SERVE_TOKEN", raising=False)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert serve([each.format(run=photographs.run, busy=busy.getsockname()[1]) for each in arguments]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
