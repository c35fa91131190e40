"""small_cnn with dropout: none unless asked for, and then before both linear layers."""

from __future__ import annotations

import torch

from proxscore.posterior.dropout import dropout_layers
from proxscore.vision.models import build_model
from proxscore.vision.task import ModelConfig


def network(**kwargs: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="small_cnn", kwargs=kwargs), classes=10, shape=(1, 8, 8))


def test_dropout_changes_training_alone_and_no_weights() -> None:
    images, plain, dropped = torch.rand(4, 1, 8, 8), network(), network(drop_rate=0.5)
    assert not dropout_layers(plain)
    assert set(dropout_layers(dropped)) == {"flat_drop", "head_drop"}
    assert dropped.state_dict().keys() == plain.state_dict().keys()
    called: list[str] = []
    for name, layer in dropout_layers(dropped).items():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    assert not torch.equal(dropped(images), dropped(images))
    assert called == 2 * ["flat_drop", "head_drop"]
    torch.testing.assert_close(dropped.eval()(images), plain.eval()(images))
