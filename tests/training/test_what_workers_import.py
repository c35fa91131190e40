"""A worker of a cluster imports nothing that a driver alone needs, and what records is itself where it is used."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

from ray import cloudpickle

from proxscore import config as configuration
from proxscore.tracking import Recorder
from proxscore.training.ray.rank import train_rank
from proxscore.training.ray.reports import RecorderCallback

UNPACK = """
import base64, json, pickle, sys
held = pickle.loads(base64.b64decode(sys.argv[1]))
before = sorted({"matplotlib", "mlflow", "sklearn", "timm", "torchvision"} & sys.modules.keys())
again = pickle.loads(pickle.dumps(held["callback"]))
print(json.dumps({"before": before, "label": again.recorder.label, "after": "mlflow" in sys.modules}))
"""


def test_what_a_worker_is_sent_brings_no_mlflow_no_drawing_and_no_decoding_with_it() -> None:
    recorder = Recorder("sqlite:///nowhere.db", "run", "label", None)
    sent = {"function": train_rank, "callback": RecorderCallback(recorder), "config": configuration.parse({})}
    packed = base64.b64encode(cloudpickle.dumps(sent)).decode()
    done = subprocess.run([sys.executable, "-c", UNPACK, packed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"before": [], "label": "label", "after": True}
