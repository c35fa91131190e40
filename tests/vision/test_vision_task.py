"""The task that joins data, network, likelihood and metrics."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import torch
from sklearn.metrics import accuracy_score, log_loss

from proxscore.posterior import CategoricalPredictive
from proxscore.vision.image_task import ImageTask
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.task import ModelConfig, VisionConfig


def test_network_likelihood_and_metrics_fit_the_data() -> None:
    task = ImageTask(VisionConfig(model=ModelConfig(name="small_cnn"), data=DigitsConfig()))
    images, labels = task.data.test.__getitems__(range(len(task.data.test)))
    log_probabilities = task.build_model()(images).detach().log_softmax(1)
    nll = task.likelihood.nll(log_probabilities, labels).mean().item()
    probabilities = log_probabilities.exp().numpy().astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = log_loss(labels.numpy(), probabilities)
    assert abs(nll - expected) < 1e-5
    predictive = CategoricalPredictive(log_probabilities, -(log_probabilities.exp() * log_probabilities).sum(1), labels)
    computed, figures = task.evaluator.evaluate(predictive, 15, torch.device("cpu"), "untrained")
    assert list(figures()) == ["reliability"]
    assert abs(computed["nll"] - expected) < 1e-5
    assert abs(computed["accuracy"] - accuracy_score(labels.numpy(), probabilities.argmax(1))) < 1e-6


def test_the_description_says_how_the_data_were_split_and_can_be_recorded_as_json() -> None:
    described = json.loads(json.dumps(ImageTask(VisionConfig()).describe()))
    assert described["kind"] == "digits"
    assert described["classes"] == 10
    assert described["shape"] == [1, 8, 8]
    assert described["splits"]["counts"] == {"train": 1258, "validation": 180, "test": 359}


def test_the_same_seed_builds_the_same_network() -> None:
    task = ImageTask(VisionConfig(model=ModelConfig(name="small_cnn")))
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(task.build_model().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_vision_is_imported_without_ray_and_mlflow() -> None:
    code = "import sys, proxscore.vision.task, proxscore.vision.ray_data; print({'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
