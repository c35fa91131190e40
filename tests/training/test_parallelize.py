"""Which modules are sharded, compiled and checkpointed one by one, for networks of different build."""

from __future__ import annotations

import timm
import torch
from torch import nn

from proxscore.config import TrainingConfig
from proxscore.training.sharding.parallelize import blocks, parallelize
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)


def named(model: nn.Module) -> set[str]:
    return set(blocks(model))


def test_the_blocks_of_a_vision_transformer_are_its_layers() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2)
    assert named(model) == {f"blocks.{layer}" for layer in range(3)}


def test_the_blocks_of_a_residual_network_are_its_residual_blocks() -> None:
    model = timm.create_model("resnet18", num_classes=10)
    assert named(model) == {f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)}


def test_the_blocks_of_a_hierarchical_transformer_are_the_layers_of_its_stages() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8)
    )
    assert named(model) == {"layers.0.blocks.0", "layers.0.blocks.1"} | {
        f"layers.{stage}.blocks.0" for stage in range(1, 4)
    }


def test_a_plain_network_has_no_blocks() -> None:
    assert named(timm.create_model("small_cnn")) == set()


def test_no_block_lies_within_another() -> None:
    for name in ("convnext_atto", "efficientnet_b0", "mixer_s32_224"):
        found = named(timm.create_model(name))
        assert found
        assert not [(a, b) for a in found for b in found if a != b and f"{b}.".startswith(f"{a}.")]


def test_activation_checkpointing_recomputes_blocks_and_keeps_names_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    settings = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)
    plain = timm.create_model("vit_tiny_patch16_224", **settings)
    wrapped = timm.create_model("vit_tiny_patch16_224", **settings)
    wrapped.load_state_dict(plain.state_dict())
    wrapped = parallelize(wrapped, TrainingConfig(activation_checkpointing=True), None)
    assert wrapped.state_dict().keys() == plain.state_dict().keys()

    calls = {"plain": 0, "wrapped": 0}
    for label, model in (("plain", plain), ("wrapped", wrapped)):
        layer = next(m for n, m in model.named_modules() if n.endswith("mlp.fc1"))

        def count(*_: object, label: str = label) -> None:
            calls[label] += 1

        layer.register_forward_hook(count)
    images = torch.randn(4, 3, 16, 16)
    outputs = [model(images) for model in (plain, wrapped)]
    for output in outputs:
        output.square().sum().backward()
    assert calls == {"plain": 1, "wrapped": 2}
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
