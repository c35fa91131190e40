"""Networks of timm that drop by a function: the same dropout as a layer, which Monte Carlo dropout reaches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from proxscore.methods import RunLength, Setup
from proxscore.methods.mc_dropout import MCDropoutConfig
from proxscore.posterior import Posterior
from proxscore.posterior.dropout import dropout_layers
from proxscore.vision.models import build_model
from proxscore.vision.task import ModelConfig


def build(name: str, **kwargs: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, kwargs=kwargs), classes=5, shape=(3, 32, 32))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "efficientnet_lite0"])
def test_a_network_drops_as_timms_does_and_by_a_layer(name: str) -> None:
    ours = build(name, drop_rate=0.3)
    assert [layer.p for layer in dropout_layers(ours).values()] == [0.3]
    theirs = timm.create_model(name, drop_rate=0.3, num_classes=5)
    theirs.load_state_dict(ours.state_dict())  # the same names
    images = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        found = []
        for model in (ours, theirs, copy.deepcopy(ours)):
            torch.manual_seed(0)
            found.append(model.train(training)(images))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    assert not torch.equal(ours.train()(images), ours(images))


def test_monte_carlo_dropout_has_masks_for_a_resnet() -> None:
    model = build("resnet18", drop_rate=0.5)
    method = MCDropoutConfig().build(Setup(model, RunLength(4, 2, 8)))
    posterior = Posterior.of(model, method)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    draws = []
    for index in (0, 1, 0):
        with posterior.use(model, index, seed=3), torch.no_grad():
            draws.append(model(images))
    assert torch.equal(draws[0], draws[2])
    assert not torch.allclose(draws[0], draws[1])


@pytest.mark.parametrize(
    ("name", "kwargs"), [("resnet18", {}), ("vit_tiny_patch16_224", {"drop_rate": 0.1, "depth": 1})]
)
def test_networks_without_dropout_or_with_layers_of_it_stay_as_they_are(name: str, kwargs: dict[str, Any]) -> None:
    layers = {path: type(layer) for path, layer in build(name, **kwargs).named_modules()}
    theirs = timm.create_model(name, num_classes=5, **kwargs, **({"img_size": 32} if kwargs else {}))
    assert layers == {path: type(layer) for path, layer in theirs.named_modules()}
