"""How many rows BatchNorm needs: of one value per channel it can take no variance, and training ends with an error.

Where a single row gives a BatchNorm layer a single value per channel (one-dimensional inputs, or pictures pooled to a point), no
forward pass in training mode may have one row. The last two global batches of an epoch then share their rows evenly
(:func:`proxscore.training.data.stream_order.batch_sizes`), and what cannot be mended so is refused before training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxscore.config import Config, MethodError, MethodSection
from proxscore.inference.gathered import reshard
from proxscore.tasks import Task
from proxscore.training.data.stream_order import batch_sizes
from proxscore.training.sharding import meshes

EXAMPLE_ROWS = 2  # a layer without running statistics needs them in evaluation mode, too


def least_rows(module: nn.Module, task: Task) -> int:
    """Say how many rows a forward pass in training needs: two if one leaves a BatchNorm layer one value per channel, else one.

    All ranks of a sharded module must call it.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return 1
    values: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values.append(inputs[0].numel() // (EXAMPLE_ROWS * inputs[0].shape[1]))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    modes = {layer: layer.training for layer in module.modules()}
    example = next(module.parameters())
    try:
        with torch.no_grad():
            module.eval()(task.example(EXAMPLE_ROWS, example.device)[0])
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
        reshard(module)  # an optimizer that is made next must find the shards
    return 2 if min(values, default=2) < 2 else 1


def check_rows(config: Config, methods: list[MethodSection], module: nn.Module, task: Task) -> None:
    """Check that every forward pass of training will have as many rows as the network's BatchNorm layers need.

    Raises:
        MethodError: it will not; names what would.
    """
    if (least := least_rows(module, task)) == 1:
        return
    training = config.training
    for method in methods:
        _, replicas, shards = meshes.arrangement(config, method)
        pieces = replicas * shards * training.accumulate
        smallest = min(batch_sizes(len(task.data.train), training.batch_size, even_end=True))
        if smallest // pieces < least:
            raise MethodError(
                f"training.batch_size={training.batch_size}: BatchNorm needs {least} rows in every forward pass, and a batch of "
                f"{smallest} leaves {smallest // pieces} to each of {replicas * shards} worker(s) x "
                f"training.accumulate={training.accumulate}: use training.batch_size={2 * least * pieces} or more"
            )
