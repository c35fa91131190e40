"""Weights that FSDP2 has gathered: after a forward without backward, those of the root module stay gathered."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from proxscore.inference import noise


def reshard(module: nn.Module) -> None:
    """Free the gathered weights that FSDP2 keeps after a forward without backward: they would outlive a draw that is put
    into the shards, and an optimizer made of them would hold no weights of the module."""
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()


def refuse_freed(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters whose memory is gone.

    Raises:
        RuntimeError: names a parameter whose memory FSDP2 has freed; an optimizer that holds it was made of gathered weights.
    """
    for name, parameter in parameters.items():
        shard = noise.local(parameter)
        if shard.numel() and not shard.is_meta and not shard.untyped_storage().nbytes():
            raise RuntimeError(
                f"parameter {name}: FSDP2 has freed it, for the optimizer was made while weights were gathered (after a "
                "forward without backward): call reshard() on the module before the optimizer is made"
            )
