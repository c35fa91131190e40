"""Parallelism and its companions, applied to an untouched module: FSDP2 per block, compilation, activation checkpointing."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from proxscore.config import TrainingConfig

#: Numbers of a network from which on its blocks are sent one by one. A smaller one is gathered at once: its messages would cost
#: more than the four megabytes that waiting for all of them spares.
WORTH_CUTTING = 1 << 20


def parallelize(module: nn.Module, config: TrainingConfig, mesh: DeviceMesh | None) -> nn.Module:
    """Checkpoint activations, compile and shard a module block by block, as the configuration says.

    Args:
        module: on its device, with equal weights on every rank.
        mesh: one-dimensional mesh to shard over; none leaves the module whole.
    """
    found = blocks(module)
    if config.activation_checkpointing:
        put_blocks(module, {name: checkpoint_wrapper(block) for name, block in found.items()})
        found = {name: module.get_submodule(name) for name in found}
    if config.compile:
        for block in found.values() or [module]:
            block.compile()
    if mesh is not None:
        low = torch.bfloat16 if config.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for block in units(module).values():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return module


def put_blocks(module: nn.Module, replacements: dict[str, nn.Module]) -> None:
    """Replace blocks of a network, by name."""
    for name, block in replacements.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, block)


def units(module: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that FSDP2 gathers one by one, by name; what lies outside of them is gathered with the root."""
    return blocks(module) if sum(p.numel() for p in module.parameters()) >= WORTH_CUTTING else {}


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Find a network's repeated blocks by name: the innermost composite members of its Sequential and ModuleList containers.

    Transformer layers, residual blocks and the like; what lies outside of them belongs to the root.
    """
    found: dict[str, nn.Module] = {}
    for name, container in module.named_modules():
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            for leaf, member in container.named_children():
                composite = any(True for _ in member.children()) and any(True for _ in member.parameters())
                if composite and not isinstance(member, (nn.Sequential, nn.ModuleList)):
                    found[f"{name}.{leaf}" if name else leaf] = member
    return {name: block for name, block in found.items() if not any(other.startswith(f"{name}.") for other in found)}
