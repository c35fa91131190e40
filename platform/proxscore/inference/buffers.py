"""A context in which forward passes may change a module's buffers, and after which these are as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Within the context, a module may change, replace, add and drop buffers; afterwards they are the same tensors again,
    with the same values."""
    held = [(layer, dict(layer._buffers)) for layer in module.modules() if layer._buffers]
    plain = [layer for layer in module.modules() if not layer._buffers]
    values = [{name: b.clone() for name, b in buffers.items() if b is not None} for _, buffers in held]
    try:
        yield
    finally:
        for layer in plain:
            layer._buffers.clear()
        with torch.no_grad():
            for (layer, buffers), kept in zip(held, values, strict=True):
                layer._buffers.clear()
                layer._buffers.update(buffers)
                for name, value in kept.items():
                    buffer = buffers[name]
                    assert buffer is not None
                    if buffer.shape == value.shape:
                        buffer.copy_(value)
                    else:  # resized in place
                        layer._buffers[name] = value
